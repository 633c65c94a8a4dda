"""The trade-off chart of one model; of one artifact, its blocks' importance, its training and its layers' error."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import altair as alt

from paredown.contracts.artifact import Front, FrontPoint, LayerReport, StageReport, Verdict
from paredown.web import format as fmt

FAMILY_COLOURS = {
    "base": "#64748b",
    "depth": "#be123c",
    "width": "#4d7c0f",
    "training": "#1d4ed8",
    "pruning": "#d97706",
    "quantization": "#0d9488",
    "pruning + quantization": "#7c3aed",
}
_MORE_COLOURS = ("#2563eb", "#db2777", "#65a30d", "#0891b2")
_DOMINATED = "#9ca3af"
BASE = "base model"
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
SELECTION = "point"


@dataclass(frozen=True)
class Axis:
    """A cost that the chart can have along its bottom; `column` names the Point's field."""

    name: str
    column: str
    title: str
    lower_is_better: bool


AXES = {
    "size_bytes": Axis("Size", "size_mb", "Size of the weights, MB (smaller is better)", True),
    "decode_tokens_per_second": Axis("Decode speed", "speed", "Decode speed, tokens/s (faster is better)", False),
    "cost_per_million_tokens": Axis("Cost", "cost", "Cost of a million tokens (cheaper is better)", True),
}


@dataclass(frozen=True)
class Point:
    """A model on the chart: figures to place it, texts to describe it. The base has an empty id."""

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
    cost: float | None
    perplexity_text: str
    change_text: str
    size_text: str
    speed_text: str
    cost_text: str


def family_name(methods: Sequence[str], families: Mapping[str, str]) -> str:
    """`pruning + quantization` for a recipe of both; a method that is not known goes by its own name."""
    return " + ".join(dict.fromkeys(families.get(method, method) for method in methods)) or "base"


def points(front: Front, families: Mapping[str, str], currency: str | None) -> list[Point]:
    """Those with a figure for the front's axis, from its lowest value to its highest."""
    column = AXES[front.cost_axis].column
    base = next((point for point in front.points if point.artifact_id is None), None)
    placed = [_point(point, base, families, currency) for point in front.points]
    return sorted(
        (point for point in placed if getattr(point, column) is not None), key=lambda point: getattr(point, column)
    )


def _point(point: FrontPoint, base: FrontPoint | None, families: Mapping[str, str], currency: str | None) -> Point:
    is_base = point.artifact_id is None
    change = None if is_base or base is None else point.perplexity / base.perplexity - 1
    return Point(
        id="" if is_base else str(point.artifact_id),
        name=point.name,
        methods=" + ".join(point.methods) or "none",
        family=family_name(point.methods, families),
        verdict=BASE if is_base else _VERDICTS[point.verdict],
        on_front=point.on_front,
        perplexity=point.perplexity,
        perplexity_change=change,
        size_mb=point.size_bytes / 1e6,
        size_ratio=point.size_bytes / base.size_bytes if base else None,
        speed=point.decode_tokens_per_second,
        cost=point.cost_per_million_tokens,
        perplexity_text=fmt.perplexity(point.perplexity),
        change_text=fmt.change(change),
        size_text=fmt.size(point.size_bytes),
        speed_text=fmt.speed(point.decode_tokens_per_second),
        cost_text=fmt.money(point.cost_per_million_tokens, currency),
    )


def front_chart(shown: Sequence[Point], cost_axis: str, *, dark: bool) -> alt.LayerChart:
    """Perplexity against the cost; the front as a step line. A click on a point selects it as `SELECTION`."""
    axis = AXES[cost_axis]
    figures = [point.perplexity for point in shown]
    logarithmic = max(figures) > _LOGARITHMIC_FROM * min(figures)
    y = alt.Y(
        "perplexity:Q",
        title="Perplexity (lower is better" + (", logarithmic)" if logarithmic else ")"),
        scale=alt.Scale(type="log", nice=True) if logarithmic else alt.Scale(zero=False, nice=True, padding=16),
        axis=alt.Axis(tickCount=6, format="~s") if logarithmic else alt.Axis(tickCount=6),
    )
    x = alt.X(f"{axis.column}:Q", title=axis.title, scale=alt.Scale(zero=False, nice=True, padding=24))
    # The best perplexity that is to be had at a cost: a step, never a slope between two models.
    steps = (
        alt.Chart(alt.Data(values=[asdict(point) for point in shown if point.on_front]))
        .mark_line(interpolate="step-after" if axis.lower_is_better else "step-before", strokeWidth=2, opacity=0.6)
        .encode(x=x, y=y, order=alt.Order(f"{axis.column}:Q"), color=alt.value("#94a3b8" if dark else "#64748b"))
    )
    return alt.layer(steps, _marks(shown, x, y)).properties(height=440)


