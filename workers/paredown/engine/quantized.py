"""A linear layer on a grid: codes, scales and zero points, and the dense weight they stand for.

Shapes: O out_features, I in_features, G groups along the input (1 where a whole row shares one scale).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paredown.engine.activations import ActivationGrid


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """Grid codes of one linear.

    `codes_OI` are signed, −2^(bits-1) … 2^(bits-1)−1 as int8, where the grid is symmetric; else 0 … 2^bits−1 as uint8;
    or they are numbers of type float8_e4m3fn. `scales_OG` are in the artifact's storage dtype; `zeros_OG` (uint8) only
    where the grid is not symmetric. `activations` where the inputs are rounded too.
    """

    codes_OI: Tensor
    scales_OG: Tensor
    zeros_OG: Tensor | None
    bits: int
    group_size: int | None
    symmetric: bool
    # GGUF's readers multiply in float32; compressed-tensors' in the scales' dtype.
    wide: bool = False
    activations: ActivationGrid | None = None

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

    def rows(self, start: int, count: int) -> "QuantizedLinear":
        """The part that belongs to some of the rows: linears solved together are taken apart with it."""
        rows = slice(start, start + count)
        return self._with(lambda part: part[rows])

    def reordered(self, order_O: Tensor) -> "QuantizedLinear":
        """The rows in another order."""
        return replace(
            self,
            codes_OI=self.codes_OI[order_O],
            scales_OG=self.scales_OG[order_O],
            zeros_OG=None if self.zeros_OG is None else self.zeros_OG[order_O],
        )

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

    def to(self, device: torch.device) -> "QuantizedLinear":
        return self._with(lambda part: part.to(device))

    def _with(self, change: Callable[[Tensor], Tensor]) -> "QuantizedLinear":
        zeros_OG = None if self.zeros_OG is None else change(self.zeros_OG)
        return replace(self, codes_OI=change(self.codes_OI), scales_OG=change(self.scales_OG), zeros_OG=zeros_OG)

    @property
    def stored_bits(self) -> float:
        """Bits for each weight, scales and zero points included."""
        number_bits = self.scales_OG.element_size() * 8
        # GGUF stores a minimum where compressed-tensors stores a zero point.
        zero_bits = 0 if self.zeros_OG is None else number_bits if self.wide else self.bits
        scale_bits = number_bits + zero_bits
        return self.bits + scale_bits * self.scales_OG.numel() / self.codes_OI.numel()
