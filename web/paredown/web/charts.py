"""Charts of one artifact: its blocks' importance, its training and its layers' error. The front's own chart is in
client/front_chart.py, because the command draws it too."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from paredown.client.front_chart import DOMINATED, FAMILY_COLOURS
from paredown.contracts.report import LayerReport, StageReport

# What is compared layer by layer, with the title that it has.
LAYER_QUANTITIES = {"error": "Relative error", "bits": "Bits for each weight", "zeros": "Zeros"}


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


def depth_lines(artifacts: Mapping[str, Sequence[Mapping[str, Any]]], kind: str | None) -> list[dict[str, Any]]:
    """Of each artifact's `layer_lines`, for each block: the means over its linears of that kind, or over all of them.

    Where an artifact dropped blocks, its own are counted anew from 0.
    """
    drawn = []
    for artifact, lines in artifacts.items():
        blocks: dict[int, list[Mapping[str, Any]]] = {}
        for line in lines:
            if kind is None or line["kind"] == kind:
                blocks.setdefault(line["block"], []).append(line)
        for block, members in sorted(blocks.items()):
            means = {quantity: _mean(line[quantity] for line in members) for quantity in LAYER_QUANTITIES}
            drawn.append({"artifact": artifact, "block": block, **means})
    return drawn


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def depth_chart(lines: Sequence[Mapping[str, Any]], quantity: str) -> alt.Chart | None:
    """A line for each artifact; nothing where none has the quantity. A logarithmic axis for errors, without zeros."""
    is_error = quantity == "error"
    known = [line for line in lines if line[quantity] is not None and (line[quantity] > 0 or not is_error)]
    if not known:
        return None
    form = "~g" if quantity == "bits" else "~%"
    return (
        alt.Chart(alt.Data(values=[dict(line) for line in known]))
        .mark_line(point=alt.OverlayMarkDef(size=28, filled=True), strokeWidth=1.5)
        .encode(
            x=alt.X("block:Q", title="Block", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y(
                f"{quantity}:Q",
                title=LAYER_QUANTITIES[quantity],
                scale=alt.Scale(type="log") if is_error else alt.Scale(zero=False, nice=True),
                axis=alt.Axis(format=form, tickCount=5),
            ),
            color=alt.Color("artifact:N", title=None, legend=alt.Legend(orient="bottom", columns=2, labelLimit=320)),
            tooltip=[
                alt.Tooltip("artifact:N", title="Artifact"),
                alt.Tooltip("block:Q", title="Block"),
                alt.Tooltip(f"{quantity}:Q", title=LAYER_QUANTITIES[quantity], format=".3~g"),
            ],
        )
        .properties(height=340)
    )


def blocks_chart(stage: StageReport) -> alt.Chart:
    """A bar for each block that the stage measured; those that it dropped stand out."""
    fates = {True: "kept", False: "dropped"}
    bars = [block.model_dump() | {"fate": fates[block.kept]} for block in stage.blocks if block.importance is not None]
    scale = alt.Scale(domain=["kept", "dropped"], range=[DOMINATED, FAMILY_COLOURS["depth"]])
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
