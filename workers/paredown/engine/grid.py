"""The uniform integer grid that weight-only quantizers share: scales, zero points, rounding.

Scales are rounded to the storage dtype before any code is computed, and a code's value is computed as the artifact's
reader computes it, so that what is measured here is what the file holds.
Shapes: O out_features, I in_features, G groups, S weights of a group.
Units: a width is a share of a group's range.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.contracts.recipes import UniformGrid, WeightGrid
from paredown.engine.activations import ActivationGrid
from paredown.engine.errors import GroupSizeUnfit
from paredown.engine.quantized import QuantizedLinear

# Widths tried, as shares of a group's range, then those this far to either side of the best, and how often the scale is
# then refined. A little over the whole range is among them because a symmetric grid reaches less far up than down; on
# trained models none below two fifths won.
_WIDTHS = tuple(1.05 - 0.07 * step for step in range(10))
_NEAR = 0.035
_REFINEMENTS = 2
# Weights searched at once, so that the temporaries stay in a core's cache.
_SEARCH_CHUNK = 2**17


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


def code_range(config: WeightGrid) -> tuple[int, int]:
    """Smallest and largest code."""
    half = 2 ** (config.bits - 1)
    return (-half, half - 1) if config.symmetric else (0, 2 * half - 1)


def group_width(in_features: int, config: UniformGrid, name: str) -> int:
    """Weights of one group. Raises GroupSizeUnfit."""
    width = config.group_size or in_features
    if in_features % width:
        raise GroupSizeUnfit(
            f"group_size {width} does not divide the {in_features} input channels of {name}; choose a divisor, or "
            "leave it empty for one scale per row.",
            field="group_size",
        )
    return width


def fit_grid(
    weight_OGS: Tensor, config: WeightGrid, storage_dtype: torch.dtype, importance: Tensor | None = None
) -> Grid:
    """The grid of each group, by the recipe's `scale_search`.

    `importance` weighs the squared error of each channel (GS), or the product of each two channels' errors (GSS).
    """
    low, high = code_range(config)
    if config.scale_search == "min_max":
        return _spanning(*_limits(weight_OGS, config.symmetric), low, high, storage_dtype, config.symmetric)
    rows = max(1, _SEARCH_CHUNK // weight_OGS[0].numel())
    return side_by_side(
        [
            _least_squares(part_OGS, importance, low, high, storage_dtype, config.symmetric)
            for part_OGS in torch.split(weight_OGS, rows)
        ],
        dim=0,
    )


def side_by_side(grids: list[Grid], dim: int) -> Grid:
    """One grid of several, by rows (0) or by groups (1)."""
    zeros = [grid.zeros_OG for grid in grids if grid.zeros_OG is not None]
    return Grid(
        torch.cat([grid.scales_OG for grid in grids], dim),
        torch.cat(zeros, dim) if zeros else None,
        grids[0].low,
        grids[0].high,
    )


def quantized_linear(
    codes_OI: Tensor, grid: Grid, config: WeightGrid, activations: ActivationGrid | None = None
) -> QuantizedLinear:
    """Codes of a whole linear in their stored types."""
    kind = torch.int8 if config.symmetric else torch.uint8
    zeros_OG = None if grid.zeros_OG is None else grid.zeros_OG.to(kind)
    quantized = QuantizedLinear(
        codes_OI.to(kind), grid.scales_OG, zeros_OG, config.bits, config.group_size, config.symmetric
    )
    return quantized if activations is None else quantized.with_activations(activations)


def nearest(
    weight_OI: Tensor,
    config: WeightGrid,
    storage_dtype: torch.dtype,
    name: str,
    importance_I: Tensor | None = None,
) -> QuantizedLinear:
    """Each weight on the closest point of its group's grid; channels' importance weighs errors when grids are found.

    Raises GroupSizeUnfit.
    """
    out_features, in_features = weight_OI.shape
    width = group_width(in_features, config, name)
    weight_OGS = weight_OI.reshape(out_features, -1, width)
    importance_GS = None if importance_I is None else importance_I.view(-1, width)
    grid = fit_grid(weight_OGS, config, storage_dtype, importance_GS)
    return quantized_linear(grid.codes(weight_OGS).flatten(1), grid, config)


def _limits(weight_OGS: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Ends of each group's range; zero always lies within."""
    if symmetric:
        largest_OG = weight_OGS.abs().amax(-1)
        return -largest_OG, largest_OG
    return weight_OGS.amin(-1).clamp(max=0), weight_OGS.amax(-1).clamp(min=0)


