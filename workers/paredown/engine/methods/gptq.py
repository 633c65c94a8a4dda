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

from paredown.contracts.recipes import Gptq
from paredown.engine.columns import LAZY_COLUMNS, Rounding, channel_importance, ordered, sweep
from paredown.engine.errors import HessianSingular
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.statistics import InputStatistics, Statistic

# What a search tries beside the damping that it was given, as multiples of it; the given one first, which wins a tie.
_SEARCHED = (1.0, 0.1, 0.3, 3.0, 10.0)


def compress(linear: LinearWeight, inputs: InputStatistics, config: Gptq) -> None:
    """Raises HessianSingular, GroupSizeUnfit."""
    if config.damping_search:
        linear.quantize(_searched(linear, inputs, config))
    else:
        linear.quantize(_solved(linear, inputs, config, config.damping))


def _solved(linear: LinearWeight, inputs: InputStatistics, config: Gptq, damping: float) -> QuantizedLinear:
    upper_II, order_I = inputs.inverse_factor(damping, config.activation_order)
    weight_IO = ordered(linear.weight_OI.T, order_I)
    pruned_IO = None if linear.pruned_OI is None else ordered(linear.pruned_OI.T, order_I)
    rounding = Rounding(linear, config, order_I, channel_importance(inputs.energy_I), pruned_IO)
    if order_I is not None:
        rounding.fit_all(linear.weight_OI)
        sweep(weight_IO, upper_II, rounding.settle)
    else:
        width = rounding.width

        def prepare(first: int, _last: int) -> None:
            if first % width == 0:
                rounding.fit_group(first // width, weight_IO[first : first + width])

        # No lazy update may reach past the start of a group, where its scale is found.
        sweep(weight_IO, upper_II, rounding.settle, prepare=prepare, step=min(LAZY_COLUMNS, width))
    return rounding.quantized()


def _searched(linear: LinearWeight, inputs: InputStatistics, config: Gptq) -> QuantizedLinear:
    """Row by row the result with the least output error, of those whose damping lets the Hessian factorize."""
    dampings = [min(config.damping * factor, 1.0) for factor in _SEARCHED]
    best: QuantizedLinear | None = None
    best_error_O = torch.full((linear.weight_OI.shape[0],), torch.inf, device=linear.weight_OI.device)
    for damping in dict.fromkeys(dampings):
        try:
            tried = _solved(linear, inputs, config, damping)
        except HessianSingular:
            continue
        error_O = inputs.row_energy_O(linear.weight_OI - tried.dequantized().float())
        best = tried if best is None else tried.where(error_O < best_error_O, best)
        best_error_O = torch.minimum(error_O, best_error_O)
    if best is None:
        raise HessianSingular(inputs.name, *dampings)
    return best


METHOD = LinearMethod(config=Gptq, needs=frozenset({Statistic.HESSIAN}), compress=compress)
