"""SmoothQuant: weights and activations as 8-bit integers, with the activations' outliers moved into the weights.

Paper: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
arXiv:2211.10438. A channel's scale is max|x|^α / max|w|^(1-α); what produces the input takes it (engine/scaling.py).
The paper finds one α for a model by trying some on calibration text; here, unless one is given, each input has its own:
the one whose rounded weights and activations change the output of the linears that share it least, over a sample of
the calibration tokens. Each token's change counts by its share of the token's own output: a few tokens have outputs
hundreds of times as large as all others, and the next norm makes them equal.
The paper smooths the inputs that norms produce; here all that can be are. Smoothed weights round worse than weights as
they were, so unless asked not to the sweep of GPTQ (arXiv:2210.17323) makes up for that. Weights have a scale for each
output row, activations one for each token, found as it comes, or one for all, from the calibration tokens.
Shapes: O out_features, I in_features, T tokens of the sample, R rows of a part.
"""

import torch
from torch import Tensor

from paredown.contracts.recipes import Rtn, SmoothQuant
from paredown.engine.activations import ActivationGrid, static_scale
from paredown.engine.columns import Rounding, channel_importance, ordered, sweep
from paredown.engine.grid import fit_grid, quantized_linear
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.scaling import Fold
from paredown.engine.statistics import InputStatistics, Statistic

_ROWS = Rtn(bits=8, group_size=None, scale_search="min_max")
# Weights rounded at once when an α is tried, so that its temporaries stay small.
_CHUNK = 2**20


def compress(linear: LinearWeight, inputs: InputStatistics, config: SmoothQuant) -> None:
    """Raises HessianSingular."""
    peak_I, weight_OI, scale_I = inputs.peak_I, linear.weight_OI, None
    if linear.fold is not None:
        scale_I = best_scale(linear, linear.fold, inputs, config)
        peak_I, weight_OI, inputs = peak_I / scale_I, weight_OI * scale_I, inputs.divided(scale_I)
    grid = activation_grid(peak_I, config, linear.storage_dtype)
    if config.weights == "nearest":
        linear.quantize(rounded(weight_OI, grid, linear.storage_dtype), scale_I)
    else:
        linear.quantize(solved(linear, weight_OI, inputs, config.damping).with_activations(grid), scale_I)


def best_scale(linear: LinearWeight, fold: Fold, inputs: InputStatistics, config: SmoothQuant) -> Tensor:
    """The scale of the given α; else, of all that are tried, the one with the least output error."""
    # Query heads that share a value head have one scale: that of the largest input and weight among them.
    peak_I, largest_I = fold.largest(inputs.peak_I), fold.largest(linear.weight_OI.abs().amax(0))
    scales = [fold.storable(channel_scale(peak_I, largest_I, alpha)) for alpha in config.alphas]
    if len(scales) == 1:
        return scales[0]
    parts = torch.split(linear.weight_OI, max(1, _CHUNK // linear.weight_OI.shape[1]))
    exact = [inputs.sample_TI @ weight_RI.T for weight_RI in parts]
    # A token that makes nothing has no share to lose.
    energy_T = torch.stack([output_TR.square().sum(1) for output_TR in exact]).sum(0)
    energy_T.masked_fill_(energy_T == 0, torch.inf)

    def error(scale_I: Tensor) -> float:
        grid = activation_grid(inputs.peak_I / scale_I, config, linear.storage_dtype)
        entered_TI = grid.rounded((inputs.sample_TI / scale_I).unsqueeze(0)).squeeze(0)
        total = 0.0
        for weight_RI, exact_TR in zip(parts, exact, strict=True):
            stored = rounded(weight_RI * scale_I, grid, linear.storage_dtype)
            change_TR = entered_TI @ stored.dequantized().float().T - exact_TR
            total += float((change_TR.square().sum(1) / energy_T).sum())
        return total

    return min(scales, key=error)


def activation_grid(peak_I: Tensor, config: SmoothQuant, storage_dtype: torch.dtype) -> ActivationGrid:
    """How inputs with these peaks are rounded."""
    return ActivationGrid("int", None if config.is_dynamic else static_scale(peak_I.max(), "int", storage_dtype))


def rounded(weight_OI: Tensor, activations: ActivationGrid, storage_dtype: torch.dtype) -> QuantizedLinear:
    """The nearest integers, a scale for each row."""
    grid = fit_grid(weight_OI.unsqueeze(1), _ROWS, storage_dtype)
    return quantized_linear(grid.codes(weight_OI.unsqueeze(1)).squeeze(1), grid, _ROWS, activations)


def solved(linear: LinearWeight, weight_OI: Tensor, inputs: InputStatistics, damping: float) -> QuantizedLinear:
    """Integers found column by column, those with the largest activations first. Raises HessianSingular."""
    upper_II, order_I = inputs.inverse_factor(damping, activation_order=True)
    pruned_IO = None if linear.pruned_OI is None else ordered(linear.pruned_OI.T, order_I)
    rounding = Rounding(linear, _ROWS, order_I, channel_importance(inputs.energy_I), pruned_IO)
    rounding.fit_all(weight_OI)
    sweep(ordered(weight_OI.T, order_I), upper_II, rounding.settle)
    quantized = rounding.quantized()
    assert isinstance(quantized, QuantizedLinear), "only gguf holds K-quants"
    return quantized


def channel_scale(peak_I: Tensor, largest_I: Tensor, alpha: float) -> Tensor:
    """max|x|^α / max|w|^(1-α); 1 for channels that were silent or that nothing reads."""
    scale_I = peak_I.pow(alpha) / largest_I.pow(1 - alpha)
    return torch.where((peak_I > 0) & (largest_I > 0), scale_I, 1.0).clamp_(min=1e-5)


METHOD = LinearMethod(
    config=SmoothQuant,
    needs=frozenset({Statistic.HESSIAN, Statistic.PEAK, Statistic.SAMPLE}),
    compress=compress,
    scales=True,
)
