"""Inputs of linears on an eight-bit grid: rounded in the forward by the functions that the artifact's reader calls.

Shapes: T tokens, I input channels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from torch import Tensor, nn

from paredown.engine.errors import RecipeUnfit

# Between the ends of each grid, in steps: the reader's 2⁸ - 1 integers, and twice the largest float8_e4m3.
STEPS = {"int": 255.0, "float": 896.0}


@dataclass(frozen=True, eq=False)
class ActivationGrid:
    """Signed integers or float8_e4m3, symmetric. `scale`, of one element, is for all tokens; None: each has its own."""

    type: Literal["int", "float"]
    scale: Tensor | None = None

    @property
    def arguments(self) -> QuantizationArgs:
        """As the format describes it."""
        return QuantizationArgs(
            num_bits=8,
            type=QuantizationType(self.type),
            strategy=QuantizationStrategy.TOKEN if self.scale is None else QuantizationStrategy.TENSOR,
            dynamic=self.scale is None,
        )

    def rounded(self, inputs: Tensor) -> Tensor:
        """The nearest values on the grid. Raises RecipeUnfit for an input whose sequences are flattened together."""
        if self.scale is not None:
            static: Tensor = fake_quantize(inputs, self.scale.to(inputs), None, self.arguments)
            return static
        if inputs.ndim < 3:
            raise RecipeUnfit(
                "A layer of this model reads its tokens flattened, where the format's reader would find one scale for "
                "all of them; use static activations, or skip that layer.",
                field="recipe",
            )
        scale, zero_point = compute_dynamic_scales_and_zp(inputs, self.arguments, nn.Identity())
        dynamic: Tensor = fake_quantize(inputs, scale, zero_point, self.arguments)
        return dynamic


def static_scale(peak: Tensor, kind: Literal["int", "float"], storage_dtype: torch.dtype) -> Tensor:
    """The scale, of one element, whose grid ends at the largest absolute value seen."""
    return (peak / (STEPS[kind] / 2)).clamp(min=torch.finfo(storage_dtype).tiny).to(storage_dtype).reshape(1)


@runtime_checkable
class RoundsInputs(Protocol):
    """A model on disk some of whose linears' inputs are rounded."""

    def activations(self, linear_name: str) -> ActivationGrid | None:
        """How the inputs of a linear (named without `.weight`) are rounded, where they are."""


def roundings(model: object, names: Iterable[str]) -> dict[str, Callable[[Tensor], Tensor]]:
    """What the inputs of a model's linears go through, by name."""
    if not isinstance(model, RoundsInputs):
        return {}
    return {name: grid.rounded for name in names if (grid := model.activations(name))}


@contextmanager
def entering(model: nn.Module, names: list[str], changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Linears' inputs go through `changes`, by name, as it is when they arrive."""

    def enter(name: str, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (changes[name](args[0]), *args[1:]) if name in changes else None

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _module, args, name=name: enter(name, args))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
