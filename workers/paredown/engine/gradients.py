"""The gradient of the loss, a block at a time.

The backward pass needs what enters each block, which a survey kept on disk, and the gradient at what leaves it, which
the block after it gave; so it holds one block, as the forward pass does.
Logits exist for a few positions at a time.
Shapes: N sequences, T tokens of each, B sequences of a micro-batch, H hidden size, P predicted positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from paredown.contracts.pieces import GRADIENT_HEAD_TOKENS
from paredown.engine.architectures import Skeleton
from paredown.engine.checkpoint import Checkpoint
from paredown.engine.depth import Observations
from paredown.engine.errors import Drained, NanFound
from paredown.engine.forward import BlockForward
from paredown.engine.method import ModelWork
from paredown.engine.statistics import all_finite
from paredown.engine.weights import ModelReader

# (logits_PV of some of the predicted positions, which they are among all of the micro-batch, in order) → their loss
Loss = Callable[[Tensor, slice], Tensor]


class Watch(Protocol):
    """Looks on while one block's gradients are found; its weights are there, in the forward dtype."""

    def passed(self) -> None:
        """A micro-batch went forwards and backwards through the block."""

    def found(self) -> dict[str, Tensor]:
        """What is kept of the block, once all micro-batches did."""


# (the skeleton, a block's number) → who looks on
Watcher = Callable[[Skeleton, int], Watch]


def backward(
    model: ModelReader, tokens_NT: Tensor, work: ModelWork, entering: Observations, watcher: Watcher
) -> Callable[[int], dict[str, Tensor]]:
    """One backward pass of the mean loss per predicted token, from the last block to the first.

    What a block's watch found is durable, and is read back by the block's number. Raises NanFound, and Drained at a
    block boundary.
    """
    skeleton = Skeleton(model.config, work.dtype)
    num_blocks = skeleton.num_blocks
    # The checkpoint counts in the order of work.
    checkpoint = Checkpoint(work.directory / "gradients", work.identity, num_blocks, sequential=True)
    work.on_progress(num_blocks + len(checkpoint.finished), 2 * num_blocks)
    forward: BlockForward | None = None
    gradients: list[Tensor] | None = None
    predicted = tokens_NT.shape[0] * (tokens_NT.shape[1] - 1)
    for step in range(len(checkpoint.finished), num_blocks):
        if work.should_drain():
            raise Drained
        index = num_blocks - 1 - step
        if forward is None:
            with torch.no_grad():
                skeleton.load_outer(model.tensor, work.device, model.storage_dtype)
                forward = BlockForward(skeleton, tokens_NT, work.device)
            gradients = checkpoint.hidden(step, forward.states_device)
        found, gradients = _through(model, skeleton, forward, index, entering.of(index), gradients, predicted, watcher)
        checkpoint.save(step, found, {}, (), gradients if step + 1 < num_blocks else None)
        work.on_progress(num_blocks + step + 1, 2 * num_blocks)

    def read(block: int) -> dict[str, Tensor]:
        shard = checkpoint.block(num_blocks - 1 - block)
        return {name: shard.dense(name) for name in shard.dense_names}

    return read


def _through(
    model: ModelReader,
    skeleton: Skeleton,
    forward: BlockForward,
    index: int,
    entering: Sequence[Tensor],
    leaving: Sequence[Tensor] | None,
    predicted: int,
    watcher: Watcher,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """(what is kept of a block, the gradients at what enters it) from those at what leaves it; the last block's come
    from the loss."""
    dtype = model.storage_dtype
    skeleton.put_from(lambda name: model.tensor(name).to(dtype), skeleton.block_names(index), forward.device)
    watch = watcher(skeleton, index)
    gradients: list[Tensor] = []
    for micro_batch, states_BTH in enumerate(entering):
        entering_BTH = states_BTH.to(forward.device).requires_grad_(True)
        forward.states[micro_batch] = entering_BTH
        leaving_BTH = forward.call(index, micro_batch)
        gradient_BTH = (
            loss_gradient(skeleton, forward, micro_batch, leaving_BTH, _mean_loss(forward, micro_batch, predicted))[1]
            if leaving is None
            else leaving[micro_batch].to(forward.device)
        )
        torch.autograd.backward(leaving_BTH, gradient_BTH)
        assert entering_BTH.grad is not None
        gradients.append(entering_BTH.grad.to(forward.states_device))
        watch.passed()
        # The graph ends here.
        forward.states[micro_batch] = states_BTH
    found = watch.found()
    skeleton.release_block(index)
    if not all(map(all_finite, (*found.values(), *gradients))):
        raise NanFound(
            f"The gradients of block {index} are not finite. With dtype bfloat16 try float32; else the source "
            "checkpoint is damaged.",
            field="dtype",
        )
    return found, gradients


def _mean_loss(forward: BlockForward, micro_batch: int, predicted: int) -> Loss:
    """Its share of the mean loss per predicted token."""
    target_P = forward.tokens[micro_batch][:, 1:].flatten().to(forward.device)
    return lambda logits_PV, part: functional.cross_entropy(logits_PV, target_P[part], reduction="sum") / predicted


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
    for start in range(0, len(hidden_PH), GRADIENT_HEAD_TOKENS):
        part = slice(start, start + GRADIENT_HEAD_TOKENS)
        leaf_PH = hidden_PH[part].detach().requires_grad_(True)
        value = loss(skeleton.logits(leaf_PH), part)
        total += float(value.detach())
        parts.append(torch.autograd.grad(value, leaf_PH)[0])
    # The last position of a sequence predicts nothing.
    gradient_BTH = torch.zeros_like(hidden_BTH)
    gradient_BTH[:, :-1] = torch.cat(parts).view_as(hidden_BTH[:, :-1])
    return total, torch.autograd.grad(hidden_BTH, leaving_BTH, gradient_BTH)[0]
