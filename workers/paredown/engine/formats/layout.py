"""How the native format lays a linear out: what config.json says of it, and which tensors stand for it.

docs/formats.md describes this for readers that are not ours; what is written here is version 1 of it.
Shapes: O out_features, I in_features, G groups along the input, R rank, K values of a codebook, S weights of
a row that are kept.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

from paredown.contracts.recipes.quantization import Bits
from paredown.engine.compact import CodebookLinear, FactoredLinear, MixedLinear, position_bits, with_columns
from paredown.engine.formats.packing import pack, packed_bytes, unpack
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.stored import StoredLinear

VERSION = 1
FORMAT = "pare-native"
# Types of a tensor in a file, as safetensors calls them.
_HALF = ("BF16", "F16")
_BYTES = ("U8",)


@dataclass(frozen=True)
class Part:
    """A tensor that stands for a linear: its types, any of them, and its shape."""

    kinds: tuple[str, ...]
    shape: tuple[int, ...]


def group_count(columns: int, size: int) -> int:
    """Groups of so many inputs in a row. Raises ValueError."""
    if columns % size:
        raise ValueError(f"groups of {size} do not divide a row of {columns}")
    return columns // size


class _Layout(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GridLayout(_Layout):
    """Integer codes. Where the grid is symmetric they are stored with 2^(bits-1) added, so that all are positive."""

    kind: Literal["grid"] = "grid"
    bits: Bits
    group_size: int | None = Field(gt=0)
    symmetric: bool

    def parts(self, rows: int, columns: int) -> dict[str, Part]:
        groups = group_count(columns, self.group_size or columns)
        parts = {
            "codes": Part(_BYTES, (rows, packed_bytes(columns, self.bits))),
            "scales": Part(_HALF, (rows, groups)),
        }
        return parts if self.symmetric else parts | {"zeros": Part(_BYTES, (rows, packed_bytes(groups, self.bits)))}

    def encode(self, linear: QuantizedLinear) -> dict[str, Tensor]:
        codes_OI = linear.codes_OI.to(torch.int16) + self._shift
        tensors = {"codes": pack(codes_OI.to(torch.uint8), self.bits), "scales": linear.scales_OG}
        return tensors if linear.zeros_OG is None else tensors | {"zeros": pack(linear.zeros_OG, self.bits)}

    def decode(self, tensors: dict[str, Tensor], columns: int) -> QuantizedLinear:
        codes_OI = unpack(tensors["codes"], self.bits, columns)
        if self.symmetric:
            codes_OI = (codes_OI.to(torch.int16) - self._shift).to(torch.int8)
        scales_OG = tensors["scales"]
        zeros_OG = None if self.symmetric else unpack(tensors["zeros"], self.bits, scales_OG.shape[1])
        return QuantizedLinear(codes_OI, scales_OG, zeros_OG, self.bits, self.group_size, self.symmetric)

    @property
    def _shift(self) -> int:
        return 2 ** (self.bits - 1) if self.symmetric else 0


class FactorsLayout(_Layout):
    """The weight is left @ right."""

    kind: Literal["factors"] = "factors"
    rank: int = Field(gt=0)

    def parts(self, rows: int, columns: int) -> dict[str, Part]:
        return {"left": Part(_HALF, (rows, self.rank)), "right": Part(_HALF, (self.rank, columns))}

    def encode(self, linear: FactoredLinear) -> dict[str, Tensor]:
        return {"left": linear.left_OR, "right": linear.right_RI}

    def decode(self, tensors: dict[str, Tensor], _columns: int) -> FactoredLinear:
        return FactoredLinear(tensors["left"], tensors["right"])


class CodebookLayout(_Layout):
    """Codes number the values of each row's codebook; `kept` weights of a row stand in place of what theirs say."""

    kind: Literal["codebook"] = "codebook"
    bits: Literal[2, 3, 4]
    kept: int = Field(ge=0)

    def parts(self, rows: int, columns: int) -> dict[str, Part]:
        parts = {
            "codes": Part(_BYTES, (rows, packed_bytes(columns, self.bits))),
            "codebooks": Part(_HALF, (rows, 2**self.bits)),
        }
        if self.kept:
            position = ("U16",) if position_bits(columns) == 16 else ("I32",)
            parts |= {"positions": Part(position, (rows, self.kept)), "kept": Part(_HALF, (rows, self.kept))}
        return parts

    def encode(self, linear: CodebookLinear) -> dict[str, Tensor]:
        tensors = {"codes": pack(linear.codes_OI, self.bits), "codebooks": linear.codebooks_OK}
        if self.kept:
            narrow = torch.uint16 if position_bits(linear.codes_OI.shape[1]) == 16 else torch.int32
            tensors |= {"positions": linear.positions_OS.to(narrow), "kept": linear.kept_OS}
        return tensors

    def decode(self, tensors: dict[str, Tensor], columns: int) -> CodebookLinear:
        codebooks_OK = tensors["codebooks"]
        codes_OI = unpack(tensors["codes"], self.bits, columns)
        positions_OS = (
            tensors["positions"].to(torch.int32) if self.kept else codebooks_OK.new_empty(len(codes_OI), 0).int()
        )
        if self.kept and not 0 <= int(positions_OS.min()) <= int(positions_OS.max()) < columns:
            raise ValueError(f"positions lie beyond a row of {columns}")
        kept_OS = tensors["kept"] if self.kept else codebooks_OK.new_empty(len(codes_OI), 0)
        return CodebookLinear(codes_OI, codebooks_OK, positions_OS, kept_OS, self.bits)


