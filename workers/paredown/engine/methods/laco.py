"""LaCo: merge rear blocks into a prior one, as long as the model's output stays similar.

Paper: Yang et al., "LaCo: Large Language Model Pruning via Layer Collapse", arXiv:2402.11187. From the highest block
downwards, the blocks l+1 … l+K are merged into block l, and are then dropped. The paper prints θ_l + Σ (θ_{l+k} − θ_l)
for its linears, whose scale is lost where blocks differ: K such differences add up to (1 − K) θ_l + Σ θ_{l+k}. The
authors' code, of which their figures are, adds each difference to what the ones before it left, and so comes to
θ_{l+K} (github.com/yangyifei729/LaCo, issues 4 and 5); that is what a merge does here, unless asked for the formula.
The merge is kept when the output for a few sentences has more than T mean cosine similarity to the base's, and
the next try lies I blocks lower; else it is undone, and the next try lies one lower.
The paper tunes T by hand until as much is gone as is wanted. Here T falls by 0.05 at a time until enough blocks are
gone, and the last merge takes no more than are still missing, so that the result has the size that was asked for.
A try needs only the blocks from l on: those before are the base's still, and what enters them was kept on disk.
Shapes: N sequences, B of a micro-batch, T tokens, H hidden size.
Units: similarity −1 to 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from paredown.contracts.recipes import Laco
from paredown.contracts.report import StageReport
from paredown.engine.architectures import Skeleton
from paredown.engine.checkpoint import Checkpoint
from paredown.engine.depth import (
    Blend,
    DepthView,
    Observations,
    blocks_to_drop,
    numbers,
    stage_report,
    survey,
    through_block,
)
from paredown.engine.errors import Drained, RecipeUnfit
from paredown.engine.forward import BlockForward
from paredown.engine.method import ModelMethod, ModelWork
from paredown.engine.statistics import all_finite
from paredown.engine.weights import ModelReader

_THRESHOLD_STEP = 0.05
# (block, how many after it go into it), in the numbers of the model that the merges before left
_Merges = tuple[tuple[int, int], ...]


def merged(num_blocks: int, merges: _Merges, merging: str) -> list[Blend]:
    """The blocks after some merges; a block that was merged before is merged on with all that is in it."""
    blocks = [Blend.of(block) for block in range(num_blocks)]
    for block, count in merges:
        prior, *rear = blocks[block : block + count + 1]
        shares = rear[-1].shares if merging == "last" else _summed(prior, rear)
        blocks[block : block + count + 1] = [Blend(prior.own, shares)]
    return blocks


def _summed(prior: Blend, rear: Sequence[Blend]) -> dict[int, int]:
    """θ + Σ (θ_k − θ) = (1 − K) θ + Σ θ_k"""
    shares = {source: (1 - len(rear)) * share for source, share in prior.shares.items()}
    for other in rear:
        for source, share in other.shares.items():
            shares[source] = shares.get(source, 0) + share
    return {source: share for source, share in shares.items() if share}


def similarity(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Mean over sequences of the cosine similarity of all their states as one vector. −1 where they are not finite."""
    if not all(all_finite(states_BTH) for states_BTH in second):
        # A merge that overflows is as unlike as can be.
        return -1.0
    pairs = zip(first, second, strict=True)
    cosine_N = torch.cat([functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1) for a, b in pairs])
    return float(cosine_N.double().mean())


