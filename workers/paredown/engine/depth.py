"""Fewer blocks: what depth methods look at, and the model that is left.

A survey runs the calibration tokens through the model once, a block at a time, and keeps of each block what a method
observes of the hidden states that enter and leave it. The model that is left is a view: its blocks are the base's under
new numbers, its tensors are read from the base when they are asked for.
Shapes: N sequences, T tokens of each, B sequences of a micro-batch, H hidden size.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paredown.contracts.recipes import Depth, Stage
from paredown.contracts.report import BlockReport, StageReport
from paredown.engine.architectures import Skeleton
from paredown.engine.checkpoint import Checkpoint
from paredown.engine.errors import Drained, NanFound, RecipeUnfit
from paredown.engine.forward import BlockForward
from paredown.engine.method import ModelWork
from paredown.engine.statistics import all_finite
from paredown.engine.weights import ModelReader

# (hidden states entering a block, leaving it), both BTH of one micro-batch → what is kept of them
Observe = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Blend:
    """A block of the model that is left.

    `shares` are whole numbers by which the linears of the base's blocks are added up to its own; all else (norms) is
    block `own`'s.
    """

    own: int
    shares: Mapping[int, int]

    @classmethod
    def of(cls, block: int) -> "Blend":
        """A block of the base as it is."""
        return cls(block, {block: 1})


class DepthView:
    """A model of fewer blocks. Reads like the model it is made of, and lets it keep the weights."""

    def __init__(self, model: ModelReader, blocks: Sequence[Blend]) -> None:
        """Raises RecipeUnfit where a block would not do at its new place what it does at its own."""
        self.config = _shortened(model.config, [block.own for block in blocks])
        self.storage_dtype = model.storage_dtype
        self.source = model.source
        self._model = model
        before, after = Skeleton(model.config, torch.float32), Skeleton(self.config, torch.float32)
        shapes, wanted = before.parameter_shapes(), after.parameter_shapes()
        self.names = tuple(wanted)
        # Each parameter under its new name: the base's names, with their shares.
        self._sources: dict[str, dict[str, int]] = {name: {name: 1} for name in after.outer_names()}
        linears = set(before.architecture.linears)
        for index, block in enumerate(blocks):
            for name in after.block_names(index):
                leaf = name.removeprefix(after.block_prefix(index))
                shares = block.shares if leaf.rpartition(".")[0] in linears else {block.own: 1}
                sources = {before.block_prefix(source) + leaf: share for source, share in shares.items()}
                if any(shapes.get(source) != wanted[name] for source in sources):
                    raise RecipeUnfit(
                        f"Block {block.own} cannot take the place of block {index}: this model's blocks differ in "
                        f"{leaf}. Drop none.",
                        field="recipe",
                    )
                self._sources[name] = sources

    def tensor(self, name: str) -> Tensor:
        sources = self._sources[name]
        if len(sources) == 1 and 1 in sources.values():
            return self._model.tensor(*sources)
        total: Tensor | None = None
        for source, share in sources.items():
            part = self._model.tensor(source).float() * share
            total = part if total is None else total.add_(part)
        assert total is not None, f"{name} is made of nothing"
        return total.to(self.storage_dtype)


def _shortened(config: Any, kept: Sequence[int]) -> Any:
    """The configuration with the blocks `kept` alone."""
    shorter = copy.deepcopy(config)
    num_blocks = config.num_hidden_layers
    for name, value in config.to_dict().items():
        # One entry for each block, such as layer_types.
        if "layer" in name and isinstance(value, list) and len(value) == num_blocks:
            setattr(shorter, name, [value[block] for block in kept])
    shorter.num_hidden_layers = len(kept)
    return shorter


def blocks_to_drop(config: Any, stage: Depth) -> tuple[int, frozenset[int]]:
    """(how many, which must stay). Raises RecipeUnfit."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise RecipeUnfit(
            "This model scales each block's attention by the block's number (scale_attn_by_inverse_layer_idx), so no "
            "block can take another's place; its depth cannot be pruned.",
            field="recipe",
        )
    skeleton = Skeleton(config, torch.float32)
    num_blocks = skeleton.num_blocks
    protected = stage.protected([skeleton.linear_names(index) for index in range(num_blocks)])
    count, most = stage.dropped(num_blocks), stage.most(num_blocks, protected)
    if count > most:
        raise RecipeUnfit(
            f"{stage.title} cannot drop {count} of {num_blocks} blocks; with these settings at most {most} can go.",
            field="blocks" if stage.blocks is not None else "share",
        )
    return count, protected


