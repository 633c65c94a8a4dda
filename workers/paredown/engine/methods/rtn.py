"""Round to nearest: every weight goes to the closest point of its group's grid; no calibration.

Paper: the baseline of Yao et al., "ZeroQuant", arXiv:2206.01861.
Units: bits for each weight; group_size in input channels.
"""

from paredown.contracts.recipes import Rtn
from paredown.engine.grid import nearest
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics


def compress(linear: LinearWeight, _inputs: InputStatistics, config: Rtn) -> None:
    """Weights that an earlier stage pruned stay zero: no plan lets them meet a grid without that point."""
    linear.quantize(nearest(linear.weight_OI, config, linear.storage_dtype, linear.name, wide=linear.wide))


METHOD = LinearMethod(config=Rtn, needs=frozenset(), compress=compress)
