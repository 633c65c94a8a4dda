"""The sweep that GPTQ and SparseGPT share: settle a weight's columns one by one; those still to come absorb the error.

Papers: Frantar et al., GPTQ, arXiv:2210.17323, and SparseGPT, arXiv:2301.00774: the same steps of optimal brain
surgery, one rounding what it settles and the other dropping it, so that one sweep can do both.
Columns are worked on one after the other, so they lie as rows here.
Shapes: O out_features, I in_features (in the order of work), S weights of a group, B columns of a lazy update.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from paredown.contracts.recipes import WeightGrid
from paredown.contracts.recipes.quantization import SUPER_BLOCK
from paredown.engine.grid import Grid, fit_grid, grid_linear, group_width, side_by_side
from paredown.engine.method import LinearWeight
from paredown.engine.quantized import GridLinear

# Columns after which the rest of the matrix is updated in one product.
LAZY_COLUMNS = 128
# Columns settled one by one before those after them get their errors in one product.
_PIECE = 32


def sweep(
    weight_IO: Tensor,
    upper_II: Tensor,
    settle: Callable[[int, Tensor], Tensor],
    *,
    prepare: Callable[[int, int], None] = lambda _first, _last: None,
    step: int = LAZY_COLUMNS,
    run: int = LAZY_COLUMNS,
) -> None:
    """Give each column the value that `settle(column, weight_O)` returns; columns after it make up for the difference.

    `upper_II` is InputStatistics.inverse_factor's; `weight_IO` is used up. All columns are brought up to date every
    `step` columns, those of a `run` (of which a step holds some) before `prepare(first, last)` is told of them.
    """
    in_features, out_features = weight_IO.shape
    for start in range(0, in_features, step):
        end = min(start + step, in_features)
        error_BO = torch.empty(end - start, out_features, device=weight_IO.device)
        # What a unit of each column's error adds to those after it.
        share_IB = (upper_II[start:end, start:] / upper_II[start:end, start:end].diagonal().unsqueeze(1)).T.contiguous()
        rows_BO, share_BB = weight_IO[start:end], share_IB[: end - start]
        # Views made one by one would cost as much as the arithmetic on a small layer.
        weights, errors, shares = rows_BO.unbind(), error_BO.unbind(), share_BB.unbind()
        for first in range(0, end - start, run):
            last = min(first + run, end - start)
            _absorb(rows_BO, share_BB, error_BO, 0, first, last)
            prepare(start + first, start + last)
            for piece in range(first, last, _PIECE):
                piece_end = min(piece + _PIECE, last)
                _absorb(rows_BO, share_BB, error_BO, first, piece, piece_end)
                for index in range(piece, piece_end):
                    weight_O = weights[index]
                    if index > piece:
                        weight_O.addmv_(error_BO[piece:index].T, shares[index][piece:index], alpha=-1)
                    torch.sub(weight_O, settle(start + index, weight_O), out=errors[index])
        weight_IO[end:].addmm_(share_IB[end - start :], error_BO, alpha=-1)


def _absorb(rows_BO: Tensor, share_BB: Tensor, error_BO: Tensor, since: int, first: int, last: int) -> None:
    """Columns `first` to `last` make up for the errors of those from `since` until before them."""
    if first > since:
        rows_BO[first:last].addmm_(share_BB[first:last, since:first], error_BO[since:first], alpha=-1)


def ordered(rows: Tensor, order_I: Tensor | None) -> Tensor:
    """A copy whose rows are in the order of work."""
    return rows.contiguous().clone() if order_I is None else rows[order_I].contiguous()


def restored(rows: Tensor, order_I: Tensor | None) -> Tensor:
    """Rows back where they were."""
    return rows if order_I is None else torch.empty_like(rows).index_copy_(0, order_I, rows)


def channel_importance(energy_I: Tensor) -> Tensor:
    """How much a channel's rounding error counts when a group's scale is found: its root mean square, mean 1.

    Not its mean square, which the loss itself has: a weight in a quiet channel also takes in the errors of louder ones,
    so its range matters more than its own channel says. On a 135 M model the root gave the lowest layer errors.
    """
    norm_I = energy_I.sqrt()
    mean = norm_I.mean()
    # Channels that were silent in calibration still count for something.
    return (norm_I / mean).clamp(min=0.01) if bool(mean > 0) else torch.ones_like(norm_I)


class Rounding:
    """Puts columns on a grid, as they are settled.

    `pruned_IO` (in the order of work) may still change while columns are visited; a column's must stand before it is
    settled. Scales are found with `fit_all`, or with `fit_unit` of `unit` columns at a time where they are visited in
    order.
    """

    def __init__(
        self,
        linear: LinearWeight,
        config: WeightGrid,
        order_I: Tensor | None,
        importance_I: Tensor,
        pruned_IO: Tensor | None,
    ) -> None:
        out_features, in_features = linear.weight_OI.shape
        self._width = group_width(in_features, config, linear.name)
        # Columns whose scales are found together.
        self.unit = SUPER_BLOCK if config.k_quant else self._width
        self.pruned_IO = pruned_IO
        self._config = config
        self._order_I = order_I
        self._storage_dtype, self._wide = linear.storage_dtype, linear.wide
        self._importance_GS = importance_I.view(-1, self._width)
        self._codes_IO = torch.empty(in_features, out_features, device=linear.weight_OI.device)
        self._codes = self._codes_IO.unbind()
        channels = range(in_features) if order_I is None else order_I.tolist()
        self._groups = [channel // self._width for channel in channels]
        self._grids: list[Grid] = []
        self._scales_GO: list[Tensor] = []
        self._zeros_GO: list[Tensor] | None = None if config.symmetric else []

    def fit_all(self, weight_OI: Tensor) -> None:
        """Find every group's scale from these weights."""
        self._fit(weight_OI, self._importance_GS)

    def fit_unit(self, first: int, weight_CO: Tensor) -> None:
        """Find the scales of the next unit, which begins with the column `first`, from these weights."""
        groups = slice(first // self._width, (first + len(weight_CO)) // self._width)
        self._fit(weight_CO.T, self._importance_GS[groups])

    def _fit(self, weight_OC: Tensor, importance_GS: Tensor) -> None:
        weight_OGS = weight_OC.reshape(len(weight_OC), -1, self._width)
        grid = fit_grid(weight_OGS, self._config, self._storage_dtype, importance_GS, wide=self._wide)
        self._grids.append(grid)
        self._scales_GO += grid.scales_OG.float().T.contiguous()
        if self._zeros_GO is not None:
            assert grid.zeros_OG is not None
            self._zeros_GO += grid.zeros_OG.T.contiguous()

    def settle(self, column: int, weight_O: Tensor) -> Tensor:
        """The value that the artifact will give back for each weight; its code is kept."""
        group = self._groups[column]
        low, high = self._grids[0].low, self._grids[0].high
        pruned_O = None if self.pruned_IO is None else self.pruned_IO[column]
        scale_O = self._scales_GO[group]
        code_O = torch.div(weight_O, scale_O, out=self._codes[column])
        if self._zeros_GO is None:
            code_O.round_().clamp_(low, high)
            if pruned_O is not None:
                code_O.masked_fill_(pruned_O, 0)
            value_O = code_O * scale_O
        else:
            zero_O = self._zeros_GO[group]
            code_O.add_(zero_O).round_().clamp_(low, high)
            if pruned_O is not None:
                torch.where(pruned_O, zero_O, code_O, out=code_O)
            value_O = (code_O - zero_O).mul_(scale_O)
        return value_O.to(self._storage_dtype)

    def quantized(self) -> GridLinear:
        """All columns, once they are settled."""
        codes_OI = restored(self._codes_IO, self._order_I).T.contiguous()
        return grid_linear(codes_OI, side_by_side(self._grids, dim=1), self._config)
