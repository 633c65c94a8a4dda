"""The GGUF format, for llama.cpp: one file with tensors under llama.cpp's names, the model's sizes, and its tokenizer.

Codes are packed as the method left them; the gguf package's own quantizers would compute other scales from the rounded
weights. Embeddings and head of a quantized model are coded too: in Q8_0 by that package, in fewer bits with scales that
are searched for. Norms, biases and positions are float32, all else is the model's 16-bit type. Blocks are packed in
gguf_blocks.py.
Shapes: O out_features, I in_features.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    dequantize,
    get_tensor_name_map,
    quantize,
)
from numpy.typing import NDArray
from torch import Tensor

from paredown.contracts import gguf as contract
from paredown.contracts.recipes import EightBit, Recipe, Rtn, quantizer
from paredown.contracts.recipes.quantization import SUPER_BLOCK
from paredown.engine.architectures import Architecture, Skeleton
from paredown.engine.errors import FormatRefused
from paredown.engine.formats.files import synchronize
from paredown.engine.formats.gguf_blocks import Bytes, packed
from paredown.engine.formats.gguf_metadata import head_dim, rope_factors, write_metadata
from paredown.engine.grid import nearest
from paredown.engine.quantized import GridLinear, KQuantLinear, QuantizedLinear
from paredown.engine.stored import StoredLinear
from paredown.engine.weights import ModelFiles, Storage, stored

FILE_NAME = "model.gguf"
# Weights of an embedding coded at once, so that the temporaries are small beside the embedding.
_CODED_AT_ONCE = 2**22


def prepared(files: ModelFiles, recipe: Recipe) -> ModelFiles:
    """The model on its way into GGUF: what is measured is what the file will hold. Raises FormatRefused."""
    config = files.config
    if reason := contract.model_refusal(config.to_dict()):
        raise FormatRefused(reason, field="format")
    grid = quantizer(recipe)
    if grid is not None and (refusal := contract.grid_refusal(grid)):
        raise FormatRefused(refusal[1], field=refusal[0])
    assert not isinstance(grid, EightBit), "it is refused"
    if grid is not None and (reason := contract.embedding_refusal(grid, config.hidden_size)):
        raise FormatRefused(reason, field="format")
    coded: frozenset[str] = frozenset()
    code = None
    if (kind := contract.embedding_type(grid, config.hidden_size)) is not None:
        code = Embeddings(files, GGMLQuantizationType[kind])
        coded = code.names
    return files.stored_by(Storage(scale_dtype=torch.float16, wide=True, coded=coded, code=code))


class Embeddings:
    """Codes a model's embeddings and head in one type; called, it gives a tensor as it is read back.

    What enters the head was multiplied by the last norm's weights, so an error counts as much as their squares say. On
    the packaged model, whose head is tied, that took a fifth off what 4 bits cost.
    """

    def __init__(self, files: ModelFiles, kind: GGMLQuantizationType) -> None:
        names = Names(files.config)
        self.kind = kind
        self.names = frozenset(name for name in files.names if names.is_embedding(name))
        # A tied head is the embedding, which is then the only one.
        self._head = next((name for name in self.names if names(name) == "output.weight"), None) or min(self.names)
        [norm] = [name for name in files.names if names(name) == "output_norm.weight"]
        squares_I = files.tensor(norm).float().square()
        self._importance_I = squares_I / squares_I.mean()

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        return torch.from_numpy(dequantize(self.rows(name, tensor), self.kind))

    def rows(self, name: str, tensor: Tensor) -> Bytes:
        """The tensor's rows as ggml's blocks."""
        step = max(1, _CODED_AT_ONCE // tensor.shape[-1])
        importance_I = self._importance_I if name == self._head else None
        return np.concatenate([self._coded(part.float(), importance_I) for part in torch.split(tensor, step)])

    def _coded(self, weight_OI: Tensor, importance_I: Tensor | None) -> Bytes:
        if self.kind is GGMLQuantizationType.Q8_0:
            coded: Bytes = quantize(weight_OI.numpy(), self.kind)
            return coded
        return packed(nearest(weight_OI, self._grid, torch.float16, "the embeddings", importance_I, wide=True))

    @property
    def _grid(self) -> Rtn:
        """What the type's codes lie on."""
        for bits, kind in contract.K_TYPES.items():
            if kind == self.kind.name:
                return Rtn.model_validate({"bits": bits, "k_quant": True}).for_width(SUPER_BLOCK)
        [(bits, symmetric)] = [grid for grid, kind in contract.GRID_TYPES.items() if kind == self.kind.name]
        return Rtn.model_validate({"bits": bits, "symmetric": symmetric, "group_size": contract.BLOCK_WEIGHTS})