class Observations:
    """What a survey kept, read from disk when it is asked for: one tensor for each micro-batch of a block."""

    def __init__(self, checkpoint: Checkpoint, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._checkpoint = checkpoint

    def of(self, block: int) -> list[Tensor]:
        shard = self._checkpoint.block(block)
        return [shard.dense(name) for name in sorted(shard.dense_names)]


def survey(
    model: ModelReader, tokens_NT: Tensor, work: ModelWork, observe: Observe, *, part_of: int = 1
) -> Observations:
    """One forward pass over the tokens; goes on after the last block that an earlier run had observed.

    In the stage's progress it is one of `part_of` passes. Raises NanFound with the block, and Drained at a block
    boundary.
    """
    skeleton = Skeleton(model.config, work.dtype)
    num_blocks = skeleton.num_blocks
    checkpoint = Checkpoint(work.directory, work.identity, num_blocks, sequential=True)
    work.on_progress(len(checkpoint.finished), part_of * num_blocks)
    todo = [index for index in range(num_blocks) if index not in checkpoint.finished]
    with torch.inference_mode():
        forward: BlockForward | None = None
        for index in todo:
            if work.should_drain():
                raise Drained
            if forward is None:
                skeleton.load_outer(model.tensor, work.device, model.storage_dtype)
                forward = BlockForward(skeleton, tokens_NT, work.device)
                skeleton.release_outer()
                forward.states = checkpoint.hidden(index, forward.states_device) or forward.states
            observed: dict[str, Tensor] = {}
            for micro_batch, before_BTH, after_BTH in through_block(model, skeleton, forward, index):
                check_finite(after_BTH, index)
                observed[f"{micro_batch:05d}"] = observe(before_BTH, after_BTH).cpu()
            hidden = forward.states if index + 1 < num_blocks else None
            checkpoint.save(index, observed, {}, (), hidden)
            work.on_progress(len(checkpoint.finished), part_of * num_blocks)
    return Observations(checkpoint, num_blocks)


def check_finite(states_BTH: Tensor, index: int) -> None:
    """Raises NanFound with the block that the states leave."""
    if not all_finite(states_BTH):
        raise NanFound(
            f"The hidden states that leave block {index} are not finite. With dtype bfloat16 try float32; else the "
            "source checkpoint is damaged.",
            field="dtype",
        )


def through_block(
    model: ModelReader, skeleton: Skeleton, forward: BlockForward, index: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Run a block in the storage dtype's weights: (micro-batch, hidden states entering it, leaving it)."""
    dtype = model.storage_dtype
    skeleton.put_from(lambda name: model.tensor(name).to(dtype), skeleton.block_names(index), forward.device)
    for micro_batch in range(len(forward.tokens)):
        before_BTH = forward.states[micro_batch].to(forward.device)
        after_BTH = forward.call(index, micro_batch)
        forward.keep(micro_batch, after_BTH)
        yield micro_batch, before_BTH, after_BTH
    skeleton.release_block(index)


def dropping(
    model: ModelReader,
    work: ModelWork,
    stage: Depth,
    dropped: AbstractSet[int],
    importance: Sequence[float | None],
    *,
    summary: str,
    measure: str,
) -> tuple[DepthView, StageReport]:
    """The model without some of its blocks, and what is told of it."""
    kept = [block for block in range(len(importance)) if block not in dropped]
    report = stage_report(work, stage, kept, importance, summary=summary, measure=measure)
    return DepthView(model, [Blend.of(block) for block in kept]), report


def stage_report(
    work: ModelWork,
    stage: Stage,
    kept: Sequence[int],
    importance: Sequence[float | None],
    *,
    summary: str,
    measure: str,
) -> StageReport:
    blocks = tuple(
        BlockReport(block=block, importance=value, kept=block in kept) for block, value in enumerate(importance)
    )
    return StageReport(stage=work.stage, method=stage.method, summary=summary, measure=measure, blocks=blocks)


def numbers(blocks: Iterable[int]) -> str:
    """`21, 22 and 25`"""
    *most, last = map(str, sorted(blocks))
    return f"{', '.join(most)} and {last}" if most else last
