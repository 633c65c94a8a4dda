"""Scales moved between the input channels of linears and what produces them: the model's function stays the same.

A linear reads x/s where it read x, and its weight is W·s. What made x is a norm, whose weight and bias are divided by
s, or another linear of the same recipe, whose rows' scales and biases are. The stored model is a stock one.
Shapes: I input channels, R rows of the producer, G groups along its input.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paredown.engine.stored import StoredLinear

# The share of a number that may be lost when it is stored divided: as much as bfloat16 loses at most.
_LOST = 2.0**-8


@dataclass(frozen=True)
class Fold:
    """The producer of one input, among the finished parts of its block, which `divide` changes."""

    name: str
    rows_I: Tensor  # the row that each input channel reads
    dense: dict[str, Tensor]
    quantized: dict[str, StoredLinear]
    # What is added to a norm's weight before it multiplies.
    offset: float = 0.0

    def shared(self, values_I: Tensor) -> Tensor:
        """Each channel's mean over all channels that read its row: they can only have one scale."""
        rows_I = self.rows_I.to(values_I.device)
        sums_R = torch.zeros(int(rows_I.max()) + 1, device=values_I.device).index_add_(0, rows_I, values_I)
        counts_R = torch.zeros_like(sums_R).index_add_(0, rows_I, torch.ones_like(values_I))
        return sums_R[rows_I] / counts_R[rows_I]

    def largest(self, values_I: Tensor) -> Tensor:
        """Each channel's largest over all channels that read its row."""
        rows_I = self.rows_I.to(values_I.device)
        largest_R = torch.zeros(int(rows_I.max()) + 1, device=values_I.device)
        return largest_R.scatter_reduce_(0, rows_I, values_I, "amax")[rows_I]

    def storable(self, scale_I: Tensor) -> Tensor:
        """The nearest scale that the producer can take in its number type; 1 where it can take none.

        Where one number makes a row (a norm's weight, a scale for each row of codes) that number is rounded first and
        the scale follows from it, so that rounding changes nothing.
        """
        stored_RG = self._stored_RG()
        factor_RG = stored_RG.float() + self.offset
        scale_R = self._by_row(scale_I)
        divided_RG = (factor_RG / scale_R.unsqueeze(1) - self.offset).to(stored_RG.dtype).float() + self.offset
        if stored_RG.shape[1] == 1:
            exact_R = (factor_RG / divided_RG).squeeze(1)
            # A weight of zero stays zero, whatever the scale. Beside an offset numbers lie far apart: no loss either.
            scale_R = torch.where(exact_R.isnan(), scale_R, exact_R)
            fits_R = exact_R.isnan() | (exact_R.isfinite() & (exact_R > 0))
        else:
            # Below the smallest normal number precision is lost. A K-quant's lie there, and some are enough for it.
            lost_RG = (divided_RG * scale_R.unsqueeze(1) - factor_RG).abs()
            fits_R = (lost_RG <= _LOST * factor_RG.abs()).all(1)
        return torch.where(fits_R, scale_R, 1.0)[self.rows_I].to(scale_I.device)

    def divide(self, scale_I: Tensor) -> None:
        """Take the scale off what the producer makes."""
        scale_R = self._by_row(scale_I)
        if self.name in self.quantized:
            linear = self.quantized[self.name]
            divided = {
                name: (factor_RG.float() / scale_R.unsqueeze(1)).to(factor_RG.dtype)
                for name, factor_RG in linear.row_factors.items()
            }
            self.quantized[self.name] = replace(linear, **divided)
        else:
            self._divide_vector(f"{self.name}.weight", scale_R, self.offset)
        if f"{self.name}.bias" in self.dense:
            self._divide_vector(f"{self.name}.bias", scale_R)

    def _divide_vector(self, name: str, scale_R: Tensor, offset: float = 0.0) -> None:
        values_R = self.dense[name]
        self.dense[name] = ((values_R.float() + offset) / scale_R - offset).to(values_R.dtype)

    def _stored_RG(self) -> Tensor:
        if self.name in self.quantized:
            factors = self.quantized[self.name].row_factors
            assert factors, "who scales is the recipe's only quantizer"
            return torch.cat(list(factors.values()), dim=1)
        return self.dense[f"{self.name}.weight"].unsqueeze(1)

    def _by_row(self, scale_I: Tensor) -> Tensor:
        rows = self._stored_RG().shape[0]
        return torch.ones(rows).index_copy_(0, self.rows_I, scale_I.cpu())