class Names:
    """transformers' parameter names in llama.cpp's."""

    def __init__(self, config: Any) -> None:
        self.architecture = contract.ARCHITECTURES[config.model_type]
        [architecture] = [key for key, name in MODEL_ARCH_NAMES.items() if name == self.architecture]
        self._map = get_tensor_name_map(architecture, config.num_hidden_layers)

    def __call__(self, name: str) -> str:
        module, _, leaf = name.rpartition(".")
        found = self._map.get_name(module)
        assert found is not None, f"llama.cpp has no name for {name}"
        return f"{found}.{leaf}"

    def is_embedding(self, name: str) -> bool:
        return self(name) in ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class _Entry:
    """One tensor of the file; `shape` is numpy's, of weights."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: Callable[[], NDArray[Any]]

    @property
    def size_bytes(self) -> int:
        width = self.shape[-1]
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        if self.kind.name in contract.BLOCKS:
            weights, size = contract.BLOCKS[self.kind.name]
            return rows * (width // weights) * size
        return rows * width * (4 if self.kind is GGMLQuantizationType.F32 else 2)


class Writable(Protocol):
    """What is asked of a model: CompressedModel, and a model that nothing was done to."""

    config: Any
    names: tuple[str, ...]
    shapes: dict[str, torch.Size]
    storage_dtype: torch.dtype
    linear_names: tuple[str, ...]
    architecture: Architecture
    source: ModelFiles

    def quantized(self, linear_name: str, /) -> StoredLinear | None: ...
    def tensor(self, name: str) -> Tensor: ...
    def uncoded(self, name: str) -> Tensor: ...


class Uncompressed:
    """A model in its 16-bit type: the base beside which an artifact's speed is measured."""

    def __init__(self, files: ModelFiles) -> None:
        skeleton = Skeleton(files.config, files.storage_dtype)
        self.config = files.config
        self.names = files.names
        self.shapes = skeleton.parameter_shapes()
        self.storage_dtype = files.storage_dtype
        self.linear_names = tuple(skeleton.all_linear_names())
        self.architecture = skeleton.architecture
        self.source = files.stored_by(Storage())

    def quantized(self, _linear_name: str, /) -> None:
        return None

    def tensor(self, name: str) -> Tensor:
        return stored(self.source, name)

    def uncoded(self, name: str) -> Tensor:
        return self.source.tensor(name)


def write(model: Writable, directory: Path) -> int:
    """`model.gguf`; returns its bytes. One tensor is in memory at a time. Raises FormatRefused."""
    names = Names(model.config)
    entries = list(_entries(model, names))
    path = directory / FILE_NAME
    unfinished = path.with_suffix(".partial")
    writer = GGUFWriter(unfinished, names.architecture)
    write_metadata(writer, model.config, model.source, names.architecture)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(_file_type(entries))
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.size_bytes, entry.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        writer.write_tensor_data(entry.data())
    writer.close()
    synchronize(unfinished)
    unfinished.rename(path)
    # The engine's user need not be who comes for it.
    path.chmod(0o644)
    synchronize(directory)
    return path.stat().st_size


