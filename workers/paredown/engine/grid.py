"""The uniform integer grid that weight-only quantizers share: scales, zero points, rounding.

Scales are rounded to the storage dtype before any code is computed, and a code's value is computed as the artifact's
reader computes it, so that what is measured here is what the file holds. A K-quant's scales and minima are codes
themselves, on scales that the groups of a super-block share (ggml's block_q2_K … block_q6_K): they are found as others
are, rounded to codes, and searched once more among the codes beside them.
Shapes: O out_features, I in_features, G groups, S weights of a group, B super-blocks of a row.
Units: a width is a share of a group's range.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paredown.contracts.recipes import UniformGrid, WeightGrid
from paredown.contracts.recipes.quantization import SUPER_BLOCK
from paredown.engine.activations import ActivationGrid
from paredown.engine.errors import GroupSizeUnfit
from paredown.engine.quantized import GridLinear, KQuantLinear, QuantizedLinear, decoded

# Widths tried, as shares of a group's range, then those this far to either side of the best, and how often the scale is
# then refined. A little over the whole range is among them because a symmetric grid reaches less far up than down; on
# trained models none below two fifths won.
_WIDTHS = tuple(1.05 - 0.07 * step for step in range(10))
_NEAR = 0.035
# From so many bits on the range itself, and the share of it that its outermost codes just reach, lose less than any.
_WIDE_BITS = 6
_REFINEMENTS = 2
# Where a search for a scale and a minimum starts: the steps from the smallest weight of a group to its largest, beside
# those that codes have. On normal weights these five come within a hundredth of what thirteen give.
_STARTS = (-1.0, -0.5, 0.0, 0.5, 1.0)
# A K-quant's smallest and largest code of a scale, by the bits of a weight.
_SCALE_CODES = {2: (0, 15), 3: (-32, 31), 4: (0, 63), 5: (0, 63), 6: (-128, 127)}
# Weights searched at once, so that the temporaries stay in a core's cache.
_SEARCH_CHUNK = 2**17


@dataclass(frozen=True, eq=False)
class ScaleCodes:
    """What a K-quant stores in the place of scales and minima; see KQuantLinear. Codes are integers in float32 here."""

    scale_codes_OG: Tensor
    minimum_codes_OG: Tensor | None
    super_scales_OB: Tensor
    super_minima_OB: Tensor | None

    def grid(self, low: int, high: int) -> "Grid":
        scales_OG, zeros_OG = decoded(self.scale_codes_OG, self.super_scales_OB), None
        if self.minimum_codes_OG is not None and self.super_minima_OB is not None:
            zeros_OG = decoded(self.minimum_codes_OG, self.super_minima_OB) / scales_OG
        return Grid(scales_OG, zeros_OG, low, high, self)


@dataclass(frozen=True, eq=False)
class Grid:
    """Groups' scales and zero points.

    Scales are in the storage dtype, and negative where a symmetric grid shall reach further up than down; of a K-quant
    they are float32. Zero points are integers in float32, None where the grid is symmetric. Where GGUF stores a minimum
    in their place, they are any numbers: minima over scales.
    """

    scales_OG: Tensor
    zeros_OG: Tensor | None
    low: int
    high: int
    scale_codes: ScaleCodes | None = None
    wide: bool = False

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
    weight_OGS: Tensor,
    config: WeightGrid,
    storage_dtype: torch.dtype,
    importance: Tensor | None = None,
    *,
    wide: bool = False,
) -> Grid:
    """The grid of each group, by the recipe's `scale_search`.

    `importance` weighs the squared error of each channel (GS), or the product of each two channels' errors (GSS).
    `wide` where the format stores a minimum of the storage dtype in the place of a zero point, as GGUF does.
    """
    rows = max(1, _SEARCH_CHUNK // weight_OGS[0].numel())
    parts = torch.split(weight_OGS, rows)
    if config.k_quant:
        return side_by_side([_k_quant(part_OGS, importance, config) for part_OGS in parts], dim=0)
    return side_by_side([_plain(part_OGS, importance, config, storage_dtype, wide) for part_OGS in parts], dim=0)


def side_by_side(grids: list[Grid], dim: int) -> Grid:
    """One grid of several, by rows (0) or by groups (1)."""
    coded = [grid.scale_codes for grid in grids if grid.scale_codes is not None]
    codes = None
    if coded:
        codes = ScaleCodes(
            torch.cat([part.scale_codes_OG for part in coded], dim),
            _joined([part.minimum_codes_OG for part in coded], dim),
            torch.cat([part.super_scales_OB for part in coded], dim),
            _joined([part.super_minima_OB for part in coded], dim),
        )
    return Grid(
        torch.cat([grid.scales_OG for grid in grids], dim),
        _joined([grid.zeros_OG for grid in grids], dim),
        grids[0].low,
        grids[0].high,
        codes,
        grids[0].wide,
    )


def _joined(parts: list[Tensor | None], dim: int) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there, dim) if there else None


def quantized_linear(
    codes_OI: Tensor, grid: Grid, config: WeightGrid, activations: ActivationGrid | None = None
) -> QuantizedLinear:
    """Codes of a whole linear in their stored types, of a grid whose scales are numbers."""
    assert grid.scale_codes is None
    kind = torch.int8 if config.symmetric else torch.uint8
    zeros_OG = grid.zeros_OG if grid.zeros_OG is None or grid.wide else grid.zeros_OG.to(kind)
    quantized = QuantizedLinear(
        codes_OI.to(kind), grid.scales_OG, zeros_OG, config.bits, config.group_size, config.symmetric, grid.wide
    )
    return quantized if activations is None else quantized.with_activations(activations)


def grid_linear(codes_OI: Tensor, grid: Grid, config: WeightGrid) -> GridLinear:
    """Codes of a whole linear in their stored types, of any grid."""
    scales = grid.scale_codes
    if scales is None:
        return quantized_linear(codes_OI, grid, config)
    kind = torch.int8 if config.symmetric else torch.uint8
    return KQuantLinear(
        codes_OI.to(kind),
        scales.scale_codes_OG.to(kind),
        None if scales.minimum_codes_OG is None else scales.minimum_codes_OG.to(kind),
        scales.super_scales_OB,
        scales.super_minima_OB,
        config.bits,
    )


def nearest(
    weight_OI: Tensor,
    config: WeightGrid,
    storage_dtype: torch.dtype,
    name: str,
    importance_I: Tensor | None = None,
    *,
    wide: bool = False,
) -> GridLinear:
    """Each weight on the closest point of its group's grid; channels' importance weighs errors when grids are found.

    `wide` as for fit_grid. Raises GroupSizeUnfit.
    """
    out_features, in_features = weight_OI.shape
    width = group_width(in_features, config, name)
    weight_OGS = weight_OI.reshape(out_features, -1, width)
    importance_GS = None if importance_I is None else importance_I.view(-1, width)
    grid = fit_grid(weight_OGS, config, storage_dtype, importance_GS, wide=wide)
    return grid_linear(grid.codes(weight_OGS).flatten(1), grid, config)


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
    """Scales as stored: none is zero, because a group of zeros is zeros on any scale."""
    limits = torch.finfo(storage_dtype)
    smallest_OG = torch.full_like(scales_OG, limits.tiny * limits.eps).copysign_(scales_OG).to(storage_dtype)
    stored_OG = scales_OG.to(storage_dtype)
    stored_OG = torch.where(stored_OG == 0, smallest_OG, stored_OG)
    return stored_OG.masked_fill_(scales_OG == 0, 1)


def _plain(
    weight_OGS: Tensor, importance: Tensor | None, config: WeightGrid, storage_dtype: torch.dtype, wide: bool
) -> Grid:
    """Grids whose scales are numbers."""
    grid = _fitted(weight_OGS, importance, config, storage_dtype)
    if not wide or grid.zeros_OG is None:
        return replace(grid, wide=wide)
    if config.scale_search == "least_squares":
        grid = _with_any_minimum(weight_OGS, importance, replace(grid, scales_OG=grid.scales_OG.float()))
    assert grid.zeros_OG is not None
    scales_OG = _storable(grid.scales_OG, storage_dtype)
    minima_OG = (grid.zeros_OG * grid.scales_OG).to(storage_dtype)
    return Grid(scales_OG, minima_OG.float() / scales_OG.float(), grid.low, grid.high, wide=True)


def _fitted(weight_OGS: Tensor, importance: Tensor | None, config: WeightGrid, storage_dtype: torch.dtype) -> Grid:
    low, high = code_range(config)
    if config.scale_search == "min_max":
        return _spanning(*_limits(weight_OGS, config.symmetric), low, high, storage_dtype, config.symmetric)
    return _least_squares(weight_OGS, importance, low, high, storage_dtype, config.symmetric)


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
    if symmetric:
        # There is a code more below zero than above: it goes to the side of the largest weight.
        lowest_OG = torch.where(weight_OGS.amax(-1) >= highest_OG, highest_OG, lowest_OG)
        highest_OG = -lowest_OG

    def spanning(width_OG: Tensor | float) -> Grid:
        return _spanning(lowest_OG * width_OG, highest_OG * width_OG, low, high, storage_dtype, symmetric)

    # Any first grid will do: whatever is offered has a finite error.
    best = _Best(spanning(1.0), torch.full_like(lowest_OG, torch.inf))

    def offer(grid: Grid) -> Tensor:
        error_OG, _ = _error_and_codes(weight_OGS, importance, grid)
        return best.offer(grid, error_OG)

    width_OG = torch.ones_like(lowest_OG)
    codes = high - low
    whole = (1.0, codes / (codes + 1)) if codes.bit_length() >= _WIDE_BITS else ()
    for width in (*whole, *_WIDTHS):
        width_OG.masked_fill_(offer(spanning(width)), width)
    for side in (-_NEAR, _NEAR):
        offer(spanning(width_OG + side))
    for _ in range(_REFINEMENTS):
        zeros_OG = best.grid.zeros_OG
        _, codes_OGS = _error_and_codes(weight_OGS, importance, best.grid)
        if zeros_OG is not None:
            codes_OGS -= zeros_OG.unsqueeze(-1)
        weighted_OGS = _weighed(codes_OGS, importance)
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


def _weighed(values_OGS: Tensor, importance: Tensor | None) -> Tensor:
    if importance is None:
        return values_OGS
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
    return squares_OGS.sum(-1).mul_(scales_OG.square()), codes_OGS


def _k_quant(weight_OGS: Tensor, importance: Tensor | None, config: WeightGrid) -> Grid:
    """Scales as for any grid, in float32; then as codes, each moved to the one beside it while squared error falls."""
    low, high = code_range(config)
    first = _fitted(weight_OGS, importance, config, torch.float32)
    searched = config.scale_search == "least_squares"
    if searched and first.zeros_OG is not None:
        first = _with_any_minimum(weight_OGS, importance, first)
    # A group of zeros, which any scale fits, has no say in what its super-block shares.
    first = replace(first, scales_OG=first.scales_OG * weight_OGS.any(-1))
    lowest, highest = _SCALE_CODES[config.bits]
    codes = _scale_codes(first, SUPER_BLOCK // weight_OGS.shape[-1], lowest, highest)
    if not searched:
        return codes.grid(low, high)
    search = _CodeSearch(weight_OGS, importance, codes, low, high)
    for _ in range(_REFINEMENTS):
        for step in (-1, 1):
            moved_OG = (search.codes.scale_codes_OG + step).clamp_(lowest, highest)
            # A scale of zero has no codes.
            search.offer(scale_codes_OG=torch.where(moved_OG == 0, search.codes.scale_codes_OG, moved_OG))
        if search.codes.minimum_codes_OG is not None:
            for step in (-1, 1):
                search.offer(minimum_codes_OG=(search.codes.minimum_codes_OG + step).clamp_(lowest, highest))
        search.offer(**search.super_fit())
    return search.codes.grid(low, high)


def _with_any_minimum(weight_OGS: Tensor, importance: Tensor | None, grid: Grid) -> Grid:
    """The grid, or a better one whose minima are no multiples of scales: the least-squares solutions for codes."""
    error_OG, _ = _error_and_codes(weight_OGS, importance, grid)
    best = _Best(grid, error_OG)
    ones_weighed_OGS = _weighed(torch.ones_like(weight_OGS), importance)
    ones_OG, weights_OG = ones_weighed_OGS.sum(-1), (weight_OGS * ones_weighed_OGS).sum(-1)

    def refine(start: Grid) -> None:
        _, codes_OGS = _error_and_codes(weight_OGS, importance, start)
        weighed_OGS = _weighed(codes_OGS, importance)
        scales_OG, minima_OG = _line(
            (codes_OGS * weighed_OGS).sum(-1),
            (codes_OGS * ones_weighed_OGS).sum(-1),
            ones_OG,
            (weight_OGS * weighed_OGS).sum(-1),
            weights_OG,
        )
        tried = Grid(scales_OG, minima_OG / scales_OG, grid.low, grid.high)
        error_OG, _ = _error_and_codes(weight_OGS, importance, tried)
        best.offer(tried, error_OG)

    lowest_OG = weight_OGS.amin(-1).clamp_(max=0)
    range_OG = weight_OGS.amax(-1).sub_(lowest_OG)
    for more in _STARTS:
        scales_OG = _storable(range_OG / (grid.high + more), torch.float32)
        refine(Grid(scales_OG, -lowest_OG / scales_OG, grid.low, grid.high))
    for _ in range(_REFINEMENTS):
        refine(best.grid)
    return best.grid


def _line(aa: Tensor, ab: Tensor, bb: Tensor, aw: Tensor, bw: Tensor) -> tuple[Tensor, Tensor]:
    """The s > 0 and m ≥ 0 for which s·a − m·b is nearest w, from their products; 1 and 0 where there are none."""
    determinant = aa * bb - ab * ab
    scale, minimum = (aw * bb - bw * ab) / determinant, (aw * ab - bw * aa) / determinant
    below = ~(minimum >= 0)
    scale = torch.where(below, aw / aa, scale)
    good = scale.isfinite() & (scale > 0)
    return torch.where(good, scale, 1.0), torch.where(good & ~below, minimum, 0.0)


def _scale_codes(grid: Grid, groups: int, lowest: int, highest: int) -> ScaleCodes:
    """Scales and minima as codes whose largest is that of the largest of each super-block."""
    scales_OBG = grid.scales_OG.view(len(grid.scales_OG), -1, groups)
    largest_OB1 = scales_OBG.gather(-1, scales_OBG.abs().argmax(-1, keepdim=True))
    # A symmetric grid's codes reach further down.
    super_scales_OB = _storable(largest_OB1.squeeze(-1) / (lowest or highest), torch.float16)
    codes_OBG = (scales_OBG / super_scales_OB.float().unsqueeze(-1)).round_().clamp_(lowest, highest)
    codes_OBG.masked_fill_(codes_OBG == 0, 1)
    if grid.zeros_OG is None:
        return ScaleCodes(codes_OBG.flatten(1), None, super_scales_OB, None)
    minima_OBG = (grid.zeros_OG * grid.scales_OG).view_as(scales_OBG)
    super_minima_OB = _storable(minima_OBG.amax(-1) / highest, torch.float16)
    minimum_codes_OBG = (minima_OBG / super_minima_OB.float().unsqueeze(-1)).round_().clamp_(0, highest)
    return ScaleCodes(codes_OBG.flatten(1), minimum_codes_OBG.flatten(1), super_scales_OB, super_minima_OB)


class _CodeSearch:
    """Changes a K-quant's codes of scales group by group, and what they stand for block by block, if error falls."""

    def __init__(self, weight_OGS: Tensor, importance: Tensor | None, codes: ScaleCodes, low: int, high: int) -> None:
        self.codes = codes
        self._weight_OGS, self._importance = weight_OGS, importance
        self._low, self._high = low, high
        self._error_OG = self._error(codes)

    def offer(self, **changes: Tensor) -> None:
        """New values of all groups, or of all super-blocks: each is taken where it has less error."""
        error_OG = self._error(replace(self.codes, **changes))
        better_OG = error_OG < self._error_OG
        better_OB = self._by_block(error_OG) < self._by_block(self._error_OG)
        if "super_scales_OB" in changes:
            groups = error_OG.shape[1] // better_OB.shape[1]
            better_OG = better_OB.repeat_interleave(groups, dim=1)
        taken = {
            name: torch.where(better_OB if name.endswith("OB") else better_OG, new, getattr(self.codes, name))
            for name, new in changes.items()
        }
        self.codes = replace(self.codes, **taken)
        self._error_OG = torch.where(better_OG, error_OG, self._error_OG)

    def super_fit(self) -> dict[str, Tensor]:
        """Super-scales and -minima that are the least-squares solution for all codes."""
        codes = self.codes
        _, codes_OGS = _error_and_codes(self._weight_OGS, self._importance, codes.grid(self._low, self._high))
        scaled_OGS = codes_OGS.mul_(codes.scale_codes_OG.unsqueeze(-1))
        scaled_weighed_OGS = _weighed(scaled_OGS, self._importance)
        squares_OB = self._products(scaled_OGS, scaled_weighed_OGS)
        fits_OB = self._products(self._weight_OGS, scaled_weighed_OGS)
        if codes.minimum_codes_OG is None:
            return {"super_scales_OB": _storable(fits_OB / squares_OB.clamp_(min=1e-30), torch.float16)}
        minima_OGS = codes.minimum_codes_OG.unsqueeze(-1).expand_as(scaled_OGS)
        minima_weighed_OGS = _weighed(minima_OGS, self._importance)
        super_scales_OB, super_minima_OB = _line(
            squares_OB,
            self._products(scaled_OGS, minima_weighed_OGS),
            self._products(minima_OGS, minima_weighed_OGS),
            fits_OB,
            self._products(self._weight_OGS, minima_weighed_OGS),
        )
        return {
            "super_scales_OB": _storable(super_scales_OB, torch.float16),
            "super_minima_OB": _storable(super_minima_OB, torch.float16),
        }

    def _error(self, codes: ScaleCodes) -> Tensor:
        error_OG, _ = _error_and_codes(self._weight_OGS, self._importance, codes.grid(self._low, self._high))
        return error_OG

    def _products(self, first_OGS: Tensor, second_OGS: Tensor) -> Tensor:
        return self._by_block((first_OGS * second_OGS).sum(-1))

    def _by_block(self, values_OG: Tensor) -> Tensor:
        return values_OG.view(*self.codes.super_scales_OB.shape, -1).sum(-1)
