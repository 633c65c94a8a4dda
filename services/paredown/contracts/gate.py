"""The gate: a budget against a report, term by term.

One table says of each term which figure it limits and what must be measured for it. A figure that was not measured, or
is not finite, misses. Where it can be known before the work that a figure will not be measured, the job is refused.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from paredown.contracts.job import Budget
from paredown.contracts.report import Check, Divergence, Figure, Gate, Report, Verdict


class Need(StrEnum):
    """What must happen for a figure to be measured, as a sentence says why it was not."""

    EVALUATION = "nothing is evaluated"
    BASE = "the model is an artifact, and the base that it was made of is not here to be compared with"
    SPEED = "evaluation.speed is false, and it is measured together with speed"


Unit = Literal["share", "change", "nats", "times", "bytes", "money"]


@dataclass(frozen=True)
class Term:
    """One field of a budget. `title` and `unit` are how people read its figure."""

    figure: Figure
    title: str
    unit: Unit
    measured: Callable[[Report], float | None]
    needs: frozenset[Need] = frozenset()
    # Whether the limit is the least allowed, not the most.
    least: bool = False

    @property
    def field(self) -> str:
        return f"{'min' if self.least else 'max'}_{self.figure}"

    def check(self, limit: float, report: Report) -> Check:
        value = self.measured(report)
        passed = value is not None and (value >= limit if self.least else value <= limit)
        return Check(
            figure=self.figure,
            bound="least" if self.least else "most",
            limit=limit,
            value=value,
            passed=passed,
            detail="It was not measured, so it is missed." if value is None else None,
        )


def _of_divergence(figure: Callable[[Divergence], float]) -> Callable[[Report], float | None]:
    return lambda report: figure(report.divergence) if report.divergence else None


_COMPARED = frozenset({Need.EVALUATION, Need.BASE})
_TIMED = frozenset({Need.EVALUATION, Need.SPEED})

_ALL = (
    Term("size_ratio", "Size, share of the base", "share", lambda report: report.size_ratio),
    # Of an artifact's base the figure may be known from an earlier job; core/planning.py asks.
    Term(
        "perplexity_increase",
        "Rise in perplexity",
        "change",
        lambda report: report.perplexity_increase,
        frozenset({Need.EVALUATION}),
    ),
    Term("mean_divergence", "Mean divergence", "nats", _of_divergence(lambda divergence: divergence.mean), _COMPARED),
    Term(
        "p99_divergence",
        "99th percentile of divergence",
        "nats",
        _of_divergence(lambda divergence: divergence.p99),
        _COMPARED,
    ),
    Term(
        "top1_agreement",
        "Same most likely token",
        "share",
        _of_divergence(lambda divergence: divergence.top1_agreement),
        _COMPARED,
        least=True,
    ),
    Term(
        "answers_lost",
        "Right answers lost",
        "share",
        _of_divergence(lambda divergence: divergence.answers_lost),
        _COMPARED,
    ),
    Term("task_drop", "Drop of a task, at worst", "share", lambda report: report.task_drop, _COMPARED),
    Term(
        "repetition_increase",
        "Rise in repetition",
        "change",
        lambda report: report.repetition_increase,
        _TIMED | {Need.BASE},
    ),
    Term(
        "decode_speedup",
        "Decode speed over the base's",
        "times",
        lambda report: report.decode_speedup,
        _TIMED | {Need.BASE},
        least=True,
    ),
    Term(
        "runtime_memory_bytes",
        "Memory of the runtime",
        "bytes",
        lambda report: report.speeds["artifact"].peak_memory_bytes if "artifact" in report.speeds else None,
        _TIMED,
    ),
    Term(
        "cost_per_million_tokens",
        "Cost of a million tokens",
        "money",
        lambda report: report.cost.artifact_per_million_tokens if report.cost else None,
        _TIMED,
    ),
)
TERMS: dict[Figure, Term] = {term.figure: term for term in _ALL}


def judge(budget: Budget, report: Report) -> Gate:
    """Every term that the budget has, against the report; one miss is enough."""
    checks = tuple(
        term.check(limit, report) for term in TERMS.values() if (limit := getattr(budget, term.field)) is not None
    )
    verdict = Verdict.PASSED if all(check.passed for check in checks) else Verdict.MISSED
    return Gate(verdict=verdict, checks=checks)


def unmeasurable(budget: Budget, *, evaluated: bool, speed: bool, base_is_here: bool) -> Iterator[tuple[str, str]]:
    """Fields of the budget whose figure will not be measured, each with the reason as a clause."""
    missing = {
        need for need, met in ((Need.EVALUATION, evaluated), (Need.BASE, base_is_here), (Need.SPEED, speed)) if not met
    }
    for term in TERMS.values():
        reasons = [need.value for need in Need if need in term.needs & missing]
        if reasons and getattr(budget, term.field) is not None:
            yield term.field, reasons[0]