def _entries(model: Writable, names: Names) -> Iterator[_Entry]:
    oriented = model.architecture.oriented
    storage = GGMLQuantizationType.F16 if model.storage_dtype == torch.float16 else GGMLQuantizationType.BF16
    for name in model.names:
        stored_name = names(name)
        shape = tuple(model.shapes[name])
        order = _row_order(model.config, names.architecture, stored_name)
        linear_name = name.removesuffix(".weight")
        is_linear = linear_name in model.linear_names and name != linear_name
        if is_linear:
            shape = tuple(oriented(torch.empty(shape, device="meta")).shape)
            if (linear := model.quantized(linear_name)) is not None:
                kind = _grid_kind(linear, linear_name)
                yield _Entry(stored_name, kind, shape, _packed_in_order(model, linear_name, order))
                continue
            kind = storage
        elif name in model.source.storage.coded:
            code = model.source.storage.code
            assert isinstance(code, Embeddings), "prepared() put it there"
            yield _Entry(stored_name, code.kind, shape, partial(_coded, model, name, code))
            continue
        elif names.is_embedding(name):
            kind = storage
        else:
            kind = GGMLQuantizationType.F32
        yield _Entry(stored_name, kind, shape, _dense_in_order(model, name, is_linear, kind, order))
    if (factors := rope_factors(model.config)) is not None:
        yield _Entry("rope_freqs.weight", GGMLQuantizationType.F32, tuple(factors.shape), factors.numpy)


def _packed_in_order(model: Writable, linear_name: str, order: Sequence[int] | None) -> Callable[[], Bytes]:
    def data() -> Bytes:
        linear = model.quantized(linear_name)
        assert isinstance(linear, GridLinear), "its kind was looked at"
        rows = packed(linear)
        return rows if order is None else rows[order]

    return data


def _coded(model: Writable, name: str, code: "Embeddings") -> Bytes:
    return code.rows(name, model.uncoded(name))


def _dense_in_order(
    model: Writable, name: str, is_linear: bool, kind: GGMLQuantizationType, order: Sequence[int] | None
) -> Callable[[], NDArray[Any]]:
    def data() -> NDArray[Any]:
        value = model.tensor(name)
        if is_linear:
            value = model.architecture.oriented(value)
        values: NDArray[Any]
        if kind is GGMLQuantizationType.BF16:
            # numpy has no bfloat16: its two bytes travel as an integer.
            values = value.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
        else:
            dtype = torch.float16 if kind is GGMLQuantizationType.F16 else torch.float32
            values = value.to(dtype).contiguous().numpy()
        return values if order is None else values[order]

    return data


def _grid_kind(linear: StoredLinear, name: str) -> GGMLQuantizationType:
    if isinstance(linear, KQuantLinear):
        return GGMLQuantizationType[contract.K_TYPES[linear.bits]]
    grid = linear if isinstance(linear, QuantizedLinear) and linear.wide else None
    kind = contract.GRID_TYPES.get((grid.bits, grid.symmetric)) if grid else None
    if grid is None or kind is None or grid.group_size != contract.BLOCK_WEIGHTS:
        raise FormatRefused(f"GGUF has no type that holds the codes of {name}; see the recipe's grid.", field="format")
    return GGMLQuantizationType[kind]


def _row_order(config: Any, architecture: str, gguf_name: str) -> Sequence[int] | None:
    """llama.cpp interleaves the two halves of each rotary head of llama's q and k; transformers keeps them apart."""
    if architecture != "llama" or not (".attn_q." in gguf_name or ".attn_k." in gguf_name):
        return None
    heads = config.num_attention_heads if ".attn_q." in gguf_name else config.num_key_value_heads
    width = head_dim(config)
    order: list[int] = np.arange(heads * width).reshape(heads, 2, width // 2).swapaxes(1, 2).ravel().tolist()
    return order


def _file_type(entries: Sequence[_Entry]) -> int:
    """llama.cpp's name for such a file: the type of most weights."""
    weights: dict[str, int] = {}
    for entry in entries:
        if entry.name.startswith("blk.") and entry.kind is not GGMLQuantizationType.F32:
            weights[entry.kind.name] = weights.get(entry.kind.name, 0) + int(np.prod(entry.shape, dtype=np.int64))
    most = max(weights, key=weights.__getitem__)
    # llama.cpp calls mixtures of K-quants small, medium and large, and 2 and 6 bits nothing.
    name = f"{most}_{'S' if len(weights) == 1 else 'M'}" if most in ("Q3_K", "Q4_K", "Q5_K") else most
    return int(LlamaFileType[f"MOSTLY_{name}"])
