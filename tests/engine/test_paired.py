"""Base and artifact on the same rows: intervals, verdicts and flips, against what is known by hand."""

import math

import numpy
import pytest

from paredown.engine.evaluation.paired import Aggregation, aggregated, difference, flipped, standard_error


def rows(text: str) -> numpy.ndarray:
    return numpy.asarray([float(letter) for letter in text])


def test_equal_answers_differ_by_nothing_at_all() -> None:
    found = difference(rows("1011"), rows("1011"), "mean")
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.verdict(higher_is_better=True) == "same"


@pytest.mark.parametrize(("higher_is_better", "verdict"), [(True, "worse"), (False, "better")])
def test_a_large_drop_is_no_chance(higher_is_better: bool, verdict: str) -> None:
    base, artifact = numpy.ones(200), rows("1" * 150 + "0" * 50)
    found = difference(base, artifact, "mean")
    assert found.value == pytest.approx(-0.25)
    # The normal approximation of a share of 0.25 over 200 rows.
    error = 1.96 * math.sqrt(0.25 * 0.75 / 200)
    assert (found.low, found.high) == pytest.approx((-0.25 - error, -0.25 + error), abs=0.01)
    assert found.verdict(higher_is_better=higher_is_better) == verdict


def test_as_many_rows_lost_as_won_are_the_same_in_the_mean_and_told_as_flips() -> None:
    base, artifact = rows("10" * 100), rows("01" * 100)
    assert difference(base, artifact, "mean").verdict(higher_is_better=True) == "same"
    assert flipped(base, artifact) == 1
    assert flipped(rows("1100"), rows("1000")) == 0.25
    assert flipped(numpy.asarray([0.3, 0.5]), numpy.asarray([0.3, 0.6])) is None


def test_pairing_narrows_the_interval() -> None:
    generator = numpy.random.default_rng(1)
    base = generator.normal(size=300)
    artifact = base - 0.05 + 0.01 * generator.normal(size=300)
    found = difference(base, artifact, "mean")
    assert found.high < 0, "the rows differ by a hundred times the drop, and it is seen all the same"


@pytest.mark.parametrize(
    ("aggregation", "value", "error"),
    [("mean", -2.0, 1 / math.sqrt(3)), ("perplexity", math.e**2, math.e**2 / math.sqrt(3))],
)
def test_figures_and_their_standard_errors(aggregation: Aggregation, value: float, error: float) -> None:
    values = numpy.asarray([-1.0, -2.0, -3.0])
    assert aggregated(values, aggregation) == pytest.approx(value)
    assert standard_error(values, aggregation) == pytest.approx(error)


def test_an_interval_is_the_same_each_time() -> None:
    base, artifact = rows("1101" * 20), rows("1001" * 20)
    assert difference(base, artifact, "mean") == difference(base, artifact, "mean")
