"""Narrower blocks: the gradient of the loss, a block at a time, and the model that is left when channels and heads go.

The backward pass needs what enters each block, which a survey kept on disk, and the gradient at what leaves it, which
the block after it gave; so it holds one block, as the forward pass does.
Shapes: N sequences, T tokens of each, B sequences of a micro-batch, H hidden size, V vocabulary, C MLP channels, G
key-value heads.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from paredown.engine.architectures import Skeleton
from paredown.engine.checkpoint import Checkpoint
from paredown.engine.depth import Observations
from paredown.engine.errors import Drained, NanFound
from paredown.engine.forward import BlockForward
from paredown.engine.gradients import Loss, loss_gradient
from paredown.engine.method import ModelWork
from paredown.engine.statistics import all_finite
from paredown.engine.weights import ModelReader

# Which side of a linear the block's MLP channels lie on, and its heads: 0 rows, 1 columns.
CHANNELS = {"mlp.gate_proj": 0, "mlp.up_proj": 0, "mlp.down_proj": 1}
HEADS = {"self_attn.q_proj": 0, "self_attn.k_proj": 0, "self_attn.v_proj": 0, "self_attn.o_proj": 1}


class WidthView:
    """A model of narrower blocks. Reads like the model it is made of, and lets it keep the weights."""

    def __init__(self, model: ModelReader, channels: Sequence[Tensor], heads: Sequence[Tensor]) -> None:
        """`channels` and `heads`: the numbers of those that stay, in order, for each block."""
        self.config = _narrowed(model.config, len(channels[0]), len(heads[0]))
        self.names = model.names
        self.storage_dtype = model.storage_dtype
        self.source = model.source
        self._model = model
        self._channels = channels
        self._heads = heads
        self._kv_heads = int(model.config.num_key_value_heads)
        self._prefix = Skeleton(model.config, torch.float32).architecture.blocks + "."

    def tensor(self, name: str) -> Tensor:
        value = self._model.tensor(name)
        number, _, leaf = name.removeprefix(self._prefix).partition(".")
        linear = leaf.rpartition(".")[0]
        if not name.startswith(self._prefix) or linear not in CHANNELS | HEADS:
            return value
        block, side = int(number), (CHANNELS | HEADS)[linear]
        if value.ndim == 1 and side == 1:
            # A bias belongs to what leaves the linear.
            return value
        if linear in CHANNELS:
            return value.index_select(side, self._channels[block])
        width = value.shape[side] // self._kv_heads
        lines = self._heads[block].unsqueeze(1) * width + torch.arange(width)
        return value.index_select(side, lines.flatten())


def _narrowed(config: Any, channels: int, kv_heads: int) -> Any:
    narrower = copy.deepcopy(config)
    narrower.intermediate_size = channels
    if kv_heads != config.num_key_value_heads:
        # Without it, transformers takes the hidden size over the number of heads.
        head_dim = getattr(config, "head_dim", None)
        narrower.head_dim = head_dim or config.hidden_size // config.num_attention_heads
        narrower.num_attention_heads = config.num_attention_heads // config.num_key_value_heads * kv_heads
        narrower.num_key_value_heads = kv_heads
    return narrower


Score = Callable[[Mapping[str, tuple[Tensor, Tensor]]], dict[str, Tensor]]


def backward(
    model: ModelReader, tokens_NT: Tensor, work: ModelWork, entering: Observations, score: Score
) -> Callable[[int], dict[str, Tensor]]:
    """One backward pass of the mean loss per predicted token, from the last block to the first.

    `score` is given each linear of a block: (parameter, its gradient) in float32, named as in the block; what it
    returns is durable, and is read back by the block's number. Raises NanFound, and Drained at a block boundary.
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
        found, gradients = _through(model, skeleton, forward, index, entering.of(index), gradients, predicted)
        checkpoint.save(step, score(found), {}, (), gradients if step + 1 < num_blocks else None)
        work.on_progress(num_blocks + step + 1, 2 * num_blocks)

    def scores(block: int) -> dict[str, Tensor]:
        shard = checkpoint.block(num_blocks - 1 - block)
        return {name: shard.dense(name) for name in shard.dense_names}

    return scores


def _through(
    model: ModelReader,
    skeleton: Skeleton,
    forward: BlockForward,
    index: int,
    entering: Sequence[Tensor],
    leaving: Sequence[Tensor] | None,
    predicted: int,
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor]]:
    """(linears of a block with their gradients, the gradients at what enters it) from those at what leaves it; the last
    block's come from the loss."""
    dtype = model.storage_dtype
    skeleton.put_from(lambda name: model.tensor(name).to(dtype), skeleton.block_names(index), forward.device)
    block = skeleton.blocks[index]
    cut = CHANNELS | HEADS
    parameters = {name: parameter for name, parameter in block.named_parameters() if name.rpartition(".")[0] in cut}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    totals = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
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
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            totals[name] += parameter.grad.float()
            parameter.grad = None
        # The graph ends here.
        forward.states[micro_batch] = states_BTH
    found = {name: (parameter.detach().float(), totals[name]) for name, parameter in parameters.items()}
    skeleton.release_block(index)
    if not all(all_finite(gradient) for _, gradient in found.values()) or not all(map(all_finite, gradients)):
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
