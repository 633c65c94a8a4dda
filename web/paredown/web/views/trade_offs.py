"""Trade-offs: what each artifact of one model costs in accuracy and saves in bytes, time, memory or money."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import streamlit as st

from paredown.client import front_chart
from paredown.client.comparison import MOST_COMPARED
from paredown.client.errors import PareApiError
from paredown.contracts.artifact import CostAxis, Front, FrontEntry
from paredown.web import format as fmt
from paredown.web import parts, session

_BUDGET_TERMS = {"size_ratio": "Size, at most % of the base", "perplexity_increase": "Perplexity, at most % above"}


def page() -> None:
    parts.heading(
        "Trade-offs",
        "Every artifact of one model on one chart. The line joins those that no other beats on both counts.",
    )
    entries = session.remembered("trade-offs.fronts", 5, session.client().fronts)
    if not entries:
        parts.empty_state(
            "Nothing to compare yet: finish a job with an evaluation, and it shows up here.",
            page=parts.SUBMIT,
            action="Compress a model",
            icon="scatter_plot",
        )
        return
    model, protocol, axis = _choices(entries)
    try:
        front = session.remembered(
            f"front.{model}.{protocol}.{axis}", 5, lambda: session.client().front(model, axis, protocol)
        )
    except PareApiError as error:
        if error.status != 404:
            raise
        parts.empty_state("This model has no artifact under this protocol.", icon="scatter_plot")
        return
    _show(front)


def _choices(entries: Sequence[FrontEntry]) -> tuple[str, str, CostAxis]:
    # A model may have moved: it goes by the address where its newest artifact was made.
    models = {entry.model_fingerprint: entry.model for entry in reversed(entries)}
    model_column, protocol_column = st.columns([2, 1.6])
    model = model_column.selectbox(
        "Model",
        list(dict.fromkeys(entry.model_fingerprint for entry in entries)),
        format_func=lambda fingerprint: _model_label(models, fingerprint),
        key="model",
        bind="query-params",
        persist_state="session",
    )
    protocols = {entry.protocol_hash: entry for entry in entries if entry.model_fingerprint == model}
    protocol = protocol_column.selectbox(
        "Protocol",
        list(protocols),
        format_func=lambda hashed: _protocol_label(protocols[hashed]),
        help="How perplexity was measured. Figures of two protocols never share a chart.",
        disabled=len(protocols) == 1,
        key=f"trade-offs.protocol.{model}",
        persist_state="session",
    )
    axis = st.segmented_control(
        "Against",
        list(front_chart.AXES),
        format_func=lambda name: front_chart.AXES[name].name,
        default="size_bytes",
        required=True,
        key="axis",
        bind="query-params",
        persist_state="session",
    )
    return str(model), str(protocol), axis


def _model_label(models: dict[str, str], fingerprint: str) -> str:
    model = models[fingerprint]
    return f"{model} ({fingerprint[:8]})" if list(models.values()).count(model) > 1 else model


def _protocol_label(entry: FrontEntry) -> str:
    protocol = entry.protocol
    source = protocol.source.removeprefix("builtin://")
    return f"{source}, {protocol.samples} × {protocol.sequence_length}, {protocol.dtype} ({entry.artifacts})"


def _show(front: Front) -> None:
    shown = front_chart.points(front, session.families())
    axis = front_chart.AXES[front.cost_axis]
    if not shown:
        parts.empty_state(
            f"No artifact of this model has a figure for {axis.name.lower()}: its evaluation did not measure speed.",
            icon="speed",
        )
        return
    chart_column, card_column = st.columns([2.4, 1], gap="large")
    with card_column:
        budget = front_chart.budget_lines(front, _limits(front))
    chart = front_chart.front_chart(shown, front.cost_axis, budget, dark=st.context.theme.type == "dark")
    place = f"{front.model_fingerprint}.{front.protocol_hash}.{front.cost_axis}"
    with chart_column:
        event = st.vega_lite_chart(
            spec=chart,
            on_select="rerun",
            selection_mode=front_chart.SELECTION,
            key=f"trade-offs.chart.{place}",
            alt=f"Perplexity of {len(shown)} models against {axis.name.lower()}",
        )
        left_out = len(front.points) - len(shown)
        if left_out:
            st.caption(f"{left_out} without a figure for this axis are left out.")
        _downloads(shown, front, budget)
    ticked = _table(shown, f"trade-offs.table.{place}")
    clicked = [picked.get("id") for picked in event.get("selection", {}).get(front_chart.SELECTION, [])]
    with card_column:
        _picked(shown, [point for point in shown if point.id in clicked or point in ticked])


def _limits(front: Front) -> dict[str, float]:
    """What the person at the page holds the models to: at first, what the newest job with a budget was held to."""
    limits = {figure: limit for figure, limit in front.limits.items() if figure not in _BUDGET_TERMS}
    with st.container(horizontal=True, key="budget-lines"):
        for figure, label in _BUDGET_TERMS.items():
            known = front.limits.get(figure)
            percent = st.number_input(
                label,
                min_value=0.0,
                value=None if known is None else 100 * known,
                step=1.0,
                format="%.1f",
                placeholder="no limit",
                help="A line on the chart; nothing is changed by it.",
                key=f"trade-offs.{figure}.{front.model_fingerprint}.{front.protocol_hash}",
            )
            if percent is not None:
                limits[figure] = percent / 100
    return limits


def _downloads(shown: list[front_chart.Point], front: Front, budget: front_chart.BudgetLines) -> None:
    """Images are drawn when they are asked for, on light ground whatever the page's."""

    def drawn(image_format: front_chart.ImageFormat) -> bytes:
        chart = front_chart.front_chart(shown, front.cost_axis, budget, dark=False)
        return front_chart.image(chart, image_format)

    files: tuple[tuple[str, str, Callable[[], bytes]], ...] = (
        ("png", "image/png", lambda: drawn("png")),
        ("svg", "image/svg+xml", lambda: drawn("svg")),
        ("csv", "text/csv", lambda: front_chart.csv_text(shown).encode()),
    )
    with st.container(horizontal=True, key="front-downloads"):
        for ending, kind, make in files:
            st.download_button(
                ending.upper(),
                make,
                f"trade-offs.{ending}",
                kind,
                icon=":material/download:",
                on_click="ignore",
                help=f"Download what is shown as {ending.upper()}.",
                key=ending,
            )


