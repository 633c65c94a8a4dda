"""Magnitude pruning: drop the weights that are smallest in their layer; no calibration.

Paper: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626, as the
baseline that pruning papers compare to: one threshold for each layer, no retraining.
Shapes: O out_features, I in_features.
Units: sparsity is a fraction of the layer, 0 to 1; a pattern such as 2:4 keeps N of every M instead.
"""

from torch import Tensor

from paredown.contracts.recipes import Magnitude
from paredown.engine.masks import lowest, pattern_mask
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics


def prune_mask(score_OI: Tensor, sparsity: float) -> Tensor:
    """True where a weight goes; the layer loses floor(O * I * sparsity)."""
    return lowest(score_OI, int(score_OI.numel() * sparsity + 1e-9))


def compress(linear: LinearWeight, _inputs: InputStatistics, config: Magnitude) -> None:
    score_OI = linear.weight_OI.abs()
    mask_OI = (
        pattern_mask(score_OI, config.pattern, linear.name) if config.pattern else prune_mask(score_OI, config.sparsity)
    )
    linear.prune(mask_OI)


METHOD = LinearMethod(config=Magnitude, needs=frozenset(), compress=compress, rowwise=False)
