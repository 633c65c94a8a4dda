"""How an artifact lies on disk: one file for each format, and what all of them share."""

from collections.abc import Callable
from pathlib import Path

from paredown.contracts.job import Format
from paredown.engine.formats import checkpoints, compressed_tensors, dense, gguf, native
from paredown.engine.stream import CompressedModel

# Weight files and config.json of a model, written into a directory. Each returns the bytes of its weight files.
WRITERS: dict[Format, Callable[[CompressedModel, Path], int]] = {
    Format.COMPRESSED_TENSORS: compressed_tensors.write,
    Format.SAFETENSORS: dense.write,
    Format.GGUF: gguf.write,
    Format.NATIVE: native.write,
    Format.GPTQ: checkpoints.write_gptq,
    Format.AWQ: checkpoints.write_awq,
}
