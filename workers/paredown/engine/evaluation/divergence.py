"""Divergence of an artifact from its base on the evaluation text: how often, and how far, its predictions changed.

Perplexity looks at the probability of one token at each position; KL(base‖artifact) looks at all of them, so a change
that leaves perplexity alone still shows (Dutta et al., "Accuracy is Not All You Need", arXiv:2407.09141). The positions
that changed most are kept to be read, after Hooker et al., "What Do Compressed Deep Neural Networks Forget?",
arXiv:1911.05248, who call them compression-identified exemplars.

Logits of a whole text would take V numbers for each token. So the base's pass leaves the states that enter its head,
H numbers for each token, in a file; when the artifact's pass computes its logits part by part, the base's are computed
anew from those states and its own head, and the two are compared at once. The two may differ in H.
Shapes: N sequences, T tokens of each, P predicted positions of a part, H hidden size, V vocabulary.
"""

import hashlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from paredown.contracts.report import Divergence, Exemplar, Prediction
from paredown.engine.architectures import Skeleton
from paredown.engine.formats.files import synchronize
from paredown.engine.weights import ModelReader

# Passages that a report shows, and how much of the text before the token that changed.
EXEMPLARS = 12
CONTEXT_TOKENS = 48
# Two exemplars of one sequence lie at least so far apart, so that each shows another passage.
_APART_TOKENS = 32
# States that are hashed at once.
_READ_POSITIONS = 4096


class StatesFile:
    """Writes the states that enter a head, all predicted positions in order, as one .npy array of P × H.

    Given to `perplexity` as its observer. numpy has no bfloat16, whose bits are kept as int16. Written as a stream, not
    through a memory map: a full disk is then an error, not the end of the process.
    """

    def __init__(self, path: Path, positions: int) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._positions = positions
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def __call__(self, hidden_PH: Tensor, _logits_PV: Tensor, _target_P: Tensor) -> None:
        assert self._file is not None
        states_PH = _as_numbers(hidden_PH)
        if self._file.tell() == 0:
            shape = (self._positions, states_PH.shape[1])
            header = {"descr": states_PH.dtype.str, "fortran_order": False, "shape": shape}
            numpy.lib.format.write_array_header_1_0(self._file, header)
        content = states_PH.tobytes()
        self._hash.update(content)
        self._file.write(content)

    def finish(self) -> str:
        """Give the complete file its name. Returns the SHA-256 of the states, without numpy's header."""
        assert self._file is not None
        self._file.flush()
        synchronize(self._partial)
        self._partial.rename(self._path)
        return self._hash.hexdigest()


class _StatesReader:
    """Reads what StatesFile wrote, from first to last. Not through a memory map, whose pages would count as memory.

    Raises OSError or ValueError where the file is not a whole array.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            numpy.lib.format.read_magic(self._file)
            (self.positions, self._width), _, self._dtype = numpy.lib.format.read_array_header_1_0(self._file)
        except ValueError:
            self._file.close()
            raise

    def read(self, count: int) -> "numpy.ndarray[Any, Any]":
        """The next states, P × H."""
        return numpy.fromfile(self._file, self._dtype, count * self._width).reshape(count, self._width)

    def close(self) -> None:
        self._file.close()


def has_states(path: Path, sha256: str) -> bool:
    """Whether the file holds the states of this hash, complete."""
    hashed = hashlib.sha256()
    try:
        with closing(_StatesReader(path)) as states:
            for start in range(0, states.positions, _READ_POSITIONS):
                hashed.update(states.read(min(_READ_POSITIONS, states.positions - start)).tobytes())
    except (OSError, ValueError):
        # Absent, or not as it was written.
        return False
    return hashed.hexdigest() == sha256


def _as_numbers(hidden_PH: Tensor) -> "numpy.ndarray[Any, Any]":
    hidden_PH = hidden_PH.cpu().contiguous()
    numbers: numpy.ndarray[Any, Any] = (
        hidden_PH.view(torch.int16) if hidden_PH.dtype is torch.bfloat16 else hidden_PH
    ).numpy()
    return numbers


def kl_divergence(base_PV: Tensor, artifact_PV: Tensor) -> Tensor:
    """KL(base‖artifact) at each position in nats, from log-probabilities: Σ p (log p − log q), never below 0."""
    terms_PV = functional.kl_div(artifact_PV, base_PV, reduction="none", log_target=True)
    # Rounding leaves a few 1e-7 on either side of 0.
    return terms_PV.sum(-1).clamp_min(0)


@dataclass(frozen=True)
class _Part:
    """What is kept of P positions: the divergence, each side's most likely token, and probabilities."""

    divergence_P: Tensor
    base_top_P: Tensor
    artifact_top_P: Tensor
    # Of each side's own most likely token, and of the token that the text goes on with.
    base_probability_P: Tensor
    artifact_probability_P: Tensor
    base_of_text_P: Tensor
    artifact_of_text_P: Tensor


