"""AWQ: scale up the channels with the largest activations, so that rounding costs them less.

Paper: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv:2306.00978.
A channel's scale is its mean |x| to the power α, divided by the geometric mean of the largest and the smallest; of a
grid of α the one is kept whose rounded weights change the output least. As in the paper's code α is judged on plain
min-max grids, and what a group's range is cut to is searched afterwards by the error of its own share of the output.
Here the linears that share an input are judged by the sum of their output errors, exact from the Hessian and on evenly
spread rows, where the code runs the whole attention or MLP; and queries and keys are cut like all others, which it
leaves out. Of long rows with one scale the Hessian's diagonal alone says what a range loses.
What produces the input takes the scale's inverse (engine/scaling.py). Where nothing can, only the ranges are cut.
Shapes: O out_features, I in_features, G groups along the input, S weights of a group, R rows that judge scales.
"""

import torch
from torch import Tensor

from paredown.contracts.pieces import JUDGED_ROWS
from paredown.contracts.recipes import Awq
from paredown.engine.grid import fit_grid, grid_linear, group_width, quantized_linear
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.scaling import Fold
from paredown.engine.statistics import InputStatistics, Statistic

# Weights of the widest group whose range is searched by its whole Hessian: a row of 4096 took 40 times as long as its
# groups of 64 do. On drawn weights, of 512 and 1024, the diagonal alone left 6 to 9 % more squared error of the output.
_WIDEST = 1024


def compress(linear: LinearWeight, inputs: InputStatistics, config: Awq) -> None:
    """Raises GroupSizeUnfit."""
    out_features, in_features = linear.weight_OI.shape
    width = group_width(in_features, config, linear.name)
    scale_I = None if linear.fold is None else best_scale(linear, linear.fold, inputs, config, width)
    multiplier_I = torch.ones_like(linear.weight_OI[0]) if scale_I is None else scale_I
    weight_OGS = (linear.weight_OI * multiplier_I).view(out_features, -1, width)
    importance = _group_hessians(inputs, multiplier_I, width)
    if width > _WIDEST:
        importance = importance.diagonal(dim1=1, dim2=2)
    grid = fit_grid(weight_OGS, config, linear.storage_dtype, importance, wide=linear.wide)
    linear.quantize(grid_linear(grid.codes(weight_OGS).flatten(1), grid, config), scale_I)


def best_scale(linear: LinearWeight, fold: Fold, inputs: InputStatistics, config: Awq, width: int) -> Tensor:
    """The candidate with the least output error; the first, which is 1 everywhere, where none has less."""
    magnitude_I = fold.shared(inputs.magnitude_I)
    plain = config.model_copy(update={"scale_search": "min_max", "k_quant": False})
    weight_RI = linear.weight_OI[:: max(1, len(linear.weight_OI) // JUDGED_ROWS)]

    def error(scale_I: Tensor) -> float:
        weight_RGS = (weight_RI * scale_I).view(len(weight_RI), -1, width)
        grid = fit_grid(weight_RGS, plain, linear.storage_dtype)
        rounded = quantized_linear(grid.codes(weight_RGS).flatten(1), grid, plain)
        return inputs.output_energy(rounded.dequantized().float() / scale_I - weight_RI)

    steps = range(config.scale_steps)
    return min((fold.storable(channel_scale(magnitude_I, step / len(steps))) for step in steps), key=error)


def channel_scale(magnitude_I: Tensor, exponent: float) -> Tensor:
    """mean |x| to the power of the exponent, its extremes reciprocal."""
    # A channel that was silent in calibration says nothing; it is scaled as an average one.
    live_I = torch.where(magnitude_I > 0, magnitude_I, magnitude_I.mean())
    scale_I = live_I.pow(exponent).clamp_(min=1e-4)
    return scale_I / (scale_I.max() * scale_I.min()).sqrt()


def _group_hessians(inputs: InputStatistics, multiplier_I: Tensor, width: int) -> Tensor:
    """The Hessian's blocks on the diagonal, hessian_GSS, of the input as it will come: divided by the multiplier."""
    hessian_GSGS = inputs.hessian_II.view(-1, width, multiplier_I.numel() // width, width)
    hessian_GSS = hessian_GSGS.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    multiplier_GS = multiplier_I.view(-1, width)
    hessian_GSS = hessian_GSS / (multiplier_GS.unsqueeze(1) * multiplier_GS.unsqueeze(2))
    # Channels that were silent in calibration still count for something.
    diagonal_GS = hessian_GSS.diagonal(dim1=1, dim2=2)
    diagonal_GS += 0.01 * diagonal_GS.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
    return hessian_GSS


METHOD = LinearMethod(
    config=Awq, needs=frozenset({Statistic.HESSIAN, Statistic.MAGNITUDE}), compress=compress, scales=True
)
