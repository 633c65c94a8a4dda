"""LoRA healing: low-rank adapters trained to predict the text, merged at the end.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685; LLM-Pruner and Deeper heal
with it what they pruned. The adapters and their arithmetic are in engine/adapters.py, the steps in engine/training.py.
Shapes: B sequences of a micro-batch, T tokens, P predicted positions, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from paredown.contracts.recipes import Lora
from paredown.contracts.report import StageReport
from paredown.engine.adapters import TunedView
from paredown.engine.gradients import Loss
from paredown.engine.method import ModelMethod, ModelWork
from paredown.engine.training import train
from paredown.engine.weights import ModelReader


def language_loss(tokens_BT: Tensor) -> Loss:
    """Negative log-likelihood of the next tokens, summed over positions."""
    target_P = tokens_BT[:, 1:].flatten()

    def loss(logits_PV: Tensor, part: slice) -> Tensor:
        return functional.cross_entropy(logits_PV, target_P[part].to(logits_PV.device), reduction="sum")

    return loss


def objective(tokens: Sequence[Tensor]) -> list[Loss]:
    return [language_loss(tokens_BT) for tokens_BT in tokens]


def apply(model: ModelReader, work: ModelWork, config: Lora) -> tuple[TunedView, StageReport]:
    """Raises RecipeUnfit, TrainingDiverged, Drained."""
    return train(
        model, work, config, lambda: objective, measure="the mean negative log-likelihood of a token of the batch"
    )


# A forward pass, each block once more on the way back, and the gradients of what enters its linears.
METHOD = ModelMethod(config=Lora, apply=apply, passes=3.5)