class Comparison:
    """Compares the artifact's logits with the base's as they are computed. Given to `perplexity` as its observer.

    Holds the base's head, and of the text a few numbers for each position. A context, which closes the file of states.
    """

    def __init__(self, base: ModelReader, states: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        self._skeleton = Skeleton(base.config, dtype)
        self._skeleton.put_from(base.tensor, self._skeleton.head_names(), device)
        self._states = _StatesReader(states)
        self._device = device
        self._dtype = dtype
        self._seen = 0
        self._parts: list[_Part] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._states.close()

    def __call__(self, _hidden_PH: Tensor, logits_PV: Tensor, target_P: Tensor) -> None:
        base_PV = self._skeleton.logits(self._base_states(len(target_P))).log_softmax(-1)
        artifact_PV = logits_PV.log_softmax(-1)
        base_top, artifact_top = base_PV.max(-1), artifact_PV.max(-1)
        text_P1 = target_P[:, None]
        self._parts.append(
            _Part(
                divergence_P=kl_divergence(base_PV, artifact_PV).cpu(),
                base_top_P=base_top.indices.cpu(),
                artifact_top_P=artifact_top.indices.cpu(),
                base_probability_P=base_top.values.exp().cpu(),
                artifact_probability_P=artifact_top.values.exp().cpu(),
                base_of_text_P=base_PV.gather(-1, text_P1)[:, 0].exp().cpu(),
                artifact_of_text_P=artifact_PV.gather(-1, text_P1)[:, 0].exp().cpu(),
            )
        )

    def _base_states(self, count: int) -> Tensor:
        states_PH = torch.from_numpy(self._states.read(count))
        self._seen += count
        return (states_PH.view(torch.bfloat16) if self._dtype is torch.bfloat16 else states_PH).to(self._device)

    def result(self, tokens_NT: Tensor, tokenizer: Any, protocol_hash: str) -> Divergence:
        """Over all positions that were seen, which are those that `tokens_NT` predicts."""
        target_P = tokens_NT[:, 1:].flatten()
        assert self._seen == len(target_P), "not every position was compared"
        seen = _Part(*(torch.cat([getattr(part, name) for part in self._parts]) for name in _Part.__annotations__))
        divergence_P = seen.divergence_P.double().numpy()
        median, p90, p99 = numpy.percentile(divergence_P, (50, 90, 99)).tolist()
        base_right_P, artifact_right_P = seen.base_top_P == target_P, seen.artifact_top_P == target_P
        return Divergence(
            protocol_hash=protocol_hash,
            predicted_tokens=len(target_P),
            mean=float(divergence_P.mean()),
            median=median,
            p90=p90,
            p99=p99,
            maximum=float(divergence_P.max()),
            top1_agreement=_share(seen.base_top_P == seen.artifact_top_P),
            answers_lost=_share(~artifact_right_P[base_right_P]),
            answers_won=_share(artifact_right_P[~base_right_P]),
            exemplars=tuple(
                _exemplar(position, seen, tokens_NT, tokenizer)
                for position in _most_changed(divergence_P, tokens_NT.shape[1] - 1)
            ),
        )


def _share(true_P: Tensor) -> float:
    """Of no positions, 0."""
    return float(true_P.double().mean()) if len(true_P) else 0.0


def _most_changed(divergence_P: "numpy.ndarray[Any, Any]", predicted_each: int) -> list[int]:
    """The positions of the largest divergence, each of another passage, largest first."""
    chosen: list[int] = []
    for position in numpy.argsort(-divergence_P, kind="stable").tolist():
        same = [other for other in chosen if other // predicted_each == position // predicted_each]
        if all(abs(other - position) >= _APART_TOKENS for other in same):
            chosen.append(position)
        if len(chosen) == EXEMPLARS:
            break
    return chosen


def _exemplar(position: int, seen: _Part, tokens_NT: Tensor, tokenizer: Any) -> Exemplar:
    sequence, place = divmod(position, tokens_NT.shape[1] - 1)
    # The first token of a sequence is predicted by none.
    place += 1

    def text(token: Any) -> str:
        return str(tokenizer.decode([int(token)]))

    before = tokens_NT[sequence, max(0, place - CONTEXT_TOKENS) : place].tolist()
    return Exemplar(
        sequence=sequence,
        position=place,
        divergence=float(seen.divergence_P[position]),
        context=str(tokenizer.decode(before, skip_special_tokens=True)),
        token=text(tokens_NT[sequence, place]),
        base_probability=float(seen.base_of_text_P[position]),
        artifact_probability=float(seen.artifact_of_text_P[position]),
        base=Prediction(token=text(seen.base_top_P[position]), probability=float(seen.base_probability_P[position])),
        artifact=Prediction(
            token=text(seen.artifact_top_P[position]), probability=float(seen.artifact_probability_P[position])
        ),
    )
