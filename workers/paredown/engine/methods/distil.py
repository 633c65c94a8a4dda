"""Distillation: low-rank adapters learn the base's distribution over the next token.

Paper: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531. The loss of a position is
a t² KL(p ‖ q) + b CE, with p and q the base's and the model's probabilities at temperature t, and CE the loss of
predicting the text. The base is the model that the recipe's first stage was given; both are in memory. Where that is
too much, `block_wise` trains one block after the other to give the base's hidden states (engine/blockwise.py).
Shapes: B sequences of a micro-batch, T tokens, P predicted positions, H hidden size, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from paredown.contracts.recipes import Distil
from paredown.contracts.report import StageReport
from paredown.engine.adapters import TunedView
from paredown.engine.blockwise import train_blocks
from paredown.engine.gradients import Loss
from paredown.engine.method import ModelMethod, ModelWork
from paredown.engine.methods.lora import language_loss
from paredown.engine.training import Objective, ResidentModel, train
from paredown.engine.weights import ModelReader


def divergence(logits_PV: Tensor, teacher_PV: Tensor, temperature: float) -> Tensor:
    """t² KL(teacher ‖ student), summed over positions."""
    student_PV = functional.log_softmax(logits_PV / temperature, dim=-1)
    target_PV = functional.log_softmax(teacher_PV / temperature, dim=-1)
    return functional.kl_div(student_PV, target_PV, reduction="sum", log_target=True) * temperature**2


def objective_of(teacher: ResidentModel, config: Distil) -> Objective:
    def against(hidden_PH: Tensor, language: Loss) -> Loss:
        def loss(logits_PV: Tensor, part: slice) -> Tensor:
            teacher_PV = teacher.skeleton.logits(hidden_PH[part])
            value = config.distillation_weight * divergence(logits_PV, teacher_PV, config.temperature)
            if config.language_weight:
                value = value + config.language_weight * language(logits_PV, part)
            return value

        return loss

    def objective(tokens: Sequence[Tensor]) -> list[Loss]:
        hidden = teacher.final(tokens)
        return [
            against(hidden_BTH[:, :-1].flatten(0, 1), language_loss(tokens_BT))
            for hidden_BTH, tokens_BT in zip(hidden, tokens, strict=True)
        ]

    return objective


def apply(model: ModelReader, work: ModelWork, config: Distil) -> tuple[TunedView, StageReport]:
    """Raises RecipeUnfit, TrainingDiverged, Drained."""
    if config.block_wise:
        return train_blocks(model, work, config)
    return train(
        model,
        work,
        config,
        lambda: objective_of(ResidentModel(work.base, work.device, work.dtype), config),
        measure="the weighted mean of divergence from the base and negative log-likelihood of a token of the batch",
    )


# As healing, and a forward pass of the base.
METHOD = ModelMethod(config=Distil, apply=apply, passes=4.5)
