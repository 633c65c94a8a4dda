"""Calibration's token blocks as a file that another run can take.

Shapes: N sequences, T tokens in each.
"""

from pathlib import Path
from typing import Any

import numpy
import torch

from paredown.contracts.job import Calibration, content_hash
from paredown.engine.data import TokenBlocks
from paredown.engine.errors import CalibrationUnfit, TextUnusable, TokenizerDiffers


def tokenizer_sha256(tokenizer: Any) -> str:
    """Of the vocabulary, every token with its number: equal means that token blocks mean the same.

    Not of the tokenizer's file, which differs with its container and with the library that wrote it.
    """
    return content_hash(sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0])))


def save_blocks(blocks: TokenBlocks, path: Path) -> None:
    """Whole or not at all: checkpoints are copied while the engine works."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as stream:
        numpy.save(stream, blocks.tokens_NT.numpy().astype("<i4"), allow_pickle=False)
    temporary.replace(path)


def stored_blocks(
    path: Path, settings: Calibration, tokenizer: Any, expected_tokenizer: str | None, vocab_size: int, context: int
) -> TokenBlocks:
    """The blocks that another run drew. Raises TokenizerDiffers, CalibrationUnfit, TextUnusable."""
    if expected_tokenizer != tokenizer_sha256(tokenizer):
        raise TokenizerDiffers(
            f"{settings.source} was drawn with another tokenizer than this model's, so its tokens mean something else "
            "here. Name the text that they were drawn from, or a calibration of a model with this tokenizer.",
            field="calibration.source",
        )
    try:
        stored_NT = numpy.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TextUnusable(f"The tokens of {settings.source} cannot be read.", field="calibration.source") from error
    expected = (settings.samples, settings.sequence_length)
    if not isinstance(stored_NT, numpy.ndarray) or stored_NT.dtype != numpy.int32 or stored_NT.shape != expected:
        raise TextUnusable(
            f"{settings.source} does not hold {expected[0]} sequences of {expected[1]} tokens, as it should.",
            field="calibration.source",
        )
    if settings.sequence_length > context:
        raise CalibrationUnfit(
            f"The model reads at most {context} tokens at once; {settings.source} has sequences of "
            f"{settings.sequence_length}.",
            field="calibration.source",
        )
    if stored_NT.size and not 0 <= int(stored_NT.min()) <= int(stored_NT.max()) < vocab_size:
        raise TokenizerDiffers(
            f"{settings.source} holds token {int(stored_NT.max())}, and the model has embeddings for {vocab_size} "
            "tokens.",
            field="calibration.source",
        )
    return TokenBlocks.of(torch.from_numpy(stored_NT.astype(numpy.int64)))
