"""The gradient of a loss at what leaves the last block: logits exist for a few positions at a time.

Shapes: B sequences of a micro-batch, T tokens, H hidden size, P predicted positions, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from paredown.engine.architectures import Skeleton
from paredown.engine.forward import BlockForward

# Positions whose logits exist at once.
_HEAD_TOKENS = 512

# (logits_PV of some of the predicted positions, which they are among all of the micro-batch, in order) → their loss
Loss = Callable[[Tensor, slice], Tensor]


def loss_gradient(
    skeleton: Skeleton, forward: BlockForward, micro_batch: int, leaving_BTH: Tensor, loss: Loss
) -> tuple[float, Tensor]:
    """(the loss, summed over all parts, and its gradient at `leaving_BTH`); every position but the last predicts."""
    leaving_BTH = leaving_BTH.detach().requires_grad_(True)
    forward.states[micro_batch] = leaving_BTH
    hidden_BTH = forward.final(micro_batch)
    hidden_PH = hidden_BTH.detach()[:, :-1].flatten(0, 1)
    total = 0.0
    parts = []
    for start in range(0, len(hidden_PH), _HEAD_TOKENS):
        part = slice(start, start + _HEAD_TOKENS)
        leaf_PH = hidden_PH[part].detach().requires_grad_(True)
        value = loss(skeleton.logits(leaf_PH), part)
        total += float(value.detach())
        parts.append(torch.autograd.grad(value, leaf_PH)[0])
    # The last position of a sequence predicts nothing.
    gradient_BTH = torch.zeros_like(hidden_BTH)
    gradient_BTH[:, :-1] = torch.cat(parts).view_as(hidden_BTH[:, :-1])
    return total, torch.autograd.grad(hidden_BTH, leaving_BTH, gradient_BTH)[0]
