"""The trade-off chart of one model, on the web page and as a file: PNG, SVG or CSV.

Drawing needs the extra `charts`: Altair, and for images vl-convert, which brings its own renderer and asks no network.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any, Literal

import altair as alt

from paredown.contracts.artifact import CostAxis, Front, FrontPoint
from paredown.contracts.report import Verdict

FAMILY_COLOURS = {
    "base": "#64748b",
    "depth": "#be123c",
    "width": "#4d7c0f",
    "training": "#1d4ed8",
    "pruning": "#d97706",
    "quantization": "#0d9488",
    "pruning + quantization": "#7c3aed",
}
DOMINATED = "#9ca3af"
BASE = "base model"
SELECTION = "point"
ImageFormat = Literal["png", "svg"]

_MORE_COLOURS = ("#2563eb", "#db2777", "#65a30d", "#0891b2")
_BUDGET = "#b91c1c"
_SHAPES = {
    BASE: "diamond",
    "budget met": "circle",
    "no budget": "square",
    "budget missed": "triangle-down",
    "budget overridden": "cross",
}
_VERDICTS = {
    None: "no budget",
    Verdict.PASSED: "budget met",
    Verdict.MISSED: "budget missed",
    Verdict.OVERRIDDEN: "budget overridden",
}
# From here on a linear axis hides the differences among good points.
_LOGARITHMIC_FROM = 8.0
# So many times the lowest perplexity is broken, however much more it is: such a point lies at the upper edge, where it
# does not press all others together.
_BROKEN_FROM = 10.0
_IMAGE_WIDTH, _HEIGHT = 900, 620


@dataclass(frozen=True)
class Axis:
    """A cost that the chart can have along its bottom; `column` names the Point's field."""

    name: str
    column: str
    title: str
    lower_is_better: bool


AXES: dict[CostAxis, Axis] = {
    "size_bytes": Axis("Size", "size_mb", "Size of the weights, MB (smaller is better)", True),
    "decode_tokens_per_second": Axis("Decode speed", "speed", "Decode speed, tokens/s (faster is better)", False),
    "time_to_first_token_seconds": Axis(
        "First token", "first_token_ms", "Time to the first token, ms (shorter is better)", True
    ),
    "peak_memory_bytes": Axis("Memory", "memory_mb", "Peak memory of the runtime, MB (less is better)", True),
    "cost_per_million_tokens": Axis("Cost", "cost", "Cost of a million tokens (cheaper is better)", True),
}


@dataclass(frozen=True)
class Point:
    """A model on the chart. The base has an empty id. `perplexity_change` and `size_ratio` are against the base."""

    id: str
    name: str
    methods: str
    family: str
    verdict: str
    on_front: bool
    perplexity: float
    perplexity_change: float | None
    size_mb: float
    size_ratio: float | None
    speed: float | None
    first_token_ms: float | None
    memory_mb: float | None
    cost: float | None
    currency: str | None


@dataclass(frozen=True)
class BudgetLines:
    """Where a budget lies on a chart; None where it says nothing of that axis."""

    perplexity: float | None = None
    cost: float | None = None


def family_name(methods: Sequence[str], families: Mapping[str, str]) -> str:
    """`pruning + quantization` for a recipe of both; a method that is not known goes by its own name."""
    return " + ".join(dict.fromkeys(families.get(method, method) for method in methods)) or "base"


def points(front: Front, families: Mapping[str, str]) -> list[Point]:
    """Those with a figure for the front's axis, from its lowest value to its highest."""
    column = AXES[front.cost_axis].column
    base = _base(front)
    placed = [_point(point, base, families, front.currency) for point in front.points]
    return sorted(
        (point for point in placed if getattr(point, column) is not None), key=lambda point: getattr(point, column)
    )


def budget_lines(front: Front, limits: Mapping[str, float]) -> BudgetLines:
    """A budget's terms, by figure, as places on the front's axes. What is against the base needs one on the front.

    A limit of cost has no place: it is of the prices at its job's time, which the axis is not.
    """
    base = _base(front)
    increase = limits.get("perplexity_increase")
    return BudgetLines(
        perplexity=None if increase is None or base is None else base.perplexity * (1 + increase),
        cost=_cost_limit(front.cost_axis, base, limits),
    )


