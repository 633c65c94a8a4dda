"""Trade-offs: what each artifact of one model costs in accuracy and saves in bytes, time or money."""

import csv
from dataclasses import asdict
from io import StringIO
from typing import cast

import streamlit as st

from paredown.client.client import CostAxis
from paredown.client.errors import PareApiError
from paredown.contracts.artifact import ArtifactView, Front
from paredown.web import charts, parts, session
from paredown.web import format as fmt

_ALL_LIMIT = 100
_CHOSEN = "trade-offs.chosen"


def page() -> None:
    parts.heading(
        "Trade-offs",
        "Every artifact of one model on one chart. The line joins those that no other beats on both counts.",
    )
    artifacts = session.remembered("trade-offs.artifacts", 5, _evaluated)
    if not artifacts:
        parts.empty_state(
            "Nothing to compare yet: finish a job with an evaluation, and it shows up here.",
            page=parts.SUBMIT,
            action="Compress a model",
            icon="scatter_plot",
        )
        return
    model, protocol, axis = _choices(artifacts)
    try:
        front = session.remembered(
            f"front.{model}.{protocol}.{axis}", 5, lambda: session.client().front(model, axis, protocol)
        )
    except PareApiError as error:
        if error.status != 404:
            raise
        parts.empty_state("This model has no artifact under this protocol.", icon="scatter_plot")
        return
    _show(front, artifacts)


def _evaluated() -> list[ArtifactView]:
    """Artifacts with a perplexity; each carries its model and protocol."""
    return [view for view in session.client().artifacts(limit=_ALL_LIMIT) if view.protocol_hash]


def _choices(artifacts: list[ArtifactView]) -> tuple[str, str, CostAxis]:
    newest: dict[str, ArtifactView] = {}
    for view in artifacts:
        newest.setdefault(view.model_fingerprint, view)
    model_column, protocol_column, axis_column = st.columns([2, 1.6, 1.6])
    model = model_column.selectbox(
        "Model",
        list(newest),
        format_func=lambda fingerprint: _model_label(newest, fingerprint),
        key="model",
        bind="query-params",
        persist_state="session",
    )
    protocols: dict[str, list[ArtifactView]] = {}
    for view in artifacts:
        if view.model_fingerprint == model and view.protocol_hash:
            protocols.setdefault(view.protocol_hash, []).append(view)
    protocol = protocol_column.selectbox(
        "Protocol",
        list(protocols),
        format_func=lambda hashed: _protocol_label(hashed, protocols[hashed]),
        help="How perplexity was measured. Figures of two protocols never share a chart.",
        disabled=len(protocols) == 1,
        key=f"trade-offs.protocol.{model}",
        persist_state="session",
    )
    axis = axis_column.segmented_control(
        "Against",
        list(charts.AXES),
        format_func=lambda name: charts.AXES[name].name,
        default="size_bytes",
        required=True,
        key="axis",
        bind="query-params",
        persist_state="session",
        width="stretch",
    )
    return str(model), str(protocol), cast(CostAxis, axis)


def _model_label(newest: dict[str, ArtifactView], fingerprint: str) -> str:
    view = newest[fingerprint]
    alike = sum(other.model == view.model for other in newest.values())
    return f"{view.model} ({fingerprint[:8]})" if alike > 1 else view.model


def _protocol_label(protocol_hash: str, views: list[ArtifactView]) -> str:
    manifest = session.remembered(f"manifest.{views[0].id}", 600, lambda: session.client().manifest(views[0].id))
    evaluation = manifest.report.artifact
    if evaluation is None:
        return f"{protocol_hash[:8]} ({len(views)})"
    protocol = evaluation.protocol
    source = protocol.source.removeprefix("builtin://")
    return f"{source}, {protocol.samples} × {protocol.sequence_length}, {protocol.dtype} ({len(views)})"


