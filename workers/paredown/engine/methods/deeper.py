"""Deeper layers: drop the run of consecutive blocks across which the hidden state of the last token turns least.

Paper: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv:2403.17887. The distance from
what enters block l to what enters block l+n is the angle between the two states of a sequence's last token, which alone
depends on the whole sequence, over π and averaged over sequences; the n blocks of the least distance go. The paper
heals the model afterwards; this stage alone does not.
Shapes: B sequences of a micro-batch, N of all, K last tokens of each, T tokens, H hidden size.
Units: distance from 0 (same direction) to 1 (opposite).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from paredown.contracts.recipes import Deeper
from paredown.contracts.report import StageReport
from paredown.engine.depth import DepthView, blocks_to_drop, dropping, numbers, survey
from paredown.engine.method import ModelMethod, ModelWork
from paredown.engine.weights import ModelReader


def angular_distance(first_NKH: Tensor, second_NKH: Tensor) -> float:
    """Mean angle over π."""
    cosine_NK = functional.cosine_similarity(first_NKH.double(), second_NKH.double(), dim=-1)
    return float(cosine_NK.clamp(-1, 1).arccos().mean()) / math.pi


def apply(model: ModelReader, work: ModelWork, config: Deeper) -> tuple[DepthView, StageReport]:
    """Raises RecipeUnfit, NanFound, Drained."""
    count, protected = blocks_to_drop(model.config, config)

    def last_states(before_BTH: Tensor, after_BTH: Tensor) -> Tensor:
        last = slice(-config.last_tokens, None)
        return torch.stack([before_BTH[:, last], after_BTH[:, last]], dim=1).float()

    observed = survey(model, work.tokens_NT, work, last_states)
    num_blocks = observed.num_blocks
    # What enters each block, and what leaves the last one.
    states = [torch.cat(observed.of(block))[:, 0] for block in range(num_blocks)]
    states.append(torch.cat(observed.of(num_blocks - 1))[:, 1])
    # Of the run that starts at a block; the last few start none.
    starts = range(num_blocks - count + 1)
    distances = [angular_distance(states[start], states[start + count]) for start in starts]
    free = [start for start in starts if protected.isdisjoint(range(start, start + count))]
    best = min(free, key=distances.__getitem__)
    dropped = frozenset(range(best, best + count))
    return dropping(
        model,
        work,
        config,
        dropped,
        [*distances, *[None] * (count - 1)],
        summary=f"Dropped {count} of {num_blocks} blocks in a row: {numbers(dropped)}. The last token's state turns by "
        f"{distances[best]:.3f} of a half circle across them.",
        measure=f"angular distance across the {count} blocks that start here",
    )


METHOD = ModelMethod(config=Deeper, apply=apply)