class MixedLayout(_Layout):
    """A grid, and `weak` columns of the weight in 16 bit, in place of what their codes say."""

    kind: Literal["mixed"] = "mixed"
    weak: int = Field(ge=0)
    grid: GridLayout

    def parts(self, rows: int, columns: int) -> dict[str, Part]:
        weak = {"columns": Part(("I32",), (self.weak,)), "weak": Part(_HALF, (rows, self.weak))}
        return self.grid.parts(rows, columns) | (weak if self.weak else {})

    def encode(self, linear: MixedLinear) -> dict[str, Tensor]:
        weak = {"columns": linear.columns_W, "weak": linear.weak_OW}
        return self.grid.encode(linear.grid) | (weak if self.weak else {})

    def decode(self, tensors: dict[str, Tensor], columns: int) -> MixedLinear:
        grid = self.grid.decode(tensors, columns)
        columns_W = tensors["columns"] if self.weak else torch.empty(0, dtype=torch.int32)
        if self.weak and not 0 <= int(columns_W.min()) <= int(columns_W.max()) < columns:
            raise ValueError(f"columns lie beyond a row of {columns}")
        weak_OW = tensors["weak"] if self.weak else grid.scales_OG.new_empty(len(grid.codes_OI), 0)
        return with_columns(grid, columns_W, weak_OW)


AnyLayout = GridLayout | FactorsLayout | CodebookLayout | MixedLayout
LinearLayout = Annotated[AnyLayout, Field(discriminator="kind")]


class Layout(_Layout):
    """The block `quantization_config` of config.json. A linear that it does not name is stored dense.

    It has no `quant_method`: transformers then refuses it, where of one that it does not know it would only warn, and
    draw random weights.
    """

    format: Literal["pare-native"] = "pare-native"
    version: Literal[1] = 1
    loader: str = "paredown.engine.formats.native.load"
    linears: dict[str, LinearLayout]


LAYOUT: TypeAdapter[Layout] = TypeAdapter(Layout)


def layout_of(linear: StoredLinear) -> tuple[AnyLayout, dict[str, Tensor]]:
    """What config.json says of a linear, and its tensors."""
    match linear:
        case QuantizedLinear():
            grid = _grid_of(linear)
            return grid, grid.encode(linear)
        case MixedLinear():
            mixed = MixedLayout(weak=linear.weak_OW.shape[1], grid=_grid_of(linear.grid))
            return mixed, mixed.encode(linear)
        case FactoredLinear():
            factors = FactorsLayout(rank=linear.left_OR.shape[1])
            return factors, factors.encode(linear)
        case CodebookLinear():
            codebook = CodebookLayout.model_validate({"bits": linear.bits, "kept": linear.kept_OS.shape[1]})
            return codebook, codebook.encode(linear)
    raise AssertionError(f"no layout for {linear.kind}")


def _grid_of(linear: QuantizedLinear) -> GridLayout:
    return GridLayout.model_validate(
        {"bits": linear.bits, "group_size": linear.group_size, "symmetric": linear.symmetric}
    )
