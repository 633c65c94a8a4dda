"""The shape of a method: what it is given, what it may change, and what it declares of itself.

Shapes: O out_features, I in_features.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paredown.contracts.recipes import Stage
from paredown.contracts.report import StageReport
from paredown.engine.scaling import Fold
from paredown.engine.shuffle import Exchange
from paredown.engine.statistics import InputStatistics, Statistic
from paredown.engine.stored import StoredLinear
from paredown.engine.weights import ModelReader


@dataclass(eq=False)
class LinearWeight:
    """The weight of one linear on its way through a recipe's stages.

    Where a method is `rowwise`, the rows of all linears that share the input lie below each other in one LinearWeight.
    """

    name: str
    weight_OI: Tensor  # float32, for the input as it is; a stage changes it in place or replaces it
    storage_dtype: torch.dtype  # of scales
    # True where a stage set the weight to zero for good; later stages keep it zero.
    pruned_OI: Tensor | None = None
    # Set by the stage that quantizes; weight_OI is then what it dequantizes to.
    quantized: StoredLinear | None = None
    # The format's readers multiply codes and scales in float32.
    wide: bool = False
    # Which input channels may change places, where any may.
    exchange: Exchange | None = None
    # The order that a stage gave them: weight_OI and all of the above are in it.
    order_BC: Tensor | None = None

    def reorder(self, order_BC: Tensor) -> None:
        """Put the input channels of each of the exchange's blocks into another order, once."""
        assert self.exchange is not None
        assert self.order_BC is None
        assert self.quantized is None
        order_I = self.exchange.columns(order_BC)
        self.order_BC = order_BC
        self.weight_OI = self.weight_OI[:, order_I]
        self.pruned_OI = None if self.pruned_OI is None else self.pruned_OI[:, order_I]

    def inputs(self, statistics: InputStatistics) -> InputStatistics:
        """Statistics of the inputs, in this weight's order of channels."""
        if self.order_BC is None:
            return statistics
        assert self.exchange is not None
        return statistics.reordered(self.exchange.columns(self.order_BC))

    def in_place(self, weight_OI: Tensor) -> Tensor:
        """A weight in this one's order of channels, in the model's own."""
        if self.order_BC is None:
            return weight_OI
        assert self.exchange is not None
        return torch.empty_like(weight_OI).index_copy_(1, self.exchange.columns(self.order_BC), weight_OI)

    # Where the input's channels can be scaled, what takes the scale; the same for all linears that share the input.
    fold: Fold | None = None
    # The codes stand for weight_OI × scale_I: the input will come divided by it. Set by the stage that quantizes.
    scale_I: Tensor | None = None

    def aim(self, weight_OI: Tensor) -> None:
        """Go on from another weight, but for what is pruned already."""
        self.weight_OI = weight_OI if self.pruned_OI is None else weight_OI.masked_fill_(self.pruned_OI, 0)

    def prune(self, mask_OI: Tensor) -> None:
        """Set weights to zero for good."""
        self.weight_OI.masked_fill_(mask_OI, 0)
        self.pruned_OI = mask_OI if self.pruned_OI is None else self.pruned_OI | mask_OI

    def quantize(self, quantized: StoredLinear, scale_I: Tensor | None = None) -> None:
        """Store the weight, its columns multiplied by the scale, as codes; from here on it is what they stand for."""
        self.quantized = quantized
        self.weight_OI = quantized.dequantized().float()
        if scale_I is not None:
            self.scale_I = scale_I
            self.weight_OI /= scale_I


Compress = Callable[[LinearWeight, InputStatistics, Any], None]
JointCompress = Callable[[LinearWeight, InputStatistics, Any, Any], None]


@dataclass(frozen=True)
class LinearMethod:
    """A method that sees one linear and the statistics of its inputs.

    `rowwise`: no output row's result depends on another's, so linears that share an input may be solved as one.
    `joint`: by the method of the next stage, what solves both stages at once.
    `scales`: it may scale the input's channels, where the linears' `fold` says what takes the scale.
    """

    config: type[Stage]
    needs: AbstractSet[Statistic]
    compress: Compress
    rowwise: bool = True
    joint: Mapping[str, JointCompress] = field(default_factory=dict)
    scales: bool = False


@dataclass(frozen=True)
class ModelWork:
    """What a model method is given beside the model.

    `tokens_NT` are the calibration's, and of a stage that trains those that it trains on. `base` is the model that the
    recipe's first stage was given, and `origins` says which of its blocks each block of this stage's model is.
    `directory` is the stage's own. What it keeps there under `identity`, the hash of all that decides its result, is
    there again when the run is resumed; a resumed stage must end with the same bytes.
    """

    stage: int
    base: ModelReader
    origins: tuple[int, ...]
    tokens_NT: Tensor
    device: torch.device
    dtype: torch.dtype
    directory: Path
    identity: str
    on_progress: Callable[[int, int], None]
    should_drain: Callable[[], bool]


@dataclass(frozen=True)
class ModelMethod:
    """A method that looks across blocks: it makes one model of another, before any linear is compressed.

    The model that it returns is read as lazily as the one that it was given, so memory stays that of one block. Raises
    EngineError subclasses, and Drained once `should_drain` says so. `passes` is about how many forward passes over its
    tokens it takes, or says so of a stage and of how many sequences it is given: for the time left.
    """

    config: type[Stage]
    apply: Callable[[ModelReader, ModelWork, Any], tuple[ModelReader, StageReport]]
    passes: float | Callable[[Any, int], float] = 1

    def passes_over(self, stage: Stage, sequences: int) -> float:
        return self.passes if isinstance(self.passes, int | float) else self.passes(stage, sequences)


@dataclass(frozen=True)
class AssigningMethod:
    """A method that looks across blocks and says which stage takes its place on each linear, by the linear's name.

    It names every linear; those that share an input get the same stage, which may skip some. What it says decides the
    bytes of every block, and is found again when the run is resumed. Raises as a ModelMethod does.
    """

    config: type[Stage]
    assign: Callable[[ModelReader, ModelWork, Any], tuple[Mapping[str, Stage], StageReport]]
    passes: float = 1

    def passes_over(self, _stage: Stage, _sequences: int) -> float:
        return self.passes


def joined(linears: list[LinearWeight]) -> LinearWeight:
    """The rows of several linears that share an input, below each other."""
    [storage_dtype] = {linear.storage_dtype for linear in linears}
    assert all(linear.quantized is None for linear in linears), "a weight is quantized once, by the last stage"
    assert all(linear.order_BC is None for linear in linears), "linears that share an input share its order"
    pruned = [
        torch.zeros_like(linear.weight_OI, dtype=torch.bool) if linear.pruned_OI is None else linear.pruned_OI
        for linear in linears
    ]
    return LinearWeight(
        name=", ".join(linear.name for linear in linears),
        weight_OI=torch.cat([linear.weight_OI for linear in linears]),
        storage_dtype=storage_dtype,
        pruned_OI=torch.cat(pruned) if any(linear.pruned_OI is not None for linear in linears) else None,
        wide=linears[0].wide,
        fold=linears[0].fold,
    )


def take_apart(joint: LinearWeight, linears: list[LinearWeight]) -> None:
    """Give each linear its rows of the joint result."""
    start = 0
    for linear in linears:
        count = linear.weight_OI.shape[0]
        linear.weight_OI = joint.weight_OI[start : start + count]
        linear.pruned_OI = None if joint.pruned_OI is None else joint.pruned_OI[start : start + count]
        linear.quantized = None if joint.quantized is None else joint.quantized.rows(start, count)
        linear.scale_I = joint.scale_I
        start += count