def _show(front: Front, artifacts: list[ArtifactView]) -> None:
    families = {view.method: view.family.value for view in session.remembered("methods", 60, session.client().methods)}
    currency = next((view.currency for view in artifacts if view.currency), None)
    shown = charts.points(front, families, currency)
    if not shown:
        parts.empty_state(
            f"No artifact of this model has a figure for {charts.AXES[front.cost_axis].name.lower()}: its evaluation "
            "did not measure speed.",
            icon="speed",
        )
        return
    chart_column, card_column = st.columns([2.4, 1], gap="large")
    with chart_column:
        event = st.altair_chart(
            charts.front_chart(shown, front.cost_axis, dark=st.context.theme.type == "dark"),
            on_select="rerun",
            selection_mode=charts.SELECTION,
            key=f"trade-offs.chart.{front.model_fingerprint}.{front.protocol_hash}.{front.cost_axis}",
            alt=f"Perplexity of {len(shown)} models against {charts.AXES[front.cost_axis].name.lower()}",
        )
        left_out = len(front.points) - len(shown)
        if left_out:
            st.caption(f"{left_out} without a figure for this axis are left out.")
    picked = event.get("selection", {}).get(charts.SELECTION, [])
    with card_column:
        _card(shown, picked[0].get("id") if picked else None)
    _table(shown)


def _card(shown: list[charts.Point], picked: str | None) -> None:
    point = next((point for point in shown if point.id == picked), None)
    if point is None:
        best = sum(point.on_front for point in shown)
        st.caption(
            f"{best} of {len(shown)} are on the front. Click a point to know it. Grey ones are beaten by another "
            "on both counts."
        )
        return
    with st.container(border=True, key="point-card"):
        st.markdown(f"**{parts.plain(point.name)}**")
        tone = {"budget met": "good", "budget missed": "warn", "budget overridden": "active"}
        st.html(
            parts.badge(point.family, "tag")
            + parts.badge(point.verdict, tone.get(point.verdict, "dim"))
            + (parts.badge("on the front", "good") if point.on_front else parts.badge("dominated"))
        )
        parts.facts(
            [
                ("Perplexity", f"{point.perplexity_text} ({point.change_text})"),
                ("Size", f"{point.size_text} ({fmt.percent(point.size_ratio)})"),
                ("Decode speed", point.speed_text),
                ("A million tokens", point.cost_text),
            ]
        )
        if point.id:
            st.page_link(
                parts.ARTIFACT,
                label="**Open the artifact**",
                icon=":material/arrow_forward:",
                query_params={"id": point.id},
            )


def _table(shown: list[charts.Point]) -> None:
    lines = [{name: value for name, value in asdict(point).items() if not name.endswith("_text")} for point in shown]
    st.dataframe(
        lines,
        hide_index=True,
        placeholder=fmt.ABSENT,
        column_order=[name for name in lines[0] if name != "id"],
        column_config={
            "name": st.column_config.TextColumn("Name", width="medium"),
            "methods": st.column_config.TextColumn("Methods"),
            "family": st.column_config.TextColumn("Family"),
            "verdict": st.column_config.TextColumn("Budget"),
            "on_front": st.column_config.CheckboxColumn("Front"),
            "perplexity": st.column_config.NumberColumn("Perplexity", format="%.2f"),
            "perplexity_change": st.column_config.NumberColumn("Against the base", format="percent"),
            "size_mb": st.column_config.NumberColumn("Size, MB", format="%.1f"),
            "size_ratio": st.column_config.NumberColumn("Of the base", format="percent"),
            "speed": st.column_config.NumberColumn("Decode, tokens/s", format="%.1f"),
            "cost": st.column_config.NumberColumn("A million tokens", format="%.4g"),
        },
        alt="The models of the chart",
    )
    text = StringIO()
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    st.download_button(
        "Download as CSV",
        text.getvalue(),
        "trade-offs.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
        key="csv",
    )


page()