def _spanning(
    lowest_OG: Tensor, highest_OG: Tensor, low: int, high: int, storage_dtype: torch.dtype, symmetric: bool
) -> Grid:
    """The grid whose ends are a range's ends."""
    scales_OG = _storable((highest_OG - lowest_OG) / (high - low), storage_dtype)
    if symmetric:
        return Grid(scales_OG, None, low, high)
    zeros_OG = (low - lowest_OG / scales_OG.float()).round_().clamp_(low, high)
    return Grid(scales_OG, zeros_OG, low, high)


def _storable(scales_OG: Tensor, storage_dtype: torch.dtype) -> Tensor:
    """Scales as stored; a group of zeros, or one so small that its scale underflows, is zeros on any scale."""
    stored_OG = scales_OG.to(storage_dtype)
    return stored_OG.masked_fill_(stored_OG <= 0, 1)


def _least_squares(
    weight_OGS: Tensor,
    importance: Tensor | None,
    low: int,
    high: int,
    storage_dtype: torch.dtype,
    symmetric: bool,
) -> Grid:
    """Search the width of each group's range, then move the scale to the least-squares solution for its codes."""
    lowest_OG, highest_OG = _limits(weight_OGS, symmetric)

    def spanning(width_OG: Tensor | float) -> Grid:
        return _spanning(lowest_OG * width_OG, highest_OG * width_OG, low, high, storage_dtype, symmetric)

    # Any first grid will do: whatever is offered has a finite error.
    best = _Best(spanning(1.0), torch.full_like(lowest_OG, torch.inf))

    def offer(grid: Grid) -> Tensor:
        error_OG, _ = _error_and_codes(weight_OGS, importance, grid)
        return best.offer(grid, error_OG)

    width_OG = torch.ones_like(lowest_OG)
    for width in _WIDTHS:
        width_OG.masked_fill_(offer(spanning(width)), width)
    for side in (-_NEAR, _NEAR):
        offer(spanning(width_OG + side))
    for _ in range(_REFINEMENTS):
        zeros_OG = best.grid.zeros_OG
        _, codes_OGS = _error_and_codes(weight_OGS, importance, best.grid)
        if zeros_OG is not None:
            codes_OGS -= zeros_OG.unsqueeze(-1)
        weighted_OGS = codes_OGS if importance is None else _weighed(codes_OGS, importance)
        # Where all codes are zero so is the numerator, and the fit, which is no better, is dropped.
        fit_OG = (weight_OGS * weighted_OGS).sum(-1) / (codes_OGS * weighted_OGS).sum(-1).clamp_(min=1e-9)
        offer(Grid(_storable(fit_OG, storage_dtype), zeros_OG, low, high))
    return best.grid


class _Best:
    """Group by group the grid with the lowest error so far; the earlier one where they are equal."""

    def __init__(self, grid: Grid, error_OG: Tensor) -> None:
        self.grid, self._error_OG = grid, error_OG

    def offer(self, grid: Grid, error_OG: Tensor) -> Tensor:
        """True for the groups that take it."""
        better_OG = error_OG < self._error_OG
        zeros_OG = None
        if grid.zeros_OG is not None and self.grid.zeros_OG is not None:
            zeros_OG = torch.where(better_OG, grid.zeros_OG, self.grid.zeros_OG)
        scales_OG = torch.where(better_OG, grid.scales_OG, self.grid.scales_OG)
        self.grid = Grid(scales_OG, zeros_OG, grid.low, grid.high)
        self._error_OG = torch.where(better_OG, error_OG, self._error_OG)
        return better_OG


def _weighed(values_OGS: Tensor, importance: Tensor) -> Tensor:
    if importance.ndim == 2:
        return values_OGS * importance
    return torch.bmm(values_OGS.transpose(0, 1), importance).transpose(0, 1)


def _error_and_codes(weight_OGS: Tensor, importance: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
    """Weighed squared error of each group, but for the rounding of stored values, and the codes."""
    scales_OG = grid.scales_OG.float()
    position_OGS = weight_OGS / scales_OG.unsqueeze(-1)
    if grid.zeros_OG is not None:
        position_OGS += grid.zeros_OG.unsqueeze(-1)
    codes_OGS = position_OGS.round().clamp_(grid.low, grid.high)
    position_OGS -= codes_OGS
    if importance is None:
        squares_OGS = position_OGS.square_()
    elif importance.ndim == 2:
        squares_OGS = position_OGS.square_().mul_(importance)
    else:
        squares_OGS = _weighed(position_OGS, importance).mul_(position_OGS)
    return squares_OGS.sum(-1).mul_(scales_OG.square_()), codes_OGS
