"""OWQ: the few columns that rounding would hurt most stay in 16 bit; GPTQ quantizes the others.

Paper: Lee et al., "OWQ: Outlier-Aware Weight Quantization for Efficient Fine-Tuning and Inference of Large Language
Models", arXiv:2306.02272. A column's sensitivity is λⱼ ‖ΔWⱼ‖², with λⱼ the Hessian's diagonal and ΔWⱼ what rounding to
nearest would change. Weak columns are settled last, so that they absorb what all others lost; scales are found as if
they were not there. The others go by falling activations, with every scale found beforehand, as gptq does.
Linears that share an input share their weak columns, as sensitivities add up over rows.
Shapes: O out_features, I in_features (in the order of work where it says so), G groups, S weights of a group, W weak
columns.
"""

import torch
from torch import Tensor

from paredown.contracts.recipes import Owq
from paredown.engine.columns import Rounding, channel_importance, ordered, sweep
from paredown.engine.compact import with_columns
from paredown.engine.grid import fit_grid, group_width
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.statistics import InputStatistics, Statistic


def compress(linear: LinearWeight, inputs: InputStatistics, config: Owq) -> None:
    """Raises HessianSingular, GroupSizeUnfit."""
    in_features = linear.weight_OI.shape[1]
    weak = config.weak(in_features)
    sensitivity_I = inputs.energy_I * rounding_error(linear, inputs, config)
    columns_W = sensitivity_I.topk(weak).indices.sort().values
    last_I = torch.zeros_like(sensitivity_I, dtype=torch.bool).index_fill_(0, columns_W, True)
    # Weak columns last, as they lie.
    order_I = inputs.energy_I.masked_fill(last_I, -1.0).argsort(descending=True, stable=True)
    upper_II, _ = inputs.reordered(order_I).inverse_factor(config.damping, activation_order=False)
    weight_IO = ordered(linear.weight_OI.T, order_I)
    pruned_IO = None if linear.pruned_OI is None else ordered(linear.pruned_OI.T, order_I)
    importance_I = channel_importance(inputs.energy_I).masked_fill(last_I, 0.0)
    rounding = Rounding(linear, config, order_I, importance_I, pruned_IO)
    rounding.fit_all(linear.weight_OI.masked_fill(last_I, 0.0))
    kept_WO = torch.empty(weak, len(linear.weight_OI), device=weight_IO.device, dtype=linear.storage_dtype)

    def settle(column: int, weight_O: Tensor) -> Tensor:
        value_O = rounding.settle(column, weight_O)
        if column < in_features - weak:
            return value_O
        kept_O = weight_O if pruned_IO is None else weight_O.masked_fill(pruned_IO[column], 0.0)
        kept_WO[column - in_features] = kept_O
        return kept_WO[column - in_features]

    sweep(weight_IO, upper_II, settle)
    quantized = rounding.quantized()
    assert isinstance(quantized, QuantizedLinear), "only gguf holds K-quants"
    linear.quantize(with_columns(quantized, columns_W.int(), kept_WO.T.contiguous()))


def rounding_error(linear: LinearWeight, inputs: InputStatistics, config: Owq) -> Tensor:
    """‖ΔWⱼ‖² of each input channel when the weight is rounded to nearest."""
    out_features, in_features = linear.weight_OI.shape
    width = group_width(in_features, config, linear.name)
    weight_OGS = linear.weight_OI.reshape(out_features, -1, width)
    grid = fit_grid(weight_OGS, config, linear.storage_dtype, channel_importance(inputs.energy_I).view(-1, width))
    codes_OGS = grid.codes(weight_OGS)
    if grid.zeros_OG is not None:
        codes_OGS -= grid.zeros_OG.unsqueeze(-1)
    rounded_OGS = codes_OGS.mul_(grid.scales_OG.float().unsqueeze(-1))
    error_I: Tensor = (weight_OGS - rounded_OGS).square_().sum(0).flatten()
    return error_I


METHOD = LinearMethod(config=Owq, needs=frozenset({Statistic.HESSIAN}), compress=compress)
