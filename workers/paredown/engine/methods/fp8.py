"""FP8: weights and activations as float8_e4m3.

Paper: Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433. Weights have a scale for each output row,
which brings the largest of them to the format's largest number, 448. Activations have one for each token, found as it
comes (`fp8`), or one for all, from the calibration tokens (`fp8-static`).
Shapes: O out_features, I in_features.
"""

import torch

from paredown.contracts.recipes import Fp8, Fp8Static
from paredown.engine.activations import ActivationGrid, static_scale
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.statistics import InputStatistics, Statistic

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def compress(linear: LinearWeight, _inputs: InputStatistics, _config: Fp8) -> None:
    _round(linear, ActivationGrid("float"))


def compress_static(linear: LinearWeight, inputs: InputStatistics, _config: Fp8Static) -> None:
    _round(linear, ActivationGrid("float", static_scale(inputs.peak_I.max(), "float", linear.storage_dtype)))


def _round(linear: LinearWeight, activations: ActivationGrid) -> None:
    scales_O1 = (linear.weight_OI.abs().amax(1, keepdim=True) / _LARGEST).to(linear.storage_dtype)
    # A row of zeros, or one so small that its scale underflows, is zeros on any scale.
    scales_O1.masked_fill_(scales_O1 <= 0, 1)
    codes_OI = (linear.weight_OI / scales_O1.float()).clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    linear.quantize(QuantizedLinear(codes_OI, scales_O1, None, 8, None, symmetric=True).with_activations(activations))


METHOD = LinearMethod(config=Fp8, needs=frozenset(), compress=compress)
STATIC = LinearMethod(config=Fp8Static, needs=frozenset({Statistic.PEAK}), compress=compress_static)
