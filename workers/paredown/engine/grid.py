"""The uniform integer grid that weight-only quantizers share: scales, zero points, rounding.

Scales are rounded to the storage dtype before any code is computed, and a code's value is computed as the artifact's
reader computes it, so that what is measured here is what the file holds.
Shapes: O out_features, I in_features, G groups, S weights of a group.
Units: shrink is a fraction of a group's range.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.contracts.recipes import WeightGrid
from paredown.engine.errors import GroupSizeUnfit
from paredown.engine.quantized import QuantizedLinear

# Shrink factors tried for a group's range. Below a quarter no 3-bit group of a trained model was ever best.
_SHRINKS = tuple(1 - 0.75 * step / 40 for step in range(41))
# Weights searched at once: small enough for the temporaries to stay in a core's cache, large enough to use all cores.
_SEARCH_CHUNK = 2**18


@dataclass(frozen=True, eq=False)
class Grid:
    """Groups' scales, in the storage dtype, and zero points: integers in float32, None where the grid is symmetric."""

    scales_OG: Tensor
    zeros_OG: Tensor | None
    low: int
    high: int

    def codes(self, weight_OGS: Tensor) -> Tensor:
        """The nearest code of each weight, as float32."""
        codes_OGS = weight_OGS / self.scales_OG.float().unsqueeze(-1)
        if self.zeros_OG is not None:
            codes_OGS += self.zeros_OG.unsqueeze(-1)
        return codes_OGS.round_().clamp_(self.low, self.high)

    def values(self, codes_OGS: Tensor) -> Tensor:
        """What codes stand for, in float32 but with the storage dtype's rounding."""
        if self.zeros_OG is not None:
            codes_OGS = codes_OGS - self.zeros_OG.unsqueeze(-1)
        # A code and a scale have few enough digits for their float32 product to be exact: one rounding, as in the file.
        return (codes_OGS * self.scales_OG.float().unsqueeze(-1)).to(self.scales_OG.dtype).float()


def code_range(config: WeightGrid) -> tuple[int, int]:
    """Smallest and largest code."""
    half = 2 ** (config.bits - 1)
    return (-half, half - 1) if config.symmetric else (0, 2 * half - 1)


def group_width(in_features: int, config: WeightGrid, name: str) -> int:
    """Weights of one group. Raises GroupSizeUnfit."""
    width = config.group_size or in_features
    if in_features % width:
        raise GroupSizeUnfit(
            f"group_size {width} does not divide the {in_features} input channels of {name}; choose a divisor, or "
            "leave it empty for one scale per row.",
            field="group_size",
        )
    return width


def fit_grid(weight_OGS: Tensor, config: WeightGrid, storage_dtype: torch.dtype) -> Grid:
    """The grid of each group, by the recipe's `scale_search`."""
    low, high = code_range(config)
    if config.scale_search == "min_max":
        return _grid(*_limits(weight_OGS, config.symmetric), low, high, storage_dtype, config.symmetric)
    parts = [
        _least_squares(part_OGS, low, high, storage_dtype, config.symmetric)
        for part_OGS in torch.split(weight_OGS, max(1, _SEARCH_CHUNK // weight_OGS[0].numel()))
    ]
    scales_OG = torch.cat([part.scales_OG for part in parts])
    zeros = [part.zeros_OG for part in parts if part.zeros_OG is not None]
    return Grid(scales_OG, torch.cat(zeros) if zeros else None, low, high)


def quantized_linear(codes_OI: Tensor, grid: Grid, config: WeightGrid) -> QuantizedLinear:
    """Codes of a whole linear in their stored types."""
    kind = torch.int8 if config.symmetric else torch.uint8
    zeros_OG = None if grid.zeros_OG is None else grid.zeros_OG.to(kind)
    return QuantizedLinear(
        codes_OI.to(kind), grid.scales_OG, zeros_OG, config.bits, config.group_size, config.symmetric
    )


def _limits(weight_OGS: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Ends of each group's range; zero always lies within."""
    if symmetric:
        largest_OG = weight_OGS.abs().amax(-1)
        return -largest_OG, largest_OG
    return weight_OGS.amin(-1).clamp(max=0), weight_OGS.amax(-1).clamp(min=0)


def _grid(
    lowest_OG: Tensor, highest_OG: Tensor, low: int, high: int, storage_dtype: torch.dtype, symmetric: bool
) -> Grid:
    scales_OG = ((highest_OG - lowest_OG) / (high - low)).to(storage_dtype)
    # A group of zeros, or one so small that its scale underflows, is stored as zeros on any scale.
    scales_OG = torch.where(scales_OG == 0, torch.ones_like(scales_OG), scales_OG)
    if symmetric:
        return Grid(scales_OG, None, low, high)
    zeros_OG = (low - lowest_OG / scales_OG.float()).round_().clamp_(low, high)
    return Grid(scales_OG, zeros_OG, low, high)


def _least_squares(weight_OGS: Tensor, low: int, high: int, storage_dtype: torch.dtype, symmetric: bool) -> Grid:
    """Of all shrunken ranges the one whose grid has the least squared error; the wider one where two are equal."""
    lowest_OG, highest_OG = _limits(weight_OGS, symmetric)
    best = _grid(lowest_OG, highest_OG, low, high, storage_dtype, symmetric)
    best_error_OG = _squared_error(weight_OGS, best)
    for shrink in _SHRINKS[1:]:
        grid = _grid(lowest_OG * shrink, highest_OG * shrink, low, high, storage_dtype, symmetric)
        error_OG = _squared_error(weight_OGS, grid)
        better_OG = error_OG < best_error_OG
        best_error_OG = torch.where(better_OG, error_OG, best_error_OG)
        zeros_OG = None
        if grid.zeros_OG is not None and best.zeros_OG is not None:
            zeros_OG = torch.where(better_OG, grid.zeros_OG, best.zeros_OG)
        best = Grid(torch.where(better_OG, grid.scales_OG, best.scales_OG), zeros_OG, low, high)
    return best


def _squared_error(weight_OGS: Tensor, grid: Grid) -> Tensor:
    return grid.values(grid.codes(weight_OGS)).sub_(weight_OGS).square_().sum(-1)
