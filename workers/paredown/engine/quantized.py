"""A linear layer on an integer grid: codes, scales and zero points, and the dense weight they stand for.

Shapes: O out_features, I in_features, G groups along the input (1 where a whole row shares one scale).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """Grid codes of one linear.

    `codes_OI` are signed, −2^(bits-1) … 2^(bits-1)−1 as int8, where the grid is symmetric; else 0 … 2^bits−1 as uint8.
    `scales_OG` are in the artifact's storage dtype; `zeros_OG` (uint8) only where the grid is not symmetric.
    """

    codes_OI: Tensor
    scales_OG: Tensor
    zeros_OG: Tensor | None
    bits: int
    group_size: int | None
    symmetric: bool

    def dequantized(self) -> Tensor:
        """weight_OI in the storage dtype, rounded at the same places as compressed-tensors' decompression rounds."""
        dtype = self.scales_OG.dtype
        codes_OGS = self.codes_OI.to(dtype).view(*self.scales_OG.shape, -1)
        if self.zeros_OG is not None:
            codes_OGS -= self.zeros_OG.to(dtype).unsqueeze(-1)
        codes_OGS *= self.scales_OG.unsqueeze(-1)
        return codes_OGS.flatten(1)

    def rows(self, start: int, count: int) -> "QuantizedLinear":
        """The part that belongs to some of the rows: linears solved together are taken apart with it."""
        rows = slice(start, start + count)
        return QuantizedLinear(
            self.codes_OI[rows],
            self.scales_OG[rows],
            None if self.zeros_OG is None else self.zeros_OG[rows],
            self.bits,
            self.group_size,
            self.symmetric,
        )

    def reordered(self, order_O: Tensor) -> "QuantizedLinear":
        """The rows in another order."""
        return QuantizedLinear(
            self.codes_OI[order_O],
            self.scales_OG[order_O],
            None if self.zeros_OG is None else self.zeros_OG[order_O],
            self.bits,
            self.group_size,
            self.symmetric,
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
        return QuantizedLinear(
            self.codes_OI.to(device),
            self.scales_OG.to(device),
            None if self.zeros_OG is None else self.zeros_OG.to(device),
            self.bits,
            self.group_size,
            self.symmetric,
        )

    @property
    def stored_bits(self) -> float:
        """Bits for each weight, scales and zero points included."""
        scale_bits = self.scales_OG.element_size() * 8 + (self.bits if self.zeros_OG is not None else 0)
        return self.bits + scale_bits * self.scales_OG.numel() / self.codes_OI.numel()