def _cost_limit(cost_axis: CostAxis, base: FrontPoint | None, limits: Mapping[str, float]) -> float | None:
    """In the unit of the axis."""
    if cost_axis == "peak_memory_bytes" and "runtime_memory_bytes" in limits:
        return limits["runtime_memory_bytes"] / 1e6
    if cost_axis == "size_bytes" and "size_ratio" in limits and base:
        return limits["size_ratio"] * base.size_bytes / 1e6
    if cost_axis == "decode_tokens_per_second" and "decode_speedup" in limits and base:
        speed = base.decode_tokens_per_second
        return None if speed is None else limits["decode_speedup"] * speed
    return None


def _base(front: Front) -> FrontPoint | None:
    return next((point for point in front.points if point.artifact_id is None), None)


def _point(point: FrontPoint, base: FrontPoint | None, families: Mapping[str, str], currency: str | None) -> Point:
    is_base = point.artifact_id is None
    first_token, memory = point.time_to_first_token_seconds, point.peak_memory_bytes
    return Point(
        id="" if is_base else str(point.artifact_id),
        name=point.name,
        methods=" + ".join(point.methods) or "none",
        family=family_name(point.methods, families),
        verdict=BASE if is_base else _VERDICTS[point.verdict],
        on_front=point.on_front,
        perplexity=point.perplexity,
        perplexity_change=None if is_base or base is None else point.perplexity / base.perplexity - 1,
        size_mb=point.size_bytes / 1e6,
        size_ratio=point.size_bytes / base.size_bytes if base else None,
        speed=point.decode_tokens_per_second,
        first_token_ms=None if first_token is None else first_token * 1e3,
        memory_mb=None if memory is None else memory / 1e6,
        cost=point.cost_per_million_tokens,
        currency=currency,
    )


def front_chart(shown: Sequence[Point], cost_axis: CostAxis, budget: BudgetLines, *, dark: bool) -> dict[str, Any]:
    """Perplexity against the cost as Vega-Lite; the front is a step line, the budget dashed. Clicks select points as
    `SELECTION`.

    The points stand apart from the chart, as data sets: Altair would copy and check each value many times over.
    """
    axis = AXES[cost_axis]
    edge = max(_BROKEN_FROM * min(point.perplexity for point in shown), budget.perplexity or 0.0)
    figures = [min(point.perplexity, edge) for point in shown]
    figures += [] if budget.perplexity is None else [budget.perplexity]
    logarithmic = max(figures) > _LOGARITHMIC_FROM * min(figures)
    title = ["Perplexity (lower is better" + (", logarithmic)" if logarithmic else ")")]
    if any(point.perplexity > edge for point in shown):
        title.append(f"beyond {edge:.3g} at the upper edge")
    y = alt.Y(
        "drawn:Q",
        title=title,
        # Whole powers of ten would leave most of a logarithmic axis empty.
        scale=alt.Scale(type="log", domain=[min(figures) * 0.9, max(figures) * 1.1], nice=False)
        if logarithmic
        else alt.Scale(zero=False, nice=True, padding=16),
        axis=alt.Axis(tickCount=6, format="~s") if logarithmic else alt.Axis(tickCount=6),
    )
    x = alt.X(f"{axis.column}:Q", title=axis.title, scale=alt.Scale(zero=False, nice=True, padding=24))
    # The best perplexity that is to be had at a cost: a step, never a slope between two models.
    steps = (
        alt.Chart(alt.NamedData("front"))
        .mark_line(interpolate="step-after" if axis.lower_is_better else "step-before", strokeWidth=2, opacity=0.6)
        .encode(x=x, y=y, order=alt.Order(f"{axis.column}:Q"), color=alt.value("#94a3b8" if dark else "#64748b"))
    )
    rules = _rules(budget, axis.column, x, y)
    layers = alt.layer(steps, *rules, _marks(shown, x, y)).properties(height=_HEIGHT)
    spec: dict[str, Any] = layers.to_dict()
    colours = _colours(shown)
    # Those on the front are drawn last, so that no dominated one hides them.
    ordered = sorted(shown, key=lambda point: point.on_front)
    lines = [asdict(point) | {"fill": _fill(point, colours), "drawn": min(point.perplexity, edge)} for point in ordered]
    return spec | {
        "datasets": {"points": lines, "front": [line for line in lines if line["on_front"]]},
        # One legend below the other, since side by side they do not fit a telephone. Altair does not know this setting.
        "config": {"legend": {"layout": {"bottom": {"direction": "vertical", "anchor": "start"}}}},
    }