class _Trials:
    """Similarities of tried merges to the base; each is durable, and is found once."""

    def __init__(
        self, model: ModelReader, work: ModelWork, tokens_NT: Tensor, entering: Observations, merging: str
    ) -> None:
        self._model = model
        self._merging = merging
        self._work = work
        self._tokens_NT = tokens_NT
        self._entering = entering
        self._checkpoint = Checkpoint(work.directory / "trials", work.identity, 0, sequential=False)
        self._known: dict[_Merges, float] = {}
        self._base: list[Tensor] | None = None

    def __call__(self, merges: _Merges) -> float:
        if merges not in self._known:
            self._known[merges] = self._find(len(self._known), merges)
            num_blocks = self._entering.num_blocks
            self._work.on_progress(num_blocks + min(len(self._known), num_blocks - 1), 2 * num_blocks)
        return self._known[merges]

    def _find(self, trial: int, merges: _Merges) -> float:
        """Trials come in the same order in every run, so their place tells which they are."""
        if trial not in self._checkpoint.finished:
            if self._work.should_drain():
                raise Drained
            if self._base is None:
                self._base = self._outputs(self._model, self._entering.num_blocks - 1)
            block, _ = merges[-1]
            tried = DepthView(self._model, merged(self._entering.num_blocks, merges, self._merging))
            found = similarity(self._base, self._outputs(tried, block))
            self._checkpoint.save(trial, {"similarity": torch.tensor(found, dtype=torch.float64)}, {}, (), None)
        return float(self._checkpoint.block(trial).dense("similarity"))

    def _outputs(self, model: ModelReader, start: int) -> list[Tensor]:
        """What the head reads, from what enters block `start`: BTH of each micro-batch, in float32."""
        work = self._work
        skeleton = Skeleton(model.config, work.dtype)
        with torch.inference_mode():
            skeleton.load_outer(model.tensor, work.device, model.storage_dtype)
            forward = BlockForward(skeleton, self._tokens_NT, work.device)
            forward.states = [states_BTH.to(forward.states_device) for states_BTH in self._entering.of(start)]
            for index in range(start, skeleton.num_blocks):
                for _ in through_block(model, skeleton, forward, index):
                    pass
            return [forward.final(micro_batch).float().cpu() for micro_batch in range(len(forward.tokens))]


def apply(model: ModelReader, work: ModelWork, config: Laco) -> tuple[DepthView, StageReport]:
    """Raises RecipeUnfit, NanFound, Drained."""
    goal, protected = blocks_to_drop(model.config, config)
    tokens_NT = work.tokens_NT[: config.samples]
    entering = survey(model, tokens_NT, work, lambda before_BTH, _after: before_BTH, part_of=2)
    num_blocks = entering.num_blocks
    similarity_of = _Trials(model, work, tokens_NT, entering, config.merging)

    def collapse(threshold: float) -> tuple[_Merges, dict[int, float]]:
        """The merges above a threshold, and the last similarity that was found at each block."""
        found: dict[int, float] = {}

        def accepts(merges: _Merges) -> bool:
            block, _ = merges[-1]
            found[block] = similarity_of(merges)
            return found[block] > threshold

        return config.walk(num_blocks, goal, protected, accepts), found

    threshold = config.threshold
    merges, found = collapse(threshold)
    while sum(count for _, count in merges) < goal:
        if threshold == -1:
            raise RecipeUnfit(
                f"Merging {goal} of {num_blocks} blocks leaves no model whose output is finite. Merge fewer blocks, or "
                "fewer at a time.",
                field="layers_per_merge",
            )
        threshold = max(-1.0, round(threshold - _THRESHOLD_STEP, 6))
        merges, found = collapse(threshold)
    work.on_progress(2 * num_blocks, 2 * num_blocks)
    blocks = merged(num_blocks, merges, config.merging)
    kept = [block.own for block in blocks]
    gone = set(range(num_blocks)) - set(kept)
    report = stage_report(
        work,
        config,
        kept,
        [1 - found[block] if block in found else None for block in range(num_blocks)],
        summary=f"Merged {goal} of {num_blocks} blocks into those before them: {numbers(gone)}. The output's "
        f"similarity to the base's is {similarity_of(merges):.3f}, above the threshold of {threshold:g}.",
        measure="1 − similarity of the model's output when the blocks after this one are merged into it",
    )
    return DepthView(model, blocks), report


METHOD = ModelMethod(config=Laco, apply=apply, passes=5)
