"""Linears in bfloat16 on processors that have no units for it.

torch multiplies bfloat16 there one number at a time, many times slower than float32. Multiplied in float32 and rounded
once, the product is what such units give: they too sum in float32. Hidden states and weights stay in bfloat16.
Shapes: O out_features, I in_features.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

# Weights that are there in float32 at once; a head has a row for each word of the vocabulary.
_PANEL_WEIGHTS = 2**24


def widen_linears(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a model's linears multiply in float32 where their own number type is slow on this machine's processor."""
    if dtype != torch.bfloat16 or _multiplies_bfloat16():
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = _WideLinear
        elif isinstance(module, Conv1D):
            module.__class__ = _WideConv1D


def _multiplies_bfloat16() -> bool:
    is_there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _WideLinear(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.device.type != "cpu":
            return super().forward(inputs)
        weight_OI, bias_O, wide = self.weight, self.bias, inputs.float()

        def product(rows: slice) -> Tensor:
            bias = None if bias_O is None else bias_O[rows].float()
            return functional.linear(wide, weight_OI[rows].float(), bias).to(inputs.dtype)

        return _in_panels(product, *weight_OI.shape)


class _WideConv1D(Conv1D):  # type: ignore[misc]  # transformers gives no type
    """Its weight is weight_IO."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.device.type != "cpu":
            untouched: Tensor = super().forward(inputs)
            return untouched
        wide = inputs.float()

        def product(rows: slice) -> Tensor:
            return functional.linear(wide, self.weight.T[rows].float(), self.bias[rows].float()).to(inputs.dtype)

        in_features, out_features = self.weight.shape
        return _in_panels(product, out_features, in_features)


def _in_panels(product: Callable[[slice], Tensor], out_features: int, in_features: int) -> Tensor:
    """A product for some rows of the weight at a time, side by side."""
    step = max(1, _PANEL_WEIGHTS // in_features)
    if step >= out_features:
        return product(slice(None))
    return torch.cat([product(slice(start, start + step)) for start in range(0, out_features, step)], dim=-1)
