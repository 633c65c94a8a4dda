"""Text into token blocks: what methods calibrate on and what quality is measured on.

A text is UTF-8, plain or JSON lines with a `text` field (documents are joined by a blank line). It is tokenized without
special tokens, in pieces of about a million characters that end where a line ends, so that a large text needs little
memory. Where a family was never trained without one (gemma), every sequence begins with the token for a text's
beginning, and holds one token of text less. Nothing is cut short in silence: too little text is an error that says
how much there is.

Shapes: N sequences, T tokens in each.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import AutoTokenizer

from paredown.contracts.job import Calibration, DType, EvaluationSettings, content_hash
from paredown.contracts.recipes import Training
from paredown.contracts.report import Protocol
from paredown.engine.errors import CalibrationTooShort, CalibrationUnfit, NotAModel, TextUnusable
from paredown.engine.gguf_reader import quick_headers
from paredown.engine.held_out import OVERLAP_TOKENS, ngrams, overlapping

# Characters tokenized at once.
PIECE_CHARACTERS = 1 << 20
# Calibration draws from so many characters at most; a longer text is not read further, and the report says so.
CALIBRATION_CHARACTERS = 1 << 25


@dataclass(frozen=True)
class TokenBlocks:
    """Sequences of token ids, with the SHA-256 of their bytes (int64, little-endian, row by row)."""

    tokens_NT: Tensor
    sha256: str
    warnings: tuple[str, ...] = ()
    # Windows of the text that overlap with held-out text; None where nobody looked.
    held_out_windows: int | None = None

    @classmethod
    def of(
        cls, tokens_NT: Tensor, warnings: tuple[str, ...] = (), held_out_windows: int | None = None
    ) -> "TokenBlocks":
        little_endian = tokens_NT.numpy().astype("<i8", copy=False)
        return cls(tokens_NT, hashlib.sha256(little_endian.tobytes()).hexdigest(), warnings, held_out_windows)


def load_tokenizer(model_dir: Path, gguf_file: str | None) -> Any:
    """The model's own tokenizer, from its files alone. Raises NotAModel where there is none that can be read."""
    try:
        # Code that comes with a model is never run: trust_remote_code stays off.
        with quick_headers():
            return AutoTokenizer.from_pretrained(
                model_dir, **({"gguf_file": gguf_file} if gguf_file else {}), trust_remote_code=False
            )
    except Exception as error:  # a hostile or foreign file can fail in any way inside the library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise NotAModel(
            f"The model's tokenizer cannot be loaded: {reason.rstrip(' .:')}. Its files, such as tokenizer.json, "
            "belong beside config.json.",
            field="model",
        ) from error


def calibration_blocks(
    path: Path,
    settings: Calibration,
    tokenizer: Any,
    vocab_size: int,
    context: int,
    first_token: int | None = None,
    held_out: Sequence[TokenBlocks] | None = None,
) -> TokenBlocks:
    """Draw `samples` of the text's windows of `sequence_length` tokens, `first_token` included, without replacement.

    The text is cut into windows that do not overlap. They are taken in the order of SHA-256("seed:index"), which no
    library's random generator can change; those that overlap with the `held_out` text are passed over. Raises
    CalibrationTooShort, CalibrationUnfit, TextUnusable.
    """
    _check_context(settings.sequence_length, context, "calibration.sequence_length")
    tokens_T = _all_tokens(path, tokenizer)
    width = _text_width(settings.sequence_length, first_token)
    num_windows = len(tokens_T) // width
    if num_windows < settings.samples:
        raise _too_short("calibration", len(tokens_T), settings.samples, width)
    windows_NT = tokens_T[: num_windows * width].reshape(num_windows, width)
    admitted = _admitted(windows_NT, held_out, first_token)
    if len(admitted) < settings.samples:
        raise _too_held_out(
            len(admitted), num_windows, width, f"{settings.samples} were asked for", "calibration.samples"
        )
    preferred = sorted(admitted, key=lambda index: _draw(settings.seed, index))[: settings.samples]
    warnings: tuple[str, ...] = ()
    if path.stat().st_size > 4 * CALIBRATION_CHARACTERS:  # at most four bytes a character
        warnings = (f"Calibration was drawn from the first {CALIBRATION_CHARACTERS:,} characters of its text.",)
    left_out = None if held_out is None else num_windows - len(admitted)
    return TokenBlocks.of(_checked(_begun(windows_NT[preferred], first_token), vocab_size), warnings, left_out)


