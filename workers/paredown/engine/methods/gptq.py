"""GPTQ: quantize column by column, and let the columns still to come absorb the error of each.

Paper: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323. With `activation_order` the columns with the largest activations go first, and every group's scale is
found beforehand from the weights as they were ("static groups"), so groups stay where they are in the file; without it
a group's scale is found when its first column is reached, from the weights as updated by then. The search for a scale
weighs each channel by its input norm. With `damping_search` each output row keeps the damping whose result changes its
output least: the Hessian tells that error, so a try costs a factorization and a sweep, and no token runs again.
Weights that an earlier stage pruned stay zero; their error too is absorbed by later columns.
Shapes: O out_features, I in_features, G groups along the input.
Units: damping is a share of the Hessian's mean diagonal.
"""

import torch
from torch import Tensor

from paredown.contracts.pieces import DAMPING_FACTORS
from paredown.contracts.recipes import Gptq
from paredown.engine.columns import LAZY_COLUMNS, Rounding, channel_importance, ordered, sweep
from paredown.engine.errors import HessianSingular
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics, Statistic
from paredown.engine.stored import StoredLinear


def compress(linear: LinearWeight, inputs: InputStatistics, config: Gptq) -> None:
    """Raises HessianSingular, GroupSizeUnfit."""
    solver = _Solver(linear, inputs, config)
    if not config.damping_search:
        linear.quantize(solver.solve(config.damping))
        return
    dampings = [min(config.damping * factor, 1.0) for factor in DAMPING_FACTORS]
    best: StoredLinear | None = None
    best_error_O = torch.full((linear.weight_OI.shape[0],), torch.inf, device=linear.weight_OI.device)
    for damping in dict.fromkeys(dampings):
        try:
            tried = solver.solve(damping)
        except HessianSingular:
            continue
        error_O = inputs.row_energy_O(linear.weight_OI - tried.dequantized().float())
        best = tried if best is None else tried.where(error_O < best_error_O, best)
        best_error_O = torch.minimum(error_O, best_error_O)
    if best is None:
        raise HessianSingular(inputs.name, *dampings)
    linear.quantize(best)


class _Solver:
    """One linear under any damping; what does not depend on it is found once."""

    def __init__(self, linear: LinearWeight, inputs: InputStatistics, config: Gptq) -> None:
        self._linear, self._inputs, self._config = linear, inputs, config
        self._static: Rounding | None = None

    def solve(self, damping: float) -> StoredLinear:
        """Raises HessianSingular, GroupSizeUnfit."""
        upper_II, order_I = self._inputs.inverse_factor(damping, self._config.activation_order)
        weight_IO = ordered(self._linear.weight_OI.T, order_I)
        if order_I is not None:
            if self._static is None:
                self._static = self._rounding(order_I)
                self._static.fit_all(self._linear.weight_OI)
            sweep(weight_IO, upper_II, self._static.settle)
            return self._static.quantized()
        rounding = self._rounding(None)
        unit = rounding.unit

        def prepare(first: int, _last: int) -> None:
            if first % unit == 0:
                rounding.fit_unit(first, weight_IO[first : first + unit])

        # No lazy update may reach past the start of a unit, where its scales are found.
        sweep(weight_IO, upper_II, rounding.settle, prepare=prepare, step=min(LAZY_COLUMNS, unit))
        return rounding.quantized()

    def _rounding(self, order_I: Tensor | None) -> Rounding:
        pruned_OI = self._linear.pruned_OI
        pruned_IO = None if pruned_OI is None else ordered(pruned_OI.T, order_I)
        importance_I = channel_importance(self._inputs.energy_I)
        return Rounding(self._linear, self._config, order_I, importance_I, pruned_IO)


METHOD = LinearMethod(config=Gptq, needs=frozenset({Statistic.HESSIAN}), compress=compress)
