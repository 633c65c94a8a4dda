"""SmoothQuant: weights and activations as 8-bit integers, with the activations' outliers moved into the weights.

Paper: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
arXiv:2211.10438. A channel's scale is max|x|^α / max|w|^(1-α); what produces the input takes it (engine/scaling.py).
The paper smooths the inputs that norms produce; here all that can be are. Weights have a scale for each output row,
activations one for each token, found as it comes, or one for all, from the calibration tokens.
Shapes: O out_features, I in_features.
"""

import torch
from torch import Tensor

from paredown.contracts.recipes import Rtn, SmoothQuant
from paredown.engine.activations import ActivationGrid, static_scale
from paredown.engine.grid import fit_grid, quantized_linear
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics, Statistic

_ROWS = Rtn(bits=8, group_size=None, scale_search="min_max")


def compress(linear: LinearWeight, inputs: InputStatistics, config: SmoothQuant) -> None:
    scale_I = None
    weight_OI, peak_I = linear.weight_OI, inputs.peak_I
    if linear.fold is not None:
        scale_I = linear.fold.storable(channel_scale(linear.fold.shared(peak_I), weight_OI, config.alpha))
        weight_OI, peak_I = weight_OI * scale_I, peak_I / scale_I
    grid = fit_grid(weight_OI.unsqueeze(1), _ROWS, linear.storage_dtype)
    codes_OI = grid.codes(weight_OI.unsqueeze(1)).squeeze(1)
    dynamic = config.activations == "dynamic"
    activations = ActivationGrid("int", None if dynamic else static_scale(peak_I.max(), "int", linear.storage_dtype))
    linear.quantize(quantized_linear(codes_OI, grid, _ROWS, activations), scale_I)


def channel_scale(peak_I: Tensor, weight_OI: Tensor, alpha: float) -> Tensor:
    """max|x|^α / max|w|^(1-α); 1 for channels that were silent or that nothing reads."""
    largest_I = weight_OI.abs().amax(0)
    scale_I = peak_I.pow(alpha) / largest_I.pow(1 - alpha)
    return torch.where((peak_I > 0) & (largest_I > 0), scale_I, 1.0).clamp_(min=1e-5)


METHOD = LinearMethod(config=SmoothQuant, needs=frozenset({Statistic.PEAK}), compress=compress, scales=True)
