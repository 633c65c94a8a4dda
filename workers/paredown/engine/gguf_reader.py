"""GGUF files: which tensor is which of transformers' parameters, and one dequantized tensor at a time.

The arithmetic is the gguf package's own; names and the row order of llama's q and k follow transformers' loader, to
which a test compares every weight.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFReader, dequantize, get_tensor_name_map
from torch import Tensor

from paredown.engine.errors import ArchitectureUnsupported, NotAModel

# Those whose values GGUF keeps as transformers does, but for the row order and orientation that are undone below; of
# others it shifts norms (gemma) or reorders fused rows (bloom).
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2")
# Stored as they are; every other type is a block format that dequantizes to float32.
_PLAIN = {GGMLQuantizationType.F32: torch.float32, GGMLQuantizationType.F16: torch.float16}


class HeaderReader(GGUFReader):  # type: ignore[misc]  # the package has no types
    """The package's reader, in a quarter of its time: of each string of a vocabulary it makes views of a memory map,
    and a map's own class costs more than the reading."""

    def _get(
        self, offset: int, dtype: Any, count: int = 1, override_order: Literal["I", "S", "<"] | None = None
    ) -> "np.ndarray[Any, Any]":
        order = self.byte_order if override_order is None else override_order
        return np.frombuffer(self.data, np.dtype(dtype).newbyteorder(order), int(count), int(offset))

    @property
    def data(self) -> "np.ndarray[Any, Any]":
        return self._data

    @data.setter
    def data(self, mapped: "np.ndarray[Any, Any]") -> None:
        self._data = np.asarray(mapped)


@contextmanager
def quick_headers() -> Iterator[None]:
    """transformers, which reads a GGUF file's whole header for a configuration and again for a tokenizer, does it with
    HeaderReader."""
    # It takes the class from the package by name.
    before = gguf.GGUFReader
    gguf.GGUFReader = HeaderReader
    try:
        yield
    finally:
        gguf.GGUFReader = before


@dataclass(frozen=True)
class _Entry:
    """Where one tensor lies. numpy order of dimensions; of quantized types `stored_shape` counts bytes in the last."""

    name: str
    kind: GGMLQuantizationType
    offset: int
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    numpy_dtype: np.dtype[Any]


class GgufWeights:
    """The tensors of one GGUF file under transformers' names."""

    def __init__(self, path: Path, config: Any, shapes: Mapping[str, Sequence[int]]) -> None:
        self._path = path
        self._config = config
        reader = HeaderReader(path)
        self._architecture = str(reader.fields["general.architecture"].contents())
        if self._architecture not in _ARCHITECTURES:
            raise ArchitectureUnsupported(
                f"{path.name} holds the architecture {self._architecture!r}; from GGUF this release takes "
                f"{', '.join(_ARCHITECTURES)}. Another model may be had as safetensors.",
                field="model",
            )
        stored = {
            tensor.name: _Entry(
                tensor.name,
                GGMLQuantizationType(tensor.tensor_type),
                int(tensor.data_offset),
                tuple(int(size) for size in reversed(tensor.shape)),
                tuple(int(size) for size in tensor.data.shape),
                tensor.data.dtype,
            )
            for tensor in reader.tensors
        }
        names = self._name_map(config.num_hidden_layers)
        self._entries: dict[str, _Entry] = {}
        for name, shape in shapes.items():
            module, _, leaf = name.rpartition(".")
            entry = stored.get(f"{names.get_name(module)}.{leaf}")
            if entry is None:
                raise NotAModel(f"{path.name} has no tensor for {name}.", field="model")
            found = entry.shape[::-1] if self._is_transposed(entry) else entry.shape
            if found != tuple(shape):
                raise NotAModel(f"{name} is {found} in {path.name}, but its metadata asks for {tuple(shape)}.")
            self._entries[name] = entry

    def _name_map(self, num_blocks: int) -> Any:
        [architecture] = [key for key, name in MODEL_ARCH_NAMES.items() if name == self._architecture]
        return get_tensor_name_map(architecture, num_blocks)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that the file stores; float32 for quantized tensors."""
        kind = self._entries[name].kind
        return torch.bfloat16 if kind is GGMLQuantizationType.BF16 else _PLAIN.get(kind, torch.float32)

    def tensor(self, name: str) -> Tensor:
        """The dense weight in transformers' orientation and row order."""
        entry = self._entries[name]
        # Mapped anew for each tensor, so that pages once read do not stay in this process.
        # As a plain array: a map's own class costs more than the arithmetic on each of the pieces that it is cut into.
        stored = np.asarray(np.memmap(self._path, entry.numpy_dtype, "r", entry.offset, entry.stored_shape))
        values = np.array(stored) if entry.kind in _PLAIN else dequantize(stored, entry.kind)
        if self._architecture == "llama" and (".attn_q." in entry.name or ".attn_k." in entry.name):
            values = _unpermuted(values, self._heads(entry.name))
        elif self._is_transposed(entry):
            values = values.T
        value = torch.from_numpy(np.ascontiguousarray(values))
        return value.to(self.dtype(name))

    def _is_transposed(self, entry: _Entry) -> bool:
        """GPT-2's linears are Conv1D in transformers."""
        return self._architecture == "gpt2" and entry.name.startswith("blk.") and len(entry.shape) == 2

    def _heads(self, gguf_name: str) -> int:
        config = self._config
        return int(config.num_attention_heads if ".attn_q." in gguf_name else config.num_key_value_heads)


def _unpermuted(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp interleaves the two halves of each rotary head; transformers keeps them one after the other."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, *values.shape[1:]).swapaxes(2, 1).reshape(values.shape)
