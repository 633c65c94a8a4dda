"""Wanda: drop the weights whose magnitude times input norm is smallest.

Paper: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695. Weights are
compared within each output row; nothing else changes.
Shapes: O out_features, I in_features.
Units: sparsity is a fraction of each row, 0 to 1; a pattern such as 2:4 keeps N of every M instead.
"""

from torch import Tensor

from paredown.contracts.recipes import Wanda
from paredown.engine.masks import lowest_in_rows, pattern_mask
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics, Statistic


def prune_mask(score_OI: Tensor, sparsity: float) -> Tensor:
    """True where a weight goes; every row loses floor(I * sparsity)."""
    return lowest_in_rows(score_OI, int(score_OI.shape[1] * sparsity + 1e-9))


def compress(linear: LinearWeight, inputs: InputStatistics, config: Wanda) -> None:
    score_OI = linear.weight_OI.abs() * inputs.energy_I.sqrt()
    mask_OI = (
        pattern_mask(score_OI, config.pattern, linear.name) if config.pattern else prune_mask(score_OI, config.sparsity)
    )
    linear.prune(mask_OI)


METHOD = LinearMethod(config=Wanda, needs=frozenset({Statistic.ENERGY}), compress=compress)
