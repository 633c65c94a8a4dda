"""E-Sparse: N:M pruning that also counts how much information an input channel carries, with channels shuffled to suit.

Paper: Li et al., "E-Sparse: Boosting the Large Language Model Inference through Entropy-based N:M Sparsity",
arXiv:2310.15929. A weight's score is |weight| × (norm + entropy_weight × entropy) of its input channel, both as a share
of the layer's mean, so that one weight suits every layer; no weight changes. Channels are then shuffled, globally and
locally, so that those that matter do not share a group of M, where that can be folded into the rows of the linears
before: the paper's runtime shuffles activations of every layer, which stock runtimes do not (engine/shuffle.py).
Shapes: O out_features, I in_features, B blocks of channels that may change places, R rows that score them.
"""

import torch

from paredown.contracts.recipes import Esparse
from paredown.contracts.recipes.pruning import parse_pattern
from paredown.engine.masks import check_pattern, pattern_mask
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.shuffle import shuffled
from paredown.engine.statistics import InputStatistics, Statistic


def compress(linear: LinearWeight, inputs: InputStatistics, config: Esparse) -> None:
    """Raises RecipeUnfit."""
    in_features = linear.weight_OI.shape[1]
    check_pattern(config.pattern, in_features, linear.name)
    norm_I, entropy_I = inputs.energy_I.sqrt(), inputs.entropy_I
    importance_I = _relative(norm_I) + config.entropy_weight * _relative(entropy_I)
    score_OI = linear.weight_OI.abs() * importance_I
    kept, of = parse_pattern(config.pattern)
    exchange = linear.exchange
    if config.shuffle and exchange is not None and in_features // (exchange.blocks * exchange.repeats) % of == 0:
        order_BC = torch.stack([shuffled(score_RC, kept, of) for score_RC in exchange.scores(score_OI)])
        linear.reorder(order_BC)
        score_OI = score_OI[:, exchange.columns(order_BC)]
    linear.prune(pattern_mask(score_OI, config.pattern, linear.name))


def _relative(figure_I: torch.Tensor) -> torch.Tensor:
    """As a share of the mean; a layer that was never active has none."""
    mean = figure_I.mean()
    return figure_I / mean if bool(mean > 0) else torch.ones_like(figure_I)


METHOD = LinearMethod(config=Esparse, needs=frozenset({Statistic.ENTROPY}), compress=compress)
