"""Models as lm-eval sees them: one that scores text by the block stream, one that writes it in a runtime.

Scoring follows lm-eval's own `hf` model step by step (how context and continuation are cut into tokens, where a long
one is cut off, which token stands before a text without context), so that both give the same figures on the same
weights.
Shapes: B sequences of a micro-batch, T tokens of the longest, P scored positions, H hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import LM, TemplateLM
from torch import Tensor

from paredown.contracts.pieces import HEAD_TOKENS, MICRO_BATCH_TOKENS, TASK_STATES_BYTES
from paredown.engine.activations import entering, roundings
from paredown.engine.architectures import Skeleton
from paredown.engine.errors import NanFound, TaskUnfit
from paredown.engine.forward import BlockForward
from paredown.engine.runtimes import TransformersProcess
from paredown.engine.weights import ModelReader

# Sequences of a micro-batch are filled up to a multiple of so many tokens, so that few shapes of masks exist.
_WIDTH_STEP = 8
# What lm-eval's `hf` model writes at most, where a task does not say.
NEW_TOKENS = 256


@dataclass(frozen=True)
class _Continuation:
    """What one request asks: the last `length` tokens of a sequence, given those before."""

    request: int
    targets: tuple[int, ...]


class BlockStreamLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Scores all requests at once, block by block, with one block's weights in memory."""

    def __init__(
        self,
        model: ModelReader,
        tokenizer: Any,
        *,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
        on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._model = model
        self._context = context
        self._device_used = device
        self._skeleton = Skeleton(model.config, dtype)
        self._on_progress = on_progress

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        return prefix_token(self.tokenizer)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_more: Any) -> list[int]:
        chosen = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        encoded: list[int] = self.tokenizer.encode(string, verbose=False, **chosen)
        return encoded

    def loglikelihood_rolling(self, requests: Sequence[Any], **_more: Any) -> list[float]:
        """Of whole texts, cut into windows that each see one token of the one before."""
        windows: list[tuple[tuple[str, str], list[int], list[int]]] = []
        counts = []
        for request in requests:
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._context,
                context_len=1,
            )
            disjoint = [utils.make_disjoint_window(window) for window in rolling]
            windows += [(("", ""), context, continuation) for context, continuation in disjoint]
            counts.append(len(disjoint))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], **_more: Any) -> list[str]:
        raise NotImplementedError("the block stream scores text; RuntimeLM writes it")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_more: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding writes it) of each continuation."""
        asked: dict[tuple[int, ...], list[_Continuation]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self._context:
                raise TaskUnfit(
                    f"An answer has {len(continuation)} tokens, and the model reads {self._context} at most.",
                    field="evaluation.tasks",
                )
            whole = (context + continuation)[-(self._context + 1) :]
            # Answers of one token after the same question read the same tokens, which are run once.
            asked.setdefault(tuple(whole[:-1]), []).append(_Continuation(index, tuple(continuation)))
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        passes = list(self._passes(sorted(asked, key=len)))
        total = len(passes) * self._skeleton.num_blocks
        for number, batches in enumerate(passes):
            self._score(batches, asked, answers, number * self._skeleton.num_blocks, total)
        return answers

    def _passes(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[list[list[tuple[int, ...]]]]:
        """Micro-batches of sequences that are ordered by length, as many as one pass through the blocks holds."""
        bytes_each = self._skeleton.hidden_size * self._skeleton.dtype.itemsize
        room = TASK_STATES_BYTES // bytes_each
        batches: list[list[tuple[int, ...]]] = []
        held = 0
        for batch in self._batches(sequences):
            tokens = len(batch) * self._width(batch)
            if batches and held + tokens > room:
                yield batches
                batches, held = [], 0
            batches.append(batch)
            held += tokens
        if batches:
            yield batches

    def _batches(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        batch: list[tuple[int, ...]] = []
        for sequence in sequences:
            if batch and (len(batch) + 1) * self._width([sequence]) > MICRO_BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch

    def _width(self, batch: Sequence[tuple[int, ...]]) -> int:
        longest = max(map(len, batch))
        return min(self._context, -(-longest // _WIDTH_STEP) * _WIDTH_STEP)

    def _filled(self, batch: Sequence[tuple[int, ...]]) -> Tensor:
        """Filled up at the end, where no token that counts can see it."""
        tokens_BT = torch.zeros(len(batch), self._width(batch), dtype=torch.long)
        for row_T, sequence in zip(tokens_BT, batch, strict=True):
            row_T[: len(sequence)] = torch.tensor(sequence)
        return tokens_BT

    def _score(
        self,
        batches: Sequence[Sequence[tuple[int, ...]]],
        asked: dict[tuple[int, ...], list[_Continuation]],
        answers: list[tuple[float, bool]],
        blocks_before: int,
        blocks_in_all: int,
    ) -> None:
        """One pass through the blocks."""
        skeleton, device, read = self._skeleton, self._device_used, self._model.tensor
        with torch.inference_mode():
            skeleton.load_outer(read, device)
            forward = BlockForward(skeleton, [self._filled(batch) for batch in batches], device)
            skeleton.release_outer()
            for index in range(skeleton.num_blocks):
                skeleton.put_from(read, skeleton.block_names(index), device)
                names = skeleton.linear_names(index)
                with entering(skeleton.model, names, roundings(self._model, names)):
                    for micro_batch in range(len(batches)):
                        forward.keep(micro_batch, forward.call(index, micro_batch))
                skeleton.release_block(index)
                self._on_progress(blocks_before + index + 1, blocks_in_all)
            skeleton.load_outer(read, device)
            for micro_batch, batch in enumerate(batches):
                for sequence, hidden_TH in zip(batch, forward.final(micro_batch), strict=True):
                    for continuation in asked[sequence]:
                        answers[continuation.request] = self._answer(len(sequence), hidden_TH, continuation.targets)
            skeleton.release_outer()

    def _answer(self, length: int, hidden_TH: Tensor, targets: Sequence[int]) -> tuple[float, bool]:
        hidden_PH = hidden_TH[length - len(targets) : length]
        target_P = torch.tensor(targets, dtype=torch.long, device=hidden_PH.device)
        total, is_greedy = 0.0, True
        for part_PH, part_P in zip(
            torch.split(hidden_PH, HEAD_TOKENS), torch.split(target_P, HEAD_TOKENS), strict=True
        ):
            logits_PV = self._skeleton.logits(part_PH)
            chosen_P = logits_PV.log_softmax(-1).gather(1, part_P[:, None])[:, 0]
            total += float(chosen_P.sum(dtype=torch.float64))
            is_greedy = is_greedy and bool((logits_PV.argmax(-1) == part_P).all())
        if not math.isfinite(total):
            raise NanFound(f"A log-likelihood is {total}: the model gives no usable probabilities.")
        return total, is_greedy


class RuntimeLM(LM):  # type: ignore[misc]
    """Writes in a runtime that has the model loaded, greedily, one prompt after the other."""

    def __init__(
        self,
        process: TransformersProcess,
        tokenizer: Any,
        *,
        context: int,
        dtype: str,
        on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        super().__init__()
        self._process = process
        self._tokenizer = tokenizer
        self._context = context
        self._dtype = dtype
        self._on_progress = on_progress

    def generate_until(self, requests: Sequence[Any], **_more: Any) -> list[str]:
        written = []
        for number, request in enumerate(requests):
            prompt, settings = request.args
            new_tokens = int(settings.get("max_gen_toks", NEW_TOKENS))
            # What does not fit is left out at the beginning, where the oldest examples are.
            tokens = self._tokenizer.encode(prompt, verbose=False)[-(self._context - new_tokens) :]
            stops = settings.get("until", [])
            written.append(self._process.complete(tokens, new_tokens, stops, self._dtype))
            self._on_progress(number + 1, len(requests))
        return written

    def loglikelihood(self, requests: Sequence[Any], **_more: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("a runtime writes text; BlockStreamLM scores it")

    def loglikelihood_rolling(self, requests: Sequence[Any], **_more: Any) -> list[float]:
        raise NotImplementedError("a runtime writes text; BlockStreamLM scores it")


def prefix_token(tokenizer: Any) -> int:
    """What stands before a text without context: the token that begins texts, else the one that ends them.

    Raises TaskUnfit where the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise TaskUnfit(
        "The model's tokenizer has no token that begins or ends a text, so answers without a question before them "
        "cannot be scored.",
        field="evaluation.tasks",
    )