def _rules(budget: BudgetLines, column: str, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    drawn = []
    for place, channel, at in ((budget.cost, {"x": x}, column), (budget.perplexity, {"y": y}, "drawn")):
        if place is not None:
            drawn.append(
                alt.Chart(alt.Data(values=[{at: place, "what": "limit of the budget"}]))
                .mark_rule(strokeDash=[6, 4], strokeWidth=1.5, color=_BUDGET)
                .encode(**channel, tooltip=[alt.Tooltip("what:N", title="Line"), alt.Tooltip(f"{at}:Q", format=".4~g")])
            )
    return drawn


def _marks(shown: Sequence[Point], x: alt.X, y: alt.Y) -> alt.Chart:
    present = {point.verdict for point in shown}
    shapes = [name for name in _SHAPES if name in present]
    colours = _colours(shown)
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    picked = alt.selection_point(name=SELECTION, fields=["id"], on="click", clear="dblclick", toggle="true")
    is_on_front = "datum.on_front"
    return (
        alt.Chart(alt.NamedData("points"))
        .mark_point(filled=True, strokeWidth=1.5, cursor="pointer")
        .encode(
            x=x,
            y=y,
            shape=alt.Shape(
                "verdict:N",
                title="Budget",
                scale=alt.Scale(domain=shapes, range=[_SHAPES[name] for name in shapes]),
                legend=alt.Legend(orient="bottom", columns=3),
            ),
            fill=alt.Fill("fill:N", scale=None, legend=None),
            stroke=alt.Stroke(
                "family:N",
                title="Family",
                scale=scale,
                legend=alt.Legend(orient="bottom", columns=2, symbolType="circle"),
            ),
            fillOpacity=alt.condition(is_on_front, alt.value(0.95), alt.value(0.25)),
            strokeOpacity=alt.condition(is_on_front, alt.value(1), alt.value(0.5)),
            size=alt.condition(picked, alt.value(280), alt.value(130), empty=False),
            tooltip=[
                alt.Tooltip("name:N", title="Model"),
                alt.Tooltip("methods:N", title="Methods"),
                alt.Tooltip("perplexity:Q", title="Perplexity", format=".4~g"),
                alt.Tooltip("perplexity_change:Q", title="Against the base", format="+.3~p"),
                alt.Tooltip("size_mb:Q", title="Size, MB", format=".4~g"),
                alt.Tooltip("speed:Q", title="Decode, tokens/s", format=".3~g"),
                alt.Tooltip("first_token_ms:Q", title="First token, ms", format=".3~g"),
                alt.Tooltip("memory_mb:Q", title="Peak memory, MB", format=".4~g"),
                alt.Tooltip("cost:Q", title="A million tokens", format=".3~g"),
                alt.Tooltip("verdict:N", title="Budget"),
            ],
        )
        .add_params(picked)
    )


def _colours(shown: Sequence[Point]) -> dict[str, str]:
    """By family, in the order of the points."""
    spare = iter(_MORE_COLOURS * 8)
    return {name: FAMILY_COLOURS.get(name) or next(spare) for name in dict.fromkeys(point.family for point in shown)}


def _fill(point: Point, colours: Mapping[str, str]) -> str:
    return colours[point.family] if point.on_front else DOMINATED


def image(spec: Mapping[str, Any], image_format: ImageFormat) -> bytes:
    """The chart drawn on white. Takes a second: the renderer starts with the first image."""
    # Of the command and the page, only what exports needs it.
    import vl_convert

    drawn = {**spec, "width": _IMAGE_WIDTH, "background": "white"}
    if image_format == "svg":
        return str(vl_convert.vegalite_to_svg(drawn)).encode()
    return bytes(vl_convert.vegalite_to_png(drawn, scale=2))


def csv_text(shown: Sequence[Point]) -> str:
    """One line for each point, with units in the names of the columns."""
    text = StringIO()
    writer = csv.DictWriter(text, list(asdict(shown[0])))
    writer.writeheader()
    writer.writerows(asdict(point) for point in shown)
    return text.getvalue()
