"""GPTQ: quantize column by column, and let the columns still to come absorb the error of each.

Paper: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323. With `activation_order` the columns with the largest activations go first, and every group's scale is
found beforehand from the weights as they were ("static groups"), so groups stay where they are in the file; without it
a group's scale is found when its first column is reached, from the weights as updated by then. The search for a scale
weighs each channel by its input norm.
Weights that an earlier stage pruned stay zero; their error too is absorbed by later columns.
Shapes: O out_features, I in_features, G groups along the input, S weights of a group, B columns of a lazy update.
Units: damping is a share of the Hessian's mean diagonal.
"""

import torch
from torch import Tensor

from paredown.contracts.recipes import Gptq
from paredown.engine.grid import Grid, fit_grid, group_width, quantized_linear, side_by_side
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics, Statistic

# Columns after which the rest of the matrix is updated in one product.
_LAZY_COLUMNS = 128


def compress(linear: LinearWeight, inputs: InputStatistics, config: Gptq) -> None:
    """Raises HessianSingular, GroupSizeUnfit."""
    out_features, in_features = linear.weight_OI.shape
    width = group_width(in_features, config, linear.name)
    upper_II, order_I = inputs.inverse_factor(config.damping, config.activation_order)
    # Columns are worked on one after the other, so they lie as rows here.
    weight_IO = _ordered(linear.weight_OI.T, order_I)
    pruned_IO = None if linear.pruned_OI is None else _ordered(linear.pruned_OI.T, order_I)
    static = order_I is not None
    importance_GS = channel_importance(inputs.energy_I).view(-1, width)
    grid: Grid | None = None
    if static:
        weight_OGS = linear.weight_OI.view(out_features, -1, width)
        grid = fit_grid(weight_OGS, config, linear.storage_dtype, importance_GS)
    groups = [int(channel) // width for channel in (range(in_features) if order_I is None else order_I.tolist())]
    codes_IO = torch.empty_like(weight_IO)
    fitted: list[Grid] = []
    step = _LAZY_COLUMNS if static else min(_LAZY_COLUMNS, width)
    columns = _Columns(grid) if grid else None
    for start in range(0, in_features, step):
        end = min(start + step, in_features)
        if grid is None and start % width == 0:
            weight_OGS = weight_IO[start : start + width].T.unsqueeze(1)
            group_importance_GS = importance_GS[start // width].unsqueeze(0)
            fitted.append(fit_grid(weight_OGS, config, linear.storage_dtype, group_importance_GS))
            columns = _Columns(fitted[-1])
        assert columns is not None
        error_BO = torch.empty(end - start, out_features, device=weight_IO.device)
        factor_BB = upper_II[start:end, start:end].T.contiguous()
        divisors = factor_BB.diagonal().tolist()
        for index in range(end - start):
            column = start + index
            weight_O = weight_IO[column]
            if index:
                weight_O.addmv_(error_BO[:index].T, factor_BB[index, :index], alpha=-1)
            group = groups[column] if static else 0
            code_O, value_O = columns.quantize(weight_O, group, None if pruned_IO is None else pruned_IO[column])
            codes_IO[column] = code_O
            torch.sub(weight_O, value_O, out=error_BO[index])
            error_BO[index] /= divisors[index]
        weight_IO[end:].addmm_(upper_II[start:end, end:].T, error_BO, alpha=-1)
    if grid is None:
        grid = side_by_side(fitted, dim=1)
    codes_OI = _restored(codes_IO, order_I).T.contiguous()
    linear.quantize(quantized_linear(codes_OI, grid, config))


def channel_importance(energy_I: Tensor) -> Tensor:
    """How much a channel's rounding error counts when a group's scale is found: its root mean square, mean 1.

    Not its mean square, which the loss itself has: a weight in a quiet channel also takes in the errors of louder ones,
    so its range matters more than its own channel says. On a 135 M model the root gave the lowest layer errors.
    """
    norm_I = energy_I.sqrt()
    mean = norm_I.mean()
    # Channels that were silent in calibration still count for something.
    return (norm_I / mean).clamp(min=0.01) if bool(mean > 0) else torch.ones_like(norm_I)


class _Columns:
    """A grid, laid out for rounding one column at a time."""

    def __init__(self, grid: Grid) -> None:
        self._low, self._high = grid.low, grid.high
        self._dtype = grid.scales_OG.dtype
        self._scales_GO = grid.scales_OG.float().T.contiguous()
        self._zeros_GO = None if grid.zeros_OG is None else grid.zeros_OG.T.contiguous()

    def quantize(self, weight_O: Tensor, group: int, pruned_O: Tensor | None) -> tuple[Tensor, Tensor]:
        """(codes, the values that the artifact will give back for them)."""
        scale_O = self._scales_GO[group]
        code_O = weight_O / scale_O
        if self._zeros_GO is None:
            code_O.round_().clamp_(self._low, self._high)
            if pruned_O is not None:
                code_O.masked_fill_(pruned_O, 0)
            value_O = code_O * scale_O
        else:
            zero_O = self._zeros_GO[group]
            code_O.add_(zero_O).round_().clamp_(self._low, self._high)
            if pruned_O is not None:
                torch.where(pruned_O, zero_O, code_O, out=code_O)
            value_O = (code_O - zero_O).mul_(scale_O)
        return code_O, value_O.to(self._dtype)


def _ordered(rows: Tensor, order_I: Tensor | None) -> Tensor:
    """A copy whose rows are in the order of work."""
    return rows.contiguous().clone() if order_I is None else rows[order_I].contiguous()


def _restored(rows: Tensor, order_I: Tensor | None) -> Tensor:
    return rows if order_I is None else torch.empty_like(rows).index_copy_(0, order_I, rows)


METHOD = LinearMethod(config=Gptq, needs=frozenset({Statistic.HESSIAN}), compress=compress)