def _picked(shown: list[front_chart.Point], picked: list[front_chart.Point]) -> None:
    if not picked:
        best = sum(point.on_front for point in shown)
        st.caption(
            f"{best} of {len(shown)} are on the front. Click a point to know it, several to compare them. Grey ones "
            "are beaten by another on both counts."
        )
        return
    if len(picked) == 1:
        _card(picked[0])
        return
    with st.container(border=True, key="picked-points"):
        st.markdown("  \n".join(f"**{parts.plain(point.name)}**" for point in picked))
        chosen = [point.id for point in picked if point.id]
        if 2 <= len(chosen) <= MOST_COMPARED:
            st.page_link(
                parts.COMPARE,
                label=f"**Compare these {len(chosen)}**",
                icon=":material/compare:",
                query_params={"ids": ",".join(chosen)},
            )
        else:
            st.caption(f"Two to {MOST_COMPARED} artifacts can be compared; the base stands beside each of them.")


def _card(point: front_chart.Point) -> None:
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
                ("Perplexity", f"{fmt.perplexity(point.perplexity)} ({fmt.change(point.perplexity_change)})"),
                ("Size", f"{fmt.size(point.size_mb * 1e6)} ({fmt.percent(point.size_ratio)})"),
                ("Decode speed", fmt.speed(point.speed)),
                ("First token", fmt.milliseconds(point.first_token_ms)),
                ("Peak memory", fmt.size(None if point.memory_mb is None else point.memory_mb * 1e6)),
                ("A million tokens", fmt.money(point.cost, point.currency)),
            ]
        )
        if point.id:
            st.page_link(
                parts.ARTIFACT,
                label="**Open the artifact**",
                icon=":material/arrow_forward:",
                query_params={"id": point.id},
            )


def _table(shown: list[front_chart.Point], key: str) -> list[front_chart.Point]:
    """The points whose rows are ticked."""
    lines = [asdict(point) for point in shown]
    event = st.dataframe(
        lines,
        hide_index=True,
        placeholder=fmt.ABSENT,
        on_select="rerun",
        selection_mode="multi-row",
        key=key,
        column_order=[name for name in lines[0] if name not in ("id", "currency")],
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
            "first_token_ms": st.column_config.NumberColumn("First token, ms", format="%.0f"),
            "memory_mb": st.column_config.NumberColumn("Peak memory, MB", format="%.0f"),
            "cost": st.column_config.NumberColumn("A million tokens", format="%.4g"),
        },
        alt="The models of the chart",
    )
    return [shown[row] for row in event.selection.rows if row < len(shown)]


page()
