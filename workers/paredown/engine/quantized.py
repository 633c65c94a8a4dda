"""A linear layer on a grid: codes, scales and zero points, and the dense weight they stand for.

Shapes: O out_features, I in_features, G groups along the input (1 where a whole row shares one scale).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from paredown.engine.activations import ActivationGrid
from paredown.engine.stored import StoredLinear


@dataclass(frozen=True, eq=False)
class QuantizedLinear(StoredLinear):
    """Grid codes of one linear.

    `codes_OI` are signed, −2^(bits-1) … 2^(bits-1)−1 as int8, where the grid is symmetric; else 0 … 2^bits−1 as uint8;
    or they are numbers of type float8_e4m3fn. `scales_OG` are in the artifact's storage dtype; `zeros_OG` (uint8) only
    where the grid is not symmetric. `activation_type` where the inputs are rounded too; `activation_scale` where one is
    for all tokens.
    """

    kind: ClassVar[str] = "grid"

    codes_OI: Tensor
    scales_OG: Tensor
    zeros_OG: Tensor | None
    bits: int
    group_size: int | None
    symmetric: bool
    # GGUF's readers multiply in float32; compressed-tensors' in the scales' dtype.
    wide: bool = False
    activation_type: Literal["int", "float"] | None = None
    activation_scale: Tensor | None = None

    @property
    def activations(self) -> ActivationGrid | None:
        return self.activation_type and ActivationGrid(self.activation_type, self.activation_scale)

    def with_activations(self, grid: ActivationGrid) -> "QuantizedLinear":
        """The same codes, with inputs that are rounded to the grid."""
        return replace(self, activation_type=grid.type, activation_scale=grid.scale)

    def dequantized(self) -> Tensor:
        """weight_OI, rounded at the same places as the format's reader rounds."""
        if self.wide:
            return self._dequantized_wide()
        dtype = self.scales_OG.dtype
        codes_OGS = self.codes_OI.to(dtype).view(*self.scales_OG.shape, -1)
        if self.zeros_OG is not None:
            codes_OGS -= self.zeros_OG.to(dtype).unsqueeze(-1)
        codes_OGS *= self.scales_OG.unsqueeze(-1)
        return codes_OGS.flatten(1)

    def _dequantized_wide(self) -> Tensor:
        codes_OGS = self.codes_OI.float().view(*self.scales_OG.shape, -1)
        codes_OGS *= self.scales_OG.float().unsqueeze(-1)
        if (minima_OG := self.minima_OG) is not None:
            codes_OGS += minima_OG.float().unsqueeze(-1)
        return codes_OGS.flatten(1)

    @property
    def minima_OG(self) -> Tensor | None:
        """What code 0 stands for, as GGUF stores it; None where the grid is symmetric."""
        if self.zeros_OG is None:
            return None
        return (-self.zeros_OG.float() * self.scales_OG.float()).to(self.scales_OG.dtype)

    def where(self, chosen_O: Tensor, other: "QuantizedLinear") -> "QuantizedLinear":
        """The rows chosen of this one, the rest of another on the same kind of grid."""
        rows_O1 = chosen_O.unsqueeze(1)
        zeros_OG = None
        if self.zeros_OG is not None and other.zeros_OG is not None:
            zeros_OG = torch.where(rows_O1, self.zeros_OG, other.zeros_OG)
        return QuantizedLinear(
            torch.where(rows_O1, self.codes_OI, other.codes_OI),
            torch.where(rows_O1, self.scales_OG, other.scales_OG),
            zeros_OG,
            self.bits,
            self.group_size,
            self.symmetric,
        )

    @property
    def stored_bits(self) -> float:
        """Bits for each weight, scales and zero points included."""
        number_bits = self.scales_OG.element_size() * 8
        # GGUF stores a minimum where compressed-tensors stores a zero point.
        zero_bits = 0 if self.zeros_OG is None else number_bits if self.wide else self.bits
        scale_bits = number_bits + zero_bits
        return self.bits + scale_bits * self.scales_OG.numel() / self.codes_OI.numel()
