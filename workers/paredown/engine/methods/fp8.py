"""FP8: weights and activations as float8_e4m3.

Paper: Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433. Weights have a scale for each output row,
which brings the largest of them to the format's largest number, 448. Activations have one for each token, found as it
comes (`fp8`), or one for all, from the calibration tokens (`fp8-static`).
`fp8-gptq` rounds the weights as GPTQ (Frantar et al., arXiv:2210.17323) does, on these numbers instead of a uniform
grid: the columns with the largest activations first, and those still to come absorb the error of each.
Shapes: O out_features, I in_features.
"""

import torch
from torch import Tensor

from paredown.contracts.recipes import Fp8, Fp8Gptq, Fp8Static
from paredown.engine.activations import ActivationGrid, static_scale
from paredown.engine.columns import ordered, restored, sweep
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.statistics import InputStatistics, Statistic

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def compress(linear: LinearWeight, _inputs: InputStatistics, _config: Fp8) -> None:
    _store(linear, _codes(linear.weight_OI, _row_scales(linear)), ActivationGrid("float"))


def compress_static(linear: LinearWeight, inputs: InputStatistics, _config: Fp8Static) -> None:
    _store(linear, _codes(linear.weight_OI, _row_scales(linear)), _static(linear, inputs))


def compress_by_columns(linear: LinearWeight, inputs: InputStatistics, config: Fp8Gptq) -> None:
    """Raises HessianSingular."""
    upper_II, order_I = inputs.inverse_factor(config.damping, activation_order=True)
    scales_O = _row_scales(linear).squeeze(1)
    pruned_IO = None if linear.pruned_OI is None else ordered(linear.pruned_OI.T, order_I)
    weight_IO = ordered(linear.weight_OI.T, order_I)
    codes_IO = torch.empty_like(weight_IO)

    def settle(column: int, weight_O: Tensor) -> Tensor:
        if pruned_IO is not None:
            weight_O = weight_O.masked_fill(pruned_IO[column], 0)
        codes_IO[column] = _codes(weight_O, scales_O).float()
        return codes_IO[column].to(scales_O.dtype) * scales_O

    sweep(weight_IO, upper_II, settle)
    codes_OI = restored(codes_IO, order_I).T.contiguous().to(torch.float8_e4m3fn)
    _store(linear, codes_OI, ActivationGrid("float") if config.is_dynamic else _static(linear, inputs))


def _row_scales(linear: LinearWeight) -> Tensor:
    """scales_O1 as stored, under which each row's largest weight is the largest number."""
    scales_O1 = (linear.weight_OI.abs().amax(1, keepdim=True) / _LARGEST).to(linear.storage_dtype)
    # A row of zeros, or one so small that its scale underflows, is zeros on any scale.
    return scales_O1.masked_fill_(scales_O1 <= 0, 1)


def _codes(weight: Tensor, scales: Tensor) -> Tensor:
    return (weight / scales.float()).clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)


def _static(linear: LinearWeight, inputs: InputStatistics) -> ActivationGrid:
    return ActivationGrid("float", static_scale(inputs.peak_I.max(), "float", linear.storage_dtype))


def _store(linear: LinearWeight, codes_OI: Tensor, activations: ActivationGrid) -> None:
    scales_O1 = _row_scales(linear)
    linear.quantize(QuantizedLinear(codes_OI, scales_O1, None, 8, None, symmetric=True).with_activations(activations))


METHOD = LinearMethod(config=Fp8, needs=frozenset(), compress=compress)
STATIC = LinearMethod(config=Fp8Static, needs=frozenset({Statistic.PEAK}), compress=compress_static)
SOLVED = LinearMethod(
    config=Fp8Gptq, needs=frozenset({Statistic.HESSIAN, Statistic.PEAK}), compress=compress_by_columns
)
