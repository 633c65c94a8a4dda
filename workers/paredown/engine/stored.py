"""Linears as an artifact stores them where it is not one dense matrix: what all such forms can do.

The integer grid is in quantized.py; the forms that only the native format holds are in compact.py.
Shapes: O out_features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from paredown.engine.activations import ActivationGrid


@dataclass(frozen=True, eq=False)
class StoredLinear(ABC):
    """Fields are tensors, or settings that JSON can hold. A tensor that has a row for each output row says so in its
    name, whose shape begins with O."""

    kind: ClassVar[str]

    @abstractmethod
    def dequantized(self) -> Tensor:
        """weight_OI in the storage dtype: what the artifact gives back."""

    @property
    @abstractmethod
    def stored_bits(self) -> float:
        """Bits for each weight, with all that is stored beside its codes."""

    @property
    def activations(self) -> ActivationGrid | None:
        """How the inputs are rounded, where they are."""
        return None

    @property
    def row_factors(self) -> dict[str, Tensor]:
        """The tensors that, divided by a number in each row, divide the weight's rows; none where that cannot be."""
        return {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._fields().items() if isinstance(value, Tensor)}

    @property
    def settings(self) -> dict[str, Any]:
        """All fields that hold no tensor, so that both together make the same linear again."""
        return {name: value for name, value in self._fields().items() if not isinstance(value, Tensor)}

    def rows(self, start: int, count: int) -> Self:
        """The part that belongs to some of the rows: linears solved together are taken apart with it."""
        # What belongs to all rows each part has for itself: files hold no tensor twice under one memory.
        return self._changed(lambda tensor: tensor[start : start + count], torch.clone)

    def where(self, chosen_O: Tensor, other: Self) -> Self:
        """The rows chosen of this one, the rest of another of the same kind and settings; all tensors are by row."""
        others = other.tensors
        return replace(
            self,
            **{name: torch.where(chosen_O.unsqueeze(1), mine, others[name]) for name, mine in self.tensors.items()},
        )

    def reordered(self, order_O: Tensor) -> Self:
        """The rows in another order."""
        return self._changed(lambda tensor: tensor[order_O], lambda tensor: tensor)

    def to(self, device: torch.device) -> Self:
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _changed(self, by_row: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]) -> Self:
        changed = {
            name: (by_row if name.rpartition("_")[2].startswith("O") else other)(tensor)
            for name, tensor in self.tensors.items()
        }
        return replace(self, **changed)
