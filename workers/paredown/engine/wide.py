"""Linears in bfloat16 on processors that have no units for it.

torch's own product of bfloat16 is many times slower there than that of float32. Multiplied in float32 and rounded once,
the product is what such units give: they too sum in float32. Hidden states and weights stay in bfloat16.
Shapes: O out_features, I in_features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

# Weights that are there in float32 at once; a head has a row for each word of the vocabulary.
_PANEL_WEIGHTS = 2**24


def widen_linears(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a model's linears multiply in float32 where their own number type is slow on this machine's processor."""
    if dtype != torch.bfloat16 or multiplies_bfloat16():
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = _WideLinear
        elif isinstance(module, Conv1D):
            module.__class__ = _WideConv1D


def multiplies_bfloat16() -> bool:
    is_there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _WideLinear(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) if inputs.is_cuda else _product(inputs, self.weight, self.bias)


class _WideConv1D(Conv1D):  # type: ignore[misc]  # transformers gives no type
    """Its weight is weight_IO."""

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = super().forward(inputs) if inputs.is_cuda else _product(inputs, self.weight.T, self.bias)
        return output


def _product(inputs: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """In float32, some rows of the weight at a time; then in the number type of the inputs."""
    wide, step = inputs.float(), max(1, _PANEL_WEIGHTS // weight_OI.shape[1])
    panels = []
    for start in range(0, len(weight_OI), step):
        rows = slice(start, start + step)
        bias = None if bias_O is None else bias_O[rows].float()
        panels.append(functional.linear(wide, weight_OI[rows].float(), bias).to(inputs.dtype))
    return panels[0] if len(panels) == 1 else torch.cat(panels, dim=-1)
