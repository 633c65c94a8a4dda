"""ShortGPT: drop the blocks that change the hidden states least.

Paper: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv:2403.03853. A
block's influence is 1 − the mean cosine similarity, over all calibration tokens, of what enters and what leaves it; the
blocks of least influence go at once, all judged in the whole model.
Shapes: B sequences of a micro-batch, T tokens, H hidden size.
Units: influence from 0 (nothing turns) to 2.
"""

import torch
from torch import Tensor
from torch.nn import functional

from paredown.contracts.recipes import ShortGpt
from paredown.contracts.report import StageReport
from paredown.engine.depth import DepthView, blocks_to_drop, dropping, numbers, survey
from paredown.engine.method import ModelMethod, ModelWork
from paredown.engine.weights import ModelReader


def influence(before_BTH: Tensor, after_BTH: Tensor) -> Tensor:
    """1 − cosine similarity of each token's states, BT in float32."""
    return 1 - functional.cosine_similarity(before_BTH.float(), after_BTH.float(), dim=-1)


def apply(model: ModelReader, work: ModelWork, config: ShortGpt) -> tuple[DepthView, StageReport]:
    """Raises RecipeUnfit, NanFound, Drained."""
    count, protected = blocks_to_drop(model.config, config)
    observed = survey(model, work.tokens_NT, work, influence)
    importance = [float(torch.cat(observed.of(block)).double().mean()) for block in range(observed.num_blocks)]
    candidates = [block for block in range(observed.num_blocks) if block not in protected]
    dropped = frozenset(sorted(candidates, key=importance.__getitem__)[:count])
    return dropping(
        model,
        work,
        config,
        dropped,
        importance,
        summary=f"Dropped {count} of {observed.num_blocks} blocks, those of least influence: {numbers(dropped)}.",
        measure="block influence: 1 − cosine similarity of a block's input and output",
    )


METHOD = ModelMethod(config=ShortGpt, apply=apply)
