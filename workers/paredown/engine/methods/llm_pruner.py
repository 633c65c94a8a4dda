"""LLM-Pruner: drop the MLP channels and heads whose weights times their gradients are smallest.

Paper: Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", arXiv:2305.11627. What must go
together is one group: a channel's rows of gate and up with its column of down, a key-value head's rows of k and v with
its query heads' rows of q and their columns of o. A group's importance is the sum of |w · ∂L/∂w| over its weights, the
first-order estimate of what the loss would change, with the loss over the calibration tokens.
The paper leaves the first and last blocks whole; here every block loses the same number, because stock runtimes have
one width for all blocks. The paper heals the model afterwards; this stage alone does not.
Shapes: C MLP channels, G key-value heads.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from paredown.contracts.recipes import LlmPruner
from paredown.contracts.report import StageReport
from paredown.engine.architectures import Skeleton
from paredown.engine.depth import survey
from paredown.engine.gradients import backward
from paredown.engine.method import ModelMethod, ModelWork
from paredown.engine.weights import ModelReader
from paredown.engine.width import CHANNELS, HEADS, Widths, WidthView, most, narrowed


def importance(linears: Mapping[str, tuple[Tensor, Tensor]], sides: Mapping[str, int], groups: int) -> Tensor:
    """Sum of |w · ∂L/∂w| for each of so many groups; `sides` says which side of a linear they divide."""
    total = torch.zeros(groups)
    for name, (weight, gradient) in linears.items():
        linear, _, leaf = name.rpartition(".")
        side = sides.get(linear)
        # A bias is divided with the rows, and belongs to no column.
        if side is not None and (leaf == "weight" or side == 0):
            product = (weight * gradient).abs()
            total += product.movedim(side, 0).reshape(groups, -1).sum(1).cpu()
    return total


# Each linear of a block: (parameter, its gradient) in float32, named as in the block → what is kept of them
Score = Callable[[Mapping[str, tuple[Tensor, Tensor]]], dict[str, Tensor]]


class ParameterGradients:
    """The gradients of a block's linears, summed over micro-batches."""

    def __init__(self, skeleton: Skeleton, index: int, score: Score) -> None:
        self._score = score
        self._parameters = {
            name: parameter.requires_grad_(True)
            for name, parameter in skeleton.blocks[index].named_parameters()
            if name.rpartition(".")[0] in CHANNELS | HEADS
        }
        self._totals = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in self._parameters.items()}

    def passed(self) -> None:
        for name, parameter in self._parameters.items():
            assert parameter.grad is not None
            self._totals[name] += parameter.grad.float()
            parameter.grad = None

    def found(self) -> dict[str, Tensor]:
        return self._score(
            {name: (value.detach().float(), self._totals[name]) for name, value in self._parameters.items()}
        )


def apply(model: ModelReader, work: ModelWork, config: LlmPruner) -> tuple[WidthView, StageReport]:
    """Raises RecipeUnfit, NanFound, Drained."""
    skeleton = Skeleton(model.config, torch.float32)
    widths = Widths.of(model.config, config)
    entering = survey(model, work.tokens_NT, work, lambda before_BTH, _after: before_BTH, part_of=2)
    scores = backward(
        model,
        work.tokens_NT,
        work,
        entering,
        lambda skeleton, block: ParameterGradients(
            skeleton,
            block,
            lambda linears: {
                "channels": importance(linears, CHANNELS, widths.whole["channels"]),
                "heads": importance(linears, HEADS, widths.whole["heads"]),
            },
        ),
    )
    found = [scores(block) for block in range(skeleton.num_blocks)]
    kept = [{kind: most(block[kind], left) for kind, left in widths.left.items()} for block in found]
    return narrowed(
        model,
        work,
        config,
        widths,
        kept,
        found,
        measure="the sum of |weight × gradient| over a block's channels and heads",
    )


METHOD = ModelMethod(config=LlmPruner, apply=apply, passes=4)
