"""The checkpoint layouts of AutoGPTQ (GPTQModel) and AutoAWQ: 4-bit models as most of the world exchanges them.

Codes lie in 32-bit words, lowest bits first and without gaps, so that 3 bits put 32 codes into three words. gptq packs
along the inputs, awq along the outputs and eight of them in the order 0, 2, 4, 6, 1, 3, 5, 7. Codes are written as the
method left them. Scales are float16, and readers multiply in it: the method is told (`Storage`), so that what is
measured is what the file gives.
Shapes: O out_features, I in_features, G groups along the input, W words.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from paredown.contracts import checkpoints as contract
from paredown.contracts.families import ModelShape
from paredown.contracts.job import Format
from paredown.contracts.recipes import Recipe
from paredown.engine.errors import FormatRefused
from paredown.engine.formats.files import write_config, write_weights
from paredown.engine.formats.layout import Part, group_count
from paredown.engine.formats.packing import pack, unpack
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelFiles, Storage

# The output that lies at each place of a word in awq, lowest bits first, and where each output lies.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_WORDS = ("I32",)
# -1: a row has one scale.
_GroupSize = Literal[-1] | Annotated[int, Field(gt=0)]


def prepared(files: ModelFiles, file_format: Format, shape: ModelShape, recipe: Recipe) -> ModelFiles:
    """The model on its way into a layout: what is measured is what the file will hold. Raises FormatRefused."""
    if refusal := contract.refusal(file_format, shape, recipe):
        raise FormatRefused(refusal[1], field=refusal[0])
    return files.stored_by(Storage(scale_dtype=torch.float16))


class _Block(BaseModel):
    """The block `quantization_config` of config.json, and how it lays out each linear that is not dense."""

    model_config = ConfigDict(frozen=True)

    group_size: _GroupSize

    @property
    def kind(self) -> str:
        return "grid"

    def _groups(self, columns: int) -> int:
        return group_count(columns, columns if self.group_size == -1 else self.group_size)


class GptqBlock(_Block):
    """`checkpoint_format` gptq stores each zero point less one, as AutoGPTQ always did; gptq_v2 as it is.

    The zero points of a grid that is not symmetric may be 0, which the first cannot say: readers add one in the packed
    words, and it would carry into the next. So the first is for symmetric grids alone.
    """

    quant_method: Literal["gptq"] = "gptq"
    bits: Literal[2, 3, 4, 8]
    sym: bool
    desc_act: Literal[False] = False
    checkpoint_format: Literal["gptq", "gptq_v2"]
    # The same ones in each block; None: all.
    modules_in_block_to_quantize: list[list[str]] | None = None

    @classmethod
    def of(cls, linear: QuantizedLinear, skipped: list[str], quantized: list[str]) -> "GptqBlock":
        # Without the prefix of their block.
        modules = list(dict.fromkeys(_within(name) for name in quantized)) if skipped else None
        return cls(
            bits=linear.bits,
            group_size=linear.group_size or -1,
            sym=linear.symmetric,
            checkpoint_format="gptq" if linear.symmetric else "gptq_v2",
            modules_in_block_to_quantize=modules and [modules],
        )

    @property
    def _less(self) -> int:
        return 1 if self.checkpoint_format == "gptq" else 0

    def parts(self, rows: int, columns: int) -> dict[str, Part]:
        groups = self._groups(columns)
        return {
            "qweight": Part(_WORDS, (columns * self.bits // 32, rows)),
            "qzeros": Part(_WORDS, (groups, rows * self.bits // 32)),
            "scales": Part(("F16",), (groups, rows)),
            "g_idx": Part(_WORDS, (columns,)),
        }

    def encode(self, linear: QuantizedLinear) -> dict[str, Tensor]:
        codes_OI, zeros_OG = _unsigned(linear)
        columns = codes_OI.shape[1]
        return {
            "qweight": _words(codes_OI, self.bits).T,
            "qzeros": _words(zeros_OG.T - self._less, self.bits),
            "scales": linear.scales_OG.T,
            "g_idx": torch.arange(columns, dtype=torch.int32) // (columns // self._groups(columns)),
        }

    def decode(self, tensors: dict[str, Tensor], columns: int) -> QuantizedLinear:
        scales_GO = tensors["scales"]
        groups, rows = scales_GO.shape
        if not torch.equal(tensors["g_idx"].long(), torch.arange(columns) // (columns // groups)):
            raise ValueError("g_idx puts inputs into other groups than their neighbours'")
        codes_OI = _codes(tensors["qweight"].T, self.bits, columns)
        zeros_GO = _codes(tensors["qzeros"], self.bits, rows) + self._less
        return _linear(codes_OI, scales_GO, zeros_GO, self)


class AwqBlock(_Block):
    """AutoAWQ's gemm layout. A symmetric grid is written with the zero point 8: readers want zero points."""

    quant_method: Literal["awq"] = "awq"
    bits: Literal[4] = 4
    zero_point: Literal[True] = True
    version: Literal["gemm"] = "gemm"
    modules_to_not_convert: list[str] | None = None

    @classmethod
    def of(cls, linear: QuantizedLinear, skipped: list[str], _quantized: list[str]) -> "AwqBlock":
        return cls(group_size=linear.group_size or -1, modules_to_not_convert=skipped or None)

    def parts(self, rows: int, columns: int) -> dict[str, Part]:
        groups = self._groups(columns)
        return {
            "qweight": Part(_WORDS, (columns, rows // 8)),
            "qzeros": Part(_WORDS, (groups, rows // 8)),
            "scales": Part(("F16",), (groups, rows)),
        }

    def encode(self, linear: QuantizedLinear) -> dict[str, Tensor]:
        codes_OI, zeros_OG = _unsigned(linear)
        return {
            "qweight": _words(_by_eights(codes_OI.T, AWQ_ORDER), self.bits),
            "qzeros": _words(_by_eights(zeros_OG.T, AWQ_ORDER), self.bits),
            "scales": linear.scales_OG.T,
        }

    def decode(self, tensors: dict[str, Tensor], _columns: int) -> QuantizedLinear:
        rows = tensors["scales"].shape[1]
        codes_IO, zeros_GO = (
            _by_eights(_codes(tensors[leaf], self.bits, rows), _AWQ_PLACES) for leaf in ("qweight", "qzeros")
        )
        return _linear(codes_IO.T.contiguous(), tensors["scales"], zeros_GO, self)


Block = GptqBlock | AwqBlock
# By quant_method.
BLOCKS: dict[str, type[GptqBlock] | type[AwqBlock]] = {"gptq": GptqBlock, "awq": AwqBlock}


def linears(block: Block, stored: Iterable[str]) -> dict[str, Block]:
    """The linears that are not dense among the tensors of the files: config.json need not name them."""
    return {name.removesuffix(".qweight"): block for name in stored if name.endswith(".qweight")}


def write_gptq(model: CompressedModel, directory: Path) -> int:
    """Weight files and config.json; returns the bytes of the weight files. Raises FormatRefused."""
    return _write(model, directory, GptqBlock.of)


def write_awq(model: CompressedModel, directory: Path) -> int:
    """Weight files and config.json; returns the bytes of the weight files. Raises FormatRefused."""
    return _write(model, directory, AwqBlock.of)


def _write(
    model: CompressedModel, directory: Path, block_of: Callable[[QuantizedLinear, list[str], list[str]], Block]
) -> int:
    quantized = [name for name in model.linear_names if model.quantized(name) is not None]
    skipped = [name for name in model.linear_names if name not in set(quantized)]
    first = model.quantized(quantized[0]) if quantized else None
    if not isinstance(first, QuantizedLinear):
        raise FormatRefused("No linear layer is on a grid, so the file has nothing to hold.", field="format")
    for name in quantized:
        rows, columns = model.shapes[f"{name}.weight"]
        if rows % contract.MULTIPLE or columns % contract.MULTIPLE:
            raise FormatRefused(
                f"{name} has {rows} × {columns} weights, and readers take multiples of {contract.MULTIPLE}; use format "
                "compressed-tensors.",
                field="format",
            )
    block = block_of(first, skipped, quantized)
    size_bytes = write_weights(_tensors(model, block, frozenset(quantized)), directory)
    # In float16, as all checkpoints of these layouts are: in bfloat16 a reader would round the scales.
    described: dict[str, Any] = block.model_dump(mode="json", exclude_none=True)
    write_config(model.config, "float16", directory, quantization_config=described)
    return size_bytes


def _tensors(model: CompressedModel, block: Block, quantized: frozenset[str]) -> Iterator[tuple[str, Tensor]]:
    for name in model.names:
        linear_name = name.removesuffix(".weight")
        if linear_name == name or linear_name not in quantized:
            yield model.stored_name(name), model.stored(name)
            continue
        linear = model.quantized(linear_name)
        assert isinstance(linear, QuantizedLinear)
        for leaf, tensor in block.encode(linear).items():
            yield model.stored_name(f"{linear_name}.{leaf}"), tensor


def _within(name: str) -> str:
    """model.layers.3.mlp.up_proj → mlp.up_proj"""
    parts = name.split(".")
    [index] = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[index + 1 :])


def _unsigned(linear: QuantizedLinear) -> tuple[Tensor, Tensor]:
    """codes_OI and zeros_OG from 0 up, as int16."""
    if linear.zeros_OG is not None:
        return linear.codes_OI.to(torch.int16), linear.zeros_OG.to(torch.int16)
    half = 1 << (linear.bits - 1)
    return linear.codes_OI.to(torch.int16) + half, torch.full(linear.scales_OG.shape, half, dtype=torch.int16)


def _words(codes_RC: Tensor, bits: int) -> Tensor:
    """The codes of each row in 32-bit words."""
    return pack(codes_RC.to(torch.uint8).contiguous(), bits).contiguous().view(torch.int32)


def _codes(words_RW: Tensor, bits: int, count: int) -> Tensor:
    return unpack(words_RW.contiguous().view(torch.uint8), bits, count)


def _by_eights(codes_RC: Tensor, order: tuple[int, ...]) -> Tensor:
    """Each eight columns in an order of theirs."""
    return codes_RC.reshape(len(codes_RC), -1, 8)[:, :, list(order)].flatten(1)


def _linear(codes_OI: Tensor, scales_GO: Tensor, zeros_GO: Tensor, block: Block) -> QuantizedLinear:
    size = None if block.group_size == -1 else block.group_size
    return QuantizedLinear(
        codes_OI, scales_GO.T.contiguous(), zeros_GO.T.contiguous(), block.bits, size, symmetric=False
    )
