"""The forms of a linear that only the native format holds.

Shapes: O out_features, I in_features, R rank, K values of a codebook, S weights of a row that are kept beside it,
G groups along the input, W weak columns.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paredown.engine.quantized import KQuantLinear, QuantizedLinear
from paredown.engine.stored import StoredLinear


@dataclass(frozen=True, eq=False)
class FactoredLinear(StoredLinear):
    """A product of two thin matrices in the storage dtype."""

    kind: ClassVar[str] = "factors"

    left_OR: Tensor
    right_RI: Tensor

    def dequantized(self) -> Tensor:
        """The product, rounded once."""
        return (self.left_OR.float() @ self.right_RI.float()).to(self.left_OR.dtype)

    @property
    def stored_bits(self) -> float:
        weights = self.left_OR.shape[0] * self.right_RI.shape[1]
        return self.left_OR.element_size() * 8 * (self.left_OR.numel() + self.right_RI.numel()) / weights


# Weights looked up at once: an index takes eight bytes for each.
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class CodebookLinear(StoredLinear):
    """Codes (uint8) that number the values of each row's own codebook, and some weights that are kept beside them.

    `positions_OS` (int32) says where in the row the kept ones stand; their codes count for nothing.
    """

    kind: ClassVar[str] = "codebook"

    codes_OI: Tensor
    codebooks_OK: Tensor
    positions_OS: Tensor
    kept_OS: Tensor
    bits: int

    def dequantized(self) -> Tensor:
        rows = max(1, _CHUNK // self.codes_OI.shape[1])
        parts = zip(torch.split(self.codebooks_OK, rows), torch.split(self.codes_OI, rows), strict=True)
        weight_OI = torch.cat([codebooks_OK.gather(1, codes_OI.long()) for codebooks_OK, codes_OI in parts])
        return weight_OI.scatter_(1, self.positions_OS.long(), self.kept_OS)

    @property
    def stored_bits(self) -> float:
        beside = self.codebooks_OK.shape[1] * 16 + self.positions_OS.shape[1] * (
            16 + position_bits(self.codes_OI.shape[1])
        )
        return self.bits + beside / self.codes_OI.shape[1]


def position_bits(in_features: int) -> int:
    """Bits in which a position in a row is stored."""
    return 16 if in_features <= 2**16 else 32


@dataclass(frozen=True, eq=False)
class MixedLinear(StoredLinear):
    """Integers on a grid, and some columns of the weight in the storage dtype in place of what their codes say.

    `columns_W` (int32) are these columns' numbers, in rising order.
    """

    kind: ClassVar[str] = "mixed"

    codes_OI: Tensor
    scales_OG: Tensor
    zeros_OG: Tensor | None
    columns_W: Tensor
    weak_OW: Tensor
    bits: int
    group_size: int | None
    symmetric: bool

    @property
    def grid(self) -> QuantizedLinear:
        """All columns on the grid."""
        return QuantizedLinear(self.codes_OI, self.scales_OG, self.zeros_OG, self.bits, self.group_size, self.symmetric)

    def dequantized(self) -> Tensor:
        return self.grid.dequantized().index_copy_(1, self.columns_W.long(), self.weak_OW)

    @property
    def stored_bits(self) -> float:
        return self.grid.stored_bits + 16 * self.weak_OW.shape[1] / self.codes_OI.shape[1]


def with_columns(grid: QuantizedLinear, columns_W: Tensor, weak_OW: Tensor) -> MixedLinear:
    """A linear on a grid but for some columns."""
    return MixedLinear(
        grid.codes_OI, grid.scales_OG, grid.zeros_OG, columns_W, weak_OW, grid.bits, grid.group_size, grid.symmetric
    )


FORMS: dict[str, type[StoredLinear]] = {
    form.kind: form for form in (QuantizedLinear, KQuantLinear, FactoredLinear, CodebookLinear, MixedLinear)
}
