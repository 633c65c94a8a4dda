"""The chart of a search's trials: what each lost against its bytes, with the limits as lines and the chosen one marked.

Loss is what the search goes by: mean divergence from the base where every trial of a rung has it, else perplexity.
Rungs are measured on different samples and never share a chart.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import altair as alt

from paredown.contracts.recipes import Recipe
from paredown.contracts.search import Rung, SearchDetails, TrialView, losses_of

# What became of a trial: its colour and shape. The last ones are drawn over the first.
FATES = {
    "beyond the limits": ("#b91c1c", "cross"),
    "not taken further": ("#9ca3af", "circle"),
    "within the limits": ("#0d9488", "circle"),
    "tried in full as well": ("#0d9488", "diamond"),
    "chosen": ("#d97706", "triangle-up"),
}
_LIMIT = "#b91c1c"
# From here on a linear axis hides the differences among good trials.
_LOGARITHMIC_FROM = 8.0


@dataclass(frozen=True)
class TrialPoint:
    """A measured trial on the chart."""

    number: int
    label: str
    size_ratio: float
    loss: float
    fate: str


@dataclass(frozen=True)
class TrialPoints:
    """Those of one rung. `is_divergence` tells what their loss is; no `loss_limit` where none has that unit."""

    points: tuple[TrialPoint, ...]
    is_divergence: bool
    loss_limit: float | None


def points(search: SearchDetails, rung: Rung) -> TrialPoints:
    """Trials of the rung that have figures."""
    trials = [trial for trial in search.members if trial.rung is rung]
    losses = losses_of(trials)
    measured = [trial for trial in trials if trial.number in losses and trial.size_ratio is not None]
    is_divergence = bool(measured) and all(losses[trial.number] == trial.divergence for trial in measured)
    carried = {trial.recipe for trial in search.members if trial.rung is Rung.FULL}
    found = [
        TrialPoint(
            trial.number, trial.label, trial.size_ratio or 0.0, losses[trial.number], _fate(search, trial, carried)
        )
        for trial in measured
    ]
    order = list(FATES)
    return TrialPoints(
        points=tuple(sorted(found, key=lambda point: order.index(point.fate))),
        is_divergence=is_divergence,
        loss_limit=None if is_divergence else _perplexity_limit(search, measured),
    )


def unmeasured(search: SearchDetails, rung: Rung) -> Counter[str]:
    """Trials of the rung that the chart cannot hold, by what they are: running, failed, or without a finite figure."""
    drawn = {point.number for point in points(search, rung).points}
    left = (trial for trial in search.members if trial.rung is rung and trial.number not in drawn)
    return Counter("without a finite figure" if trial.size_ratio is not None else trial.state.value for trial in left)


def chart(drawn: TrialPoints, size_limit: float | None) -> alt.LayerChart | None:
    """Nothing where nothing was measured."""
    if not drawn.points:
        return None
    losses = [point.loss for point in drawn.points] + ([drawn.loss_limit] if drawn.loss_limit is not None else [])
    logarithmic = min(losses) > 0 and max(losses) > _LOGARITHMIC_FROM * min(losses)
    name = "Mean divergence, nats" if drawn.is_divergence else "Perplexity"
    x = alt.X(
        "size_ratio:Q",
        title="Size, share of the base's bytes",
        scale=alt.Scale(zero=False, nice=True, padding=24),
        axis=alt.Axis(format="~%", tickCount=8),
    )
    y = alt.Y(
        "loss:Q",
        title=f"{name} ({'logarithmic' if logarithmic else 'lower is better'})",
        scale=alt.Scale(type="log", nice=True) if logarithmic else alt.Scale(zero=False, nice=True, padding=16),
        axis=alt.Axis(tickCount=6, format="~g"),
    )
    return alt.layer(*_limits(drawn.loss_limit, size_limit, x, y), _marks(drawn.points, name, x, y)).properties(
        height=400
    )


def _limits(loss_limit: float | None, size_limit: float | None, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    rules = []
    for limit, at, channel in ((size_limit, "size_ratio", {"x": x}), (loss_limit, "loss", {"y": y})):
        if limit is not None:
            rules.append(
                alt.Chart(alt.Data(values=[{at: limit, "what": "limit of the search"}]))
                .mark_rule(strokeDash=[6, 4], strokeWidth=1.5, color=_LIMIT)
                .encode(**channel, tooltip=[alt.Tooltip("what:N", title="Line"), alt.Tooltip(f"{at}:Q", format=".4~g")])
            )
    return rules


def _marks(shown: Sequence[TrialPoint], name: str, x: alt.X, y: alt.Y) -> alt.Chart:
    present = [fate for fate in FATES if any(point.fate == fate for point in shown)]
    legend = alt.Legend(orient="bottom", columns=2)
    return (
        alt.Chart(alt.Data(values=[asdict(point) for point in shown]))
        .mark_point(filled=True, strokeWidth=1.5, opacity=0.9)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "fate:N",
                title=None,
                scale=alt.Scale(domain=present, range=[FATES[fate][0] for fate in present]),
                legend=legend,
            ),
            shape=alt.Shape(
                "fate:N",
                title=None,
                scale=alt.Scale(domain=present, range=[FATES[fate][1] for fate in present]),
                legend=legend,
            ),
            size=alt.condition("datum.fate == 'chosen'", alt.value(320), alt.value(110)),
            tooltip=[
                alt.Tooltip("label:N", title="Recipe"),
                alt.Tooltip("loss:Q", title=name, format=".4~g"),
                alt.Tooltip("size_ratio:Q", title="Size", format=".1%"),
                alt.Tooltip("fate:N", title="What became of it"),
            ],
        )
    )


def _fate(search: SearchDetails, trial: TrialView, carried: Collection[Recipe]) -> str:
    if trial.number == search.chosen:
        return "chosen"
    if trial.rung is Rung.PROXY and trial.recipe in carried:
        return "tried in full as well"
    if trial.within_limits is False:
        return "beyond the limits"
    # While it still explores, nothing is given up yet.
    given_up = trial.rung is Rung.PROXY and (bool(carried) or search.state.terminal)
    return "not taken further" if given_up else "within the limits"


def _perplexity_limit(search: SearchDetails, measured: Sequence[TrialView]) -> float | None:
    limit = search.spec.max_perplexity_increase
    known = (
        trial.perplexity / (1 + trial.perplexity_increase)
        for trial in measured
        if trial.perplexity is not None and trial.perplexity_increase is not None
    )
    base = next(known, None)
    return None if limit is None or base is None else base * (1 + limit)