def _marks(shown: Sequence[Point], x: alt.X, y: alt.Y) -> alt.Chart:
    present = {point.verdict for point in shown}
    shapes = [name for name in _SHAPES if name in present]
    colours = _colours(list(dict.fromkeys(point.family for point in shown)))
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    picked = alt.selection_point(name=SELECTION, fields=["id"], on="click", clear="dblclick", toggle=False)
    is_on_front = "datum.on_front"
    return (
        alt.Chart(alt.Data(values=[asdict(point) | {"fill": _fill(point, colours)} for point in shown]))
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
                alt.Tooltip("perplexity_text:N", title="Perplexity"),
                alt.Tooltip("change_text:N", title="Against the base"),
                alt.Tooltip("size_text:N", title="Size"),
                alt.Tooltip("speed_text:N", title="Decode speed"),
                alt.Tooltip("cost_text:N", title="A million tokens"),
                alt.Tooltip("verdict:N", title="Budget"),
            ],
        )
        .add_params(picked)
    )


def _colours(names: Sequence[str]) -> dict[str, str]:
    spare = iter(_MORE_COLOURS * 8)
    return {name: FAMILY_COLOURS.get(name) or next(spare) for name in names}


def _fill(point: Point, colours: Mapping[str, str]) -> str:
    return colours[point.family] if point.on_front else _DOMINATED


def layer_lines(layers: Sequence[LayerReport]) -> list[dict[str, Any]]:
    """Errors by block and kind of linear; `model.layers.3.mlp.up_proj` is block 3, kind `up_proj`.

    The experts of a mixture are kinds of their own: `up_proj of experts`.
    """
    lines = []
    for position, layer in enumerate(layers):
        numbers = [part for part in layer.name.split(".") if part.isdigit()]
        leaf = layer.name.rsplit(".", 1)[-1]
        lines.append(
            {
                "name": layer.name,
                "block": int(numbers[0]) if numbers else position,
                "kind": f"{leaf} of experts" if ".experts." in layer.name else leaf,
                "error": layer.error,
                "bits": layer.bits,
                "zeros": layer.zeros / layer.weights if layer.weights else 0.0,
            }
        )
    return lines


def layers_chart(lines: Sequence[Mapping[str, Any]]) -> alt.Chart | None:
    """Relative output error of each linear along the depth of the model; nothing where none is known.

    A block has many experts, of which the worst is shown.
    """
    points: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in sorted((line for line in lines if line["error"]), key=lambda line: float(line["error"])):
        of_experts = line["kind"].endswith(" of experts")
        points[(str(line["block"]), line["kind"]) if of_experts else (line["name"],)] = dict(line)
    known = sorted(points.values(), key=lambda line: int(line["block"]))
    if not known:
        return None
    return (
        alt.Chart(alt.Data(values=known))
        .mark_line(point=alt.OverlayMarkDef(size=32, filled=True), strokeWidth=1.5)
        .encode(
            x=alt.X("block:Q", title="Block", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y(
                "error:Q",
                title="Relative error",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format="~%", tickCount=5),
            ),
            color=alt.Color("kind:N", title=None, legend=alt.Legend(orient="bottom", columns=3)),
            tooltip=[
                alt.Tooltip("name:N", title="Layer"),
                alt.Tooltip("error:Q", title="Error", format=".3%"),
                alt.Tooltip("zeros:Q", title="Zeros", format=".1%"),
                alt.Tooltip("bits:Q", title="Bits", format=".2f"),
            ],
        )
        .properties(height=300)
    )


def blocks_chart(stage: StageReport) -> alt.Chart:
    """A bar for each block that the stage measured; those that it dropped stand out."""
    fates = {True: "kept", False: "dropped"}
    bars = [block.model_dump() | {"fate": fates[block.kept]} for block in stage.blocks if block.importance is not None]
    scale = alt.Scale(domain=["kept", "dropped"], range=[_DOMINATED, FAMILY_COLOURS["depth"]])
    return (
        alt.Chart(alt.Data(values=bars))
        .mark_bar()
        .encode(
            x=alt.X(
                "block:O",
                title="Block of the base",
                scale=alt.Scale(domain=[block.block for block in stage.blocks]),
                axis=alt.Axis(labelAngle=0, labelOverlap=True),
            ),
            y=alt.Y("importance:Q", title="Importance", axis=alt.Axis(tickCount=5)),
            color=alt.Color("fate:N", title=None, scale=scale, legend=alt.Legend(orient="bottom")),
            tooltip=[
                alt.Tooltip("block:O", title="Block"),
                alt.Tooltip("importance:Q", title="Importance", format=".4f"),
                alt.Tooltip("fate:N", title="In the artifact"),
            ],
        )
        .properties(height=260)
    )


def losses_chart(stage: StageReport) -> alt.Chart:
    """The loss from the first step of training to the last."""
    return (
        alt.Chart(alt.Data(values=[point.model_dump() for point in stage.losses]))
        .mark_line(point=alt.OverlayMarkDef(size=32, filled=True), strokeWidth=1.5, color=FAMILY_COLOURS["training"])
        .encode(
            x=alt.X("step:Q", title="Optimizer step", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("loss:Q", title="Loss", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
            tooltip=[alt.Tooltip("step:Q", title="Step"), alt.Tooltip("loss:Q", title="Loss", format=".4f")],
        )
        .properties(height=260)
    )
