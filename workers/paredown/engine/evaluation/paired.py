"""Base and artifact on the same rows: the difference, how sure it is, and what to call it.

The interval is a percentile bootstrap over rows (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993): both
models' answers to a row are drawn together, so what makes a row hard cancels. arXiv:2407.09141 ("Accuracy is Not All
You Need") is why flipped answers are counted too: two models may be equally often right on different rows.
Shapes: D rows.
"""

from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

Values = NDArray[numpy.float64]
Aggregation = Literal["mean", "perplexity"]
RESAMPLES = 2000
CONFIDENCE = 0.95
_SEED = 0


@dataclass(frozen=True)
class Difference:
    """Artifact less base. `low` and `high` are the ends of the 95 % interval."""

    value: float
    low: float
    high: float

    def verdict(self, *, higher_is_better: bool) -> Literal["better", "same", "worse"]:
        """same where the interval holds zero."""
        if self.low <= 0 <= self.high:
            return "same"
        return "better" if (self.low > 0) == higher_is_better else "worse"


def aggregated(values_D: Values, aggregation: Aggregation) -> float:
    """The mean; of log-likelihoods, the perplexity exp(-mean)."""
    mean = values_D.mean()
    with numpy.errstate(over="ignore"):
        return float(mean if aggregation == "mean" else numpy.exp(-mean))


def standard_error(values_D: Values, aggregation: Aggregation) -> float:
    """Of the mean, with D - 1; of a perplexity, that of the mean times the slope of exp."""
    if len(values_D) < 2:
        return 0.0
    error = float(values_D.std(ddof=1) / numpy.sqrt(len(values_D)))
    return error if aggregation == "mean" else error * aggregated(values_D, aggregation)


def difference(base_D: Values, artifact_D: Values, aggregation: Aggregation) -> Difference:
    """With an interval that is the same each time it is computed."""
    generator = numpy.random.default_rng(_SEED)
    num_rows = len(base_D)
    drawn = numpy.empty(RESAMPLES)
    for index in range(RESAMPLES):
        rows = generator.integers(num_rows, size=num_rows)
        drawn[index] = aggregated(artifact_D[rows], aggregation) - aggregated(base_D[rows], aggregation)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = numpy.percentile(drawn, [tail, 100 - tail])
    value = aggregated(artifact_D, aggregation) - aggregated(base_D, aggregation)
    return Difference(value, float(low), float(high))


def flipped(base_D: Values, artifact_D: Values) -> float | None:
    """Share of rows that one of the two has right and the other wrong; None where rows are more than that."""
    values = numpy.concatenate([base_D, artifact_D])
    if not numpy.isin(values, (0.0, 1.0)).all():
        return None
    return float((base_D != artifact_D).mean())
