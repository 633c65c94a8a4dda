"""SparseGPT: drop weights column by column, and let the columns still to come make up for what each one lost.

Paper: Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv:2301.00774.
What goes is decided on the way, from the weights as updated by then: for `sparsity`, among all weights of the next 128
columns of a layer; for an N:M pattern, in each row's next M. A weight's score is the loss that dropping it alone would
cause once later columns have made up for it, w² / [inv(H)]ⱼⱼ. How many of 128 columns' weights go is not the same share
everywhere, as in the paper, but what the scores of the whole layer say before the sweep: columns that hardly matter
leave more to those that do. An N:M group takes the same from every column, so those with the largest activations go
first, while there are most columns left to make up for them; for `sparsity` columns go as they lie.
Followed by `gptq` it is solved jointly (the paper's section 3.5): one sweep drops and rounds, so each column also makes
up for the rounding of those before it. Columns go in the order that `gptq` asks for, an N:M group as one; every scale
is found beforehand, from the weights that are expected to stay.
Shapes: O out_features, I in_features (in the order of work), B columns decided together.
Units: sparsity is a fraction of the layer, 0 to 1; damping is a share of the Hessian's mean diagonal.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from paredown.contracts.recipes import Gptq, Sparsegpt
from paredown.contracts.recipes.pruning import parse_pattern
from paredown.engine.columns import LAZY_COLUMNS, Rounding, channel_importance, ordered, restored, sweep
from paredown.engine.masks import check_pattern, lowest
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics, Statistic


def compress(linear: LinearWeight, inputs: InputStatistics, config: Sparsegpt) -> None:
    """Raises HessianSingular, RecipeUnfit."""
    neighbours = _neighbours(linear, config)
    upper_II, order_I = inputs.inverse_factor(config.damping, neighbours is not None, neighbours or 1)
    decisions = _Decisions(linear, inputs, config, upper_II, order_I)
    kept_IO = torch.empty_like(decisions.weight_IO)

    def settle(column: int, weight_O: Tensor) -> Tensor:
        return torch.mul(weight_O, ~decisions.pruned_IO[column], out=kept_IO[column])

    decisions.sweep(upper_II, settle)
    linear.weight_OI = restored(kept_IO, order_I).T.contiguous()
    linear.prune(restored(decisions.pruned_IO, order_I).T.contiguous())


def compress_jointly(linear: LinearWeight, inputs: InputStatistics, pruning: Sparsegpt, rounding_to: Gptq) -> None:
    """Both stages in one sweep. Raises HessianSingular, RecipeUnfit, GroupSizeUnfit."""
    neighbours = _neighbours(linear, pruning)
    upper_II, order_I = inputs.inverse_factor(rounding_to.damping, rounding_to.activation_order, neighbours or 1)
    decisions = _Decisions(linear, inputs, pruning, upper_II, order_I)
    rounding = Rounding(linear, rounding_to, order_I, channel_importance(inputs.energy_I), decisions.pruned_IO)
    rounding.fit_all(linear.weight_OI.masked_fill(restored(decisions.expected_IO, order_I).T, 0))
    decisions.sweep(upper_II, rounding.settle)
    linear.prune(restored(decisions.pruned_IO, order_I).T.contiguous())
    linear.quantize(rounding.quantized())


def _neighbours(linear: LinearWeight, config: Sparsegpt) -> int | None:
    """Columns that a pattern holds together."""
    if config.pattern is None:
        return None
    check_pattern(config.pattern, linear.weight_OI.shape[1], linear.name)
    return parse_pattern(config.pattern)[1]


class _Decisions:
    """Which weights go: decided for some columns at a time, from the weights as they are by then."""

    def __init__(
        self,
        linear: LinearWeight,
        inputs: InputStatistics,
        config: Sparsegpt,
        upper_II: Tensor,
        order_I: Tensor | None,
    ) -> None:
        self.weight_IO = ordered(linear.weight_OI.T, order_I)
        self.pruned_IO = torch.zeros_like(self.weight_IO, dtype=torch.bool)
        # What an earlier stage pruned is gone already, and counts.
        self._gone_IO = None if linear.pruned_OI is None else ordered(linear.pruned_OI.T, order_I)
        # What reads a channel that was silent is lost for nothing, so it goes first.
        live_I = ordered(inputs.energy_I > 0, order_I)
        self._weight_I = live_I / upper_II.diagonal().square()
        self._pattern = parse_pattern(config.pattern) if config.pattern else None
        self._run = self._pattern[1] if self._pattern else LAZY_COLUMNS
        score_IO = self._scores(0, len(self.weight_IO))
        self.expected_IO = (
            _lowest_in_groups(score_IO, *self._pattern)
            if self._pattern
            else lowest(score_IO, int(score_IO.numel() * config.sparsity + 1e-9))
        )

    def decide(self, first: int, last: int) -> None:
        """For the columns from `first` until before `last`."""
        score_BO = self._scores(first, last)
        if self._pattern is not None:
            mask_BO = _lowest_in_groups(score_BO, *self._pattern)
        else:
            mask_BO = lowest(score_BO, int(self.expected_IO[first:last].sum()))
        self.pruned_IO[first:last] = mask_BO if self._gone_IO is None else mask_BO | self._gone_IO[first:last]

    def sweep(self, upper_II: Tensor, settle: Callable[[int, Tensor], Tensor]) -> None:
        """Decide and settle all columns."""
        step = LAZY_COLUMNS // self._run * self._run
        sweep(self.weight_IO, upper_II, settle, prepare=self.decide, step=step, run=self._run)

    def _scores(self, first: int, last: int) -> Tensor:
        score_BO = self.weight_IO[first:last].square() * self._weight_I[first:last].unsqueeze(1)
        return score_BO if self._gone_IO is None else score_BO.masked_fill_(self._gone_IO[first:last], -1)


def _lowest_in_groups(score_BO: Tensor, kept: int, of: int) -> Tensor:
    """True for all but the `kept` highest scores of every `of` columns."""
    score_GMO = score_BO.view(-1, of, score_BO.shape[1])
    dropped = score_GMO.topk(of - kept, dim=1, largest=False).indices
    return torch.zeros_like(score_GMO, dtype=torch.bool).scatter_(1, dropped, True).view_as(score_BO)


METHOD = LinearMethod(
    config=Sparsegpt,
    needs=frozenset({Statistic.HESSIAN}),
    compress=compress,
    rowwise=False,
    joint={"gptq": compress_jointly},
)
