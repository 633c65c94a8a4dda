"""A linear layer on a grid: codes, scales and zero points, and the dense weight they stand for.

Shapes: O out_features, I in_features, G groups along the input (1 where a whole row shares one scale), B super-blocks.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from paredown.contracts.recipes.quantization import K_QUANTS, SUPER_BLOCK
from paredown.engine.activations import ActivationGrid
from paredown.engine.stored import StoredLinear


@dataclass(frozen=True, eq=False)
class QuantizedLinear(StoredLinear):
    """Grid codes of one linear.

    `codes_OI` are signed, −2^(bits-1) … 2^(bits-1)−1 as int8, where the grid is symmetric; else 0 … 2^bits−1 as uint8;
    or they are numbers of type float8_e4m3fn. `scales_OG` are in the artifact's storage dtype; `zeros_OG` only where
    the grid is not symmetric: uint8, and where `wide` any number in float32. `activation_type` where the inputs are
    rounded too; `activation_scale` where one is for all tokens.
    """

    kind: ClassVar[str] = "grid"

    codes_OI: Tensor
    scales_OG: Tensor
    zeros_OG: Tensor | None
    bits: int
    group_size: int | None
    symmetric: bool
    # GGUF's readers multiply in float32 and add a minimum; compressed-tensors' do all in the scales' dtype.
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

    @property
    def row_factors(self) -> dict[str, Tensor]:
        return {"scales_OG": self.scales_OG}

    @property
    def stored_bits(self) -> float:
        """Bits for each weight, scales and zero points included."""
        number_bits = self.scales_OG.element_size() * 8
        # GGUF stores a minimum where compressed-tensors stores a zero point.
        zero_bits = 0 if self.zeros_OG is None else number_bits if self.wide else self.bits
        scale_bits = number_bits + zero_bits
        return self.bits + scale_bits * self.scales_OG.numel() / self.codes_OI.numel()


@dataclass(frozen=True, eq=False)
class KQuantLinear(StoredLinear):
    """Codes of one linear in super-blocks of 256 weights: a group's scale and minimum are codes too.

    A weight is (super-scale · scale's code) · code − super-minimum · minimum's code, in float32 as ggml computes it.
    Groups have 16 or 32 weights. `codes_OI` and `scale_codes_OG` are int8 and signed where the grid is symmetric, which
    has no minima; else all codes are uint8. Super-scales and -minima are float16.
    """

    kind: ClassVar[str] = "k-quant"

    codes_OI: Tensor
    scale_codes_OG: Tensor
    minimum_codes_OG: Tensor | None
    super_scales_OB: Tensor
    super_minima_OB: Tensor | None
    bits: int

    def dequantized(self) -> Tensor:
        scales_OG, minima_OG = decoded(self.scale_codes_OG, self.super_scales_OB), None
        if self.minimum_codes_OG is not None and self.super_minima_OB is not None:
            minima_OG = decoded(self.minimum_codes_OG, self.super_minima_OB)
        codes_OGS = self.codes_OI.float().view(*scales_OG.shape, -1)
        codes_OGS *= scales_OG.unsqueeze(-1)
        if minima_OG is not None:
            codes_OGS -= minima_OG.unsqueeze(-1)
        return codes_OGS.flatten(1)

    @property
    def stored_bits(self) -> float:
        return K_QUANTS[self.bits][2] * 8 / SUPER_BLOCK

    @property
    def row_factors(self) -> dict[str, Tensor]:
        factors = {"super_scales_OB": self.super_scales_OB}
        return factors if self.super_minima_OB is None else factors | {"super_minima_OB": self.super_minima_OB}


def decoded(codes_OG: Tensor, super_OB: Tensor) -> Tensor:
    """Scales or minima of groups, in float32."""
    codes_OBG = codes_OG.float().view(*super_OB.shape, -1)
    return (codes_OBG * super_OB.float().unsqueeze(-1)).flatten(1)


GridLinear = QuantizedLinear | KQuantLinear
