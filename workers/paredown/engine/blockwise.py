"""Distillation a block at a time: each block's adapters learn to give the base's hidden states.

The base and the model are streamed beside each other, each through one block in memory. A block is given what the
blocks before it, as trained, make of the tokens, and learns what the base's next block that was kept is given there; so
the block before a gap learns to do what the blocks in it did, and each makes up for what the ones before did not.
Shapes: N sequences, T tokens of each, B sequences of a micro-batch, H hidden size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from paredown.contracts.pieces import MICRO_BATCH_TOKENS
from paredown.contracts.recipes import Training
from paredown.contracts.report import StageReport
from paredown.engine.adapters import Adapters, TunedView
from paredown.engine.architectures import Skeleton
from paredown.engine.checkpoint import Checkpoint
from paredown.engine.depth import through_block
from paredown.engine.errors import Drained
from paredown.engine.forward import BlockForward
from paredown.engine.method import ModelWork
from paredown.engine.training import Steps, check_trained, trained_linears, training_report
from paredown.engine.weights import ModelReader


def relative_error(states_BTH: Tensor, target_BTH: Tensor) -> Tensor:
    """‖s − t‖² / ‖t‖² of each token, summed: a few tokens' states are a thousand times as long as the others'."""
    target_BTH = target_BTH.float()
    error_BT = (states_BTH.float() - target_BTH).square().sum(-1)
    return (error_BT / target_BTH.square().sum(-1).clamp_min(1e-30)).sum()


def train_blocks(model: ModelReader, work: ModelWork, config: Training) -> tuple[TunedView, StageReport]:
    """Every block sees all of the tokens. Raises RecipeUnfit, TrainingDiverged, and Drained between two steps."""
    num_blocks = int(model.config.num_hidden_layers)
    skeleton = Skeleton(model.config, torch.float32)
    check_trained(trained_linears(skeleton, config, range(num_blocks)), config)
    checkpoint = Checkpoint(work.directory, work.identity, num_blocks, sequential=True)
    work.on_progress(len(checkpoint.finished) * config.steps, num_blocks * config.steps)
    if len(checkpoint.finished) < num_blocks:
        _Pair(model, work, config, checkpoint).train()
    shards = [checkpoint.block(index) for index in range(num_blocks)]
    losses = [shard.dense("losses") for shard in shards]
    view = TunedView(
        model,
        config.alpha / config.rank,
        {name: shard for index, shard in enumerate(shards) for name in trained_linears(skeleton, config, [index])},
    )
    measure = "the relative error of the hidden states, ‖s − t‖² / ‖t‖², mean over the batch's tokens and the blocks"
    return view, training_report(work, config, torch.stack(losses).mean(0).tolist(), measure=measure)


class _Pair:
    """The model and the base on their way through the tokens."""

    def __init__(self, model: ModelReader, work: ModelWork, config: Training, checkpoint: Checkpoint) -> None:
        self._model = model
        self._work = work
        self._config = config
        self._checkpoint = checkpoint
        self._first = len(checkpoint.finished)
        # A batch is a whole number of micro-batches.
        most = max(1, MICRO_BATCH_TOKENS // config.sequence_length)
        size = max(size for size in range(1, config.batch_size + 1) if config.batch_size % size == 0 and size <= most)
        self._per_batch = config.batch_size // size
        self._skeletons = Skeleton(model.config, work.dtype), Skeleton(work.base.config, work.dtype)
        with torch.no_grad():
            for reader, skeleton in zip((model, work.base), self._skeletons, strict=True):
                skeleton.load_outer(reader.tensor, work.device, reader.storage_dtype)
            self._student, self._teacher = (
                BlockForward(skeleton, work.tokens_NT, work.device, size) for skeleton in self._skeletons
            )
        states = checkpoint.hidden(self._first, self._student.states_device)
        if states is not None:
            count = len(states) // 2
            self._student.states, self._teacher.states = states[:count], states[count:]

    def train(self) -> None:
        num_blocks = len(self._work.origins)
        for index in range(self._first, num_blocks):
            self._advance_base(index)
            found = self._block(index)
            states = [*self._student.states, *self._teacher.states] if index + 1 < num_blocks else None
            self._checkpoint.save(index, found, {}, (), states)

    @torch.no_grad()
    def _advance_base(self, index: int) -> None:
        """To what the base's block that follows this one in the model is given."""
        origins = self._work.origins
        skeleton = self._skeletons[1]
        start = origins[index] if index else 0
        stop = origins[index + 1] if index + 1 < len(origins) else skeleton.num_blocks
        for block in range(start, stop):
            if self._work.should_drain():
                raise Drained
            for _ in through_block(self._work.base, skeleton, self._teacher, block):
                pass

    def _block(self, index: int) -> dict[str, Tensor]:
        """Train a block's adapters and send the tokens through what they make of it: what a shard keeps."""
        work, config, skeleton = self._work, self._config, self._skeletons[0]
        names = skeleton.block_names(index)
        skeleton.put_from(lambda name: self._model.tensor(name).to(self._model.storage_dtype), names, work.device)
        linears = trained_linears(skeleton, config, [index])
        adapters = Adapters(skeleton, linears, config, work.device)
        losses: list[float] = []
        if linears:
            steps = Steps(adapters.parameters, config)
            with adapters.attached():
                for step in range(config.steps):
                    if work.should_drain():
                        raise Drained
                    batch = range(step * self._per_batch, (step + 1) * self._per_batch)
                    losses.append(self._backward(index, batch))
                    steps.take(step, losses[-1], f" of block {index}")
                    work.on_progress(index * config.steps + step + 1, len(work.origins) * config.steps)
        adapters.merge_into_skeleton(self._model.storage_dtype)
        error = self._send(index)
        skeleton.release_block(index)
        # A block that is skipped has the same error all along.
        found = {"losses": torch.tensor(losses or [error] * config.steps, dtype=torch.float64)}
        return found | adapters.tensors()

    def _backward(self, index: int, batch: Sequence[int]) -> float:
        total = 0.0
        for micro_batch in batch:
            states_BTH = self._student.call(index, micro_batch)
            target_BTH = self._teacher.states[micro_batch].to(self._work.device)
            loss = relative_error(states_BTH, target_BTH) / (self._config.batch_size * self._config.sequence_length)
            value = float(loss.detach())
            # The blocks before the first gap give what the base's do: there is nothing to learn.
            if value > 0 or math.isnan(value):
                torch.autograd.backward(loss)
            total += value
        return total

    @torch.no_grad()
    def _send(self, index: int) -> float:
        """All tokens through the block; what is left of its error."""
        total = 0.0
        for micro_batch in range(len(self._student.tokens)):
            output_BTH = self._student.call(index, micro_batch)
            total += float(relative_error(output_BTH, self._teacher.states[micro_batch].to(self._work.device)))
            self._student.keep(micro_batch, output_BTH)
        return total / self._work.tokens_NT.numel()