def training_blocks(
    path: Path,
    stage: Training,
    index: int,
    tokenizer: Any,
    vocab_size: int,
    context: int,
    first_token: int | None = None,
    held_out: Sequence[TokenBlocks] | None = None,
) -> TokenBlocks:
    """The sequences of the stage's batches in their order: the text's windows, shuffled anew each time that it is read.

    `index` is the stage's place in the recipe. The text is cut, shuffled and kept apart as calibration's is. Raises
    CalibrationTooShort, CalibrationUnfit, TextUnusable.
    """
    _check_context(stage.sequence_length, context, f"recipe.{index}.sequence_length")
    tokens_T = _all_tokens(path, tokenizer)
    width = _text_width(stage.sequence_length, first_token)
    num_windows, wanted = len(tokens_T) // width, stage.steps * stage.batch_size
    if wanted > num_windows * stage.repeats:
        raise CalibrationTooShort(
            f"{stage.title} wants {wanted:,} sequences of {stage.sequence_length} tokens. The calibration text has "
            f"{len(tokens_T):,} tokens, {num_windows:,} such sequences (no more than {CALIBRATION_CHARACTERS:,} "
            f"characters are read), and repeats is {stage.repeats}. Lower tokens to "
            f"{num_windows * stage.repeats * stage.sequence_length:,}, raise repeats, or give a longer text.",
            field=f"recipe.{index}.tokens",
        )
    windows_NT = tokens_T[: num_windows * width].reshape(num_windows, width)
    admitted = _admitted(windows_NT, held_out, first_token)
    if wanted > len(admitted) * stage.repeats:
        asked = f"{stage.title} wants {wanted:,}, and repeats is {stage.repeats}"
        raise _too_held_out(len(admitted), num_windows, width, asked, f"recipe.{index}.tokens")
    order = [
        window
        for repeat in range(-(-wanted // len(admitted)))
        for window in sorted(admitted, key=lambda window: _draw(stage.seed, repeat * num_windows + window))
    ]
    warnings: tuple[str, ...] = ()
    if wanted > len(admitted):
        warnings = (f"{stage.title} read its text of {len(tokens_T):,} tokens {wanted / len(admitted):.1f} times.",)
    return TokenBlocks.of(_checked(_begun(windows_NT[order[:wanted]], first_token), vocab_size), warnings)


def _admitted(
    windows_NT: "numpy.ndarray[Any, Any]", held_out: Sequence[TokenBlocks] | None, first_token: int | None
) -> Sequence[int]:
    """The windows that do not overlap with held-out text; all of them where there is none to keep apart."""
    if held_out is None:
        return range(len(windows_NT))
    # Every sequence begins with `first_token`, which says nothing of its text.
    begin = int(first_token is not None)
    known = [ngrams(blocks.tokens_NT.numpy()[:, begin:]) for blocks in held_out]
    admitted: list[int] = numpy.flatnonzero(~overlapping(windows_NT, known)).tolist()
    return admitted


def _too_held_out(left: int, num_windows: int, width: int, asked: str, field: str) -> CalibrationTooShort:
    return CalibrationTooShort(
        f"The calibration text has {num_windows:,} windows of {width} tokens, and {num_windows - left:,} of them share "
        f"{OVERLAP_TOKENS} tokens in a row with the text of the evaluation: {left:,} are left. {asked[0].upper()}"
        f"{asked[1:]}. Ask for fewer or shorter sequences, or give another text.",
        field=field,
    )


def _all_tokens(path: Path, tokenizer: Any) -> "numpy.ndarray[Any, Any]":
    """Of the text's first CALIBRATION_CHARACTERS."""
    pieces = _tokenized(_bounded(_pieces(path, "calibration.source"), CALIBRATION_CHARACTERS), tokenizer)
    return numpy.concatenate([numpy.empty(0, numpy.int64), *pieces])


def evaluation_blocks(
    path: Path,
    settings: EvaluationSettings,
    tokenizer: Any,
    vocab_size: int,
    context: int,
    first_token: int | None = None,
    part: str | None = None,
) -> TokenBlocks:
    """The first `samples` × `sequence_length` tokens of the text, `first_token` of each sequence included.

    `part` of the evaluation's settings is to blame for the text. Raises CalibrationTooShort, CalibrationUnfit,
    TextUnusable.
    """
    _check_context(settings.sequence_length, context, "evaluation.sequence_length")
    where = f"evaluation.{part}" if part else "evaluation"
    width = _text_width(settings.sequence_length, first_token)
    wanted = settings.samples * width
    gathered: list[numpy.ndarray[Any, Any]] = []
    count = 0
    for piece in _tokenized(_pieces(path, f"{where}.source"), tokenizer):
        gathered.append(piece)
        count += len(piece)
        if count >= wanted:
            break
    if count < wanted:
        raise _too_short("evaluation", count, settings.samples, width, f"{where}.source" if part else None)
    windows_NT = numpy.concatenate(gathered)[:wanted].reshape(settings.samples, width)
    return TokenBlocks.of(_checked(_begun(windows_NT, first_token), vocab_size))


def _text_width(sequence_length: int, first_token: int | None) -> int:
    """Tokens of text in a sequence."""
    return sequence_length - (first_token is not None)


def _begun(windows_NT: "numpy.ndarray[Any, Any]", first_token: int | None) -> "numpy.ndarray[Any, Any]":
    if first_token is None:
        return windows_NT
    return numpy.insert(windows_NT, 0, first_token, axis=1)


def protocol(settings: EvaluationSettings, blocks: TokenBlocks, dtype: DType) -> Protocol:
    """What pins a measurement of quality; `protocol_hash` of it decides which figures compare."""
    return Protocol(
        source=settings.source,
        tokens_sha256=blocks.sha256,
        samples=settings.samples,
        sequence_length=settings.sequence_length,
        dtype=dtype,
    )


def protocol_hash(protocol: Protocol) -> str:
    return content_hash(protocol.model_dump(mode="json"))


def documents(path: Path, field: str) -> Iterator[str]:
    """A text's lines, or each document of JSON lines with a blank line after it. Raises TextUnusable."""
    try:
        with path.open(encoding="utf-8") as lines:
            first = next((line for line in lines if line.strip()), "")
            lines.seek(0)
            if not _is_document(first):
                yield from lines
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _document(line, number, field) + "\n\n"
    except UnicodeDecodeError as error:
        raise TextUnusable("The text is not UTF-8; convert it and try again.", field=field) from error


def _is_document(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "text" in value


def _document(line: str, number: int, field: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, RecursionError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise TextUnusable(
            f"Line {number} of the text is not a JSON object with a string in `text`, though the first line is.",
            field=field,
        )
    return text


def _pieces(path: Path, field: str) -> Iterator[str]:
    """The text in pieces of about PIECE_CHARACTERS, each ending where a line or a document ends, or within a longer one
    where a word does."""
    gathered: list[str] = []
    size = 0
    for text in documents(path, field):
        for part in _parts(text):
            gathered.append(part)
            size += len(part)
            if size >= PIECE_CHARACTERS:
                yield "".join(gathered)
                gathered, size = [], 0
    if gathered:
        yield "".join(gathered)


def _parts(text: str) -> Iterator[str]:
    """A line or document of any length in parts of at most PIECE_CHARACTERS; the space between words begins a part."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.rfind(" ", start + 1, start + PIECE_CHARACTERS)
        end = end if end > 0 else start + PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def _bounded(pieces: Iterator[str], limit: int) -> Iterator[str]:
    for piece in pieces:
        yield piece
        limit -= len(piece)
        if limit <= 0:
            return


def _tokenized(pieces: Iterator[str], tokenizer: Any) -> Iterator["numpy.ndarray[Any, Any]"]:
    for piece in pieces:
        encoded = tokenizer(
            piece, add_special_tokens=False, return_attention_mask=False, truncation=False, verbose=False
        )
        yield numpy.asarray(encoded["input_ids"], dtype=numpy.int64)


def _draw(seed: int, index: int) -> bytes:
    return hashlib.sha256(f"{seed}:{index}".encode()).digest()


def _check_context(sequence_length: int, context: int, field: str) -> None:
    if sequence_length > context:
        raise CalibrationUnfit(
            f"The model reads at most {context} tokens at once; sequence_length is {sequence_length}.", field=field
        )


def _too_short(
    what: str, num_tokens: int, samples: int, sequence_length: int, field: str | None = None
) -> CalibrationTooShort:
    return CalibrationTooShort(
        f"The {what} text has {num_tokens} tokens, enough for {num_tokens // sequence_length} sequences of "
        f"{sequence_length}; {samples} were asked for. Ask for fewer or shorter sequences, or give a longer text.",
        field=field or f"{what}.samples",
    )


def _checked(tokens_NT: "numpy.ndarray[Any, Any]", vocab_size: int) -> Tensor:
    if tokens_NT.size and not 0 <= int(tokens_NT.min()) <= int(tokens_NT.max()) < vocab_size:
        raise NotAModel(
            f"The tokenizer gives token {int(tokens_NT.max())}, but the model has embeddings for {vocab_size} tokens; "
            "the tokenizer belongs to another model.",
            field="model",
        )
    return torch.from_numpy(numpy.ascontiguousarray(tokens_NT))


__all__ = [
    "TokenBlocks",
    "calibration_blocks",
    "evaluation_blocks",
    "load_tokenizer",
    "protocol",
    "protocol_hash",
    "training_blocks",
]
