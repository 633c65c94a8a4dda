"""Plain safetensors: every weight dense in the storage dtype. Any runtime reads it."""

from pathlib import Path

from paredown.engine.architectures import Skeleton
from paredown.engine.formats.files import write_config, write_weights
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelFiles, Storage, stored


def write(model: CompressedModel, directory: Path) -> int:
    """Weight files and config.json; returns the bytes of the weight files. Tied weights are stored once."""
    dtype = model.storage_dtype
    size_bytes = write_weights(((model.stored_name(name), model.stored(name)) for name in model.names), directory)
    write_config(model.config, str(dtype).removeprefix("torch."), directory)
    return size_bytes


def write_base(files: ModelFiles, directory: Path) -> None:
    """A model of whatever container in its 16-bit type, without a tokenizer: for a runtime that does not read it."""
    source = files.stored_by(Storage())
    skeleton = Skeleton(files.config, files.storage_dtype)
    write_weights(((skeleton.stored_name(name), stored(source, name)) for name in source.names), directory)
    write_config(files.config, str(files.storage_dtype).removeprefix("torch."), directory)
