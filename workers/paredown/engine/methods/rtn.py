"""Round to nearest: every weight goes to the closest point of its group's grid; no calibration.

Paper: the baseline of Yao et al., "ZeroQuant", arXiv:2206.01861.
Shapes: O out_features, I in_features, G groups along the input, S weights of a group.
Units: bits for each weight; group_size in input channels.
"""

from paredown.contracts.recipes import Rtn
from paredown.engine.grid import fit_grid, group_width, quantized_linear
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics


def compress(linear: LinearWeight, _inputs: InputStatistics, config: Rtn) -> None:
    """Zero is a point of every grid, so weights that an earlier stage pruned stay zero."""
    out_features, in_features = linear.weight_OI.shape
    weight_OGS = linear.weight_OI.reshape(out_features, -1, group_width(in_features, config, linear.name))
    grid = fit_grid(weight_OGS, config, linear.storage_dtype)
    linear.quantize(quantized_linear(grid.codes(weight_OGS).flatten(1), grid, config))


METHOD = LinearMethod(config=Rtn, needs=frozenset(), compress=compress)
