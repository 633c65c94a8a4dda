"""Plain safetensors: every weight dense in the storage dtype. Any runtime reads it."""

from pathlib import Path

from paredown.engine.formats.files import write_config, write_weights
from paredown.engine.stream import CompressedModel


def write(model: CompressedModel, directory: Path) -> int:
    """Weight files and config.json; returns the bytes of the weight files. Tied weights are stored once."""
    dtype = model.storage_dtype
    size_bytes = write_weights(((model.stored_name(name), model.stored(name)) for name in model.names), directory)
    write_config(model.config, str(dtype).removeprefix("torch."), directory)
    return size_bytes
