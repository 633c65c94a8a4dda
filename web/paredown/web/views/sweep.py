"""One sweep: how far it is, the front of its artifacts, and a line for each recipe."""

from collections.abc import Callable
from uuid import UUID

import streamlit as st

from paredown.contracts.job import JobState
from paredown.contracts.sweep import SpreadFigure, SweepDetails, SweepMember
from paredown.web import format as fmt
from paredown.web import front, parts, session

REFRESH_SECONDS = 2
# More recipes than this are refreshed less often, so that a long list does not keep the browser busy.
_MANY = 50


def page() -> None:
    sweep_id = parts.item_id()
    if sweep_id is None:
        parts.empty_state(
            "This address names no sweep. Choose one from the list.",
            page=parts.SWEEPS,
            action="All sweeps",
            icon="link_off",
        )
        return
    sweep = session.client().sweep(sweep_id)
    title = sweep.name or f"{sweep.recipes} {'calibrations' if sweep.spec.calibrations else 'recipes'}"
    st.set_page_config(page_title=f"{title} · Pare")
    st.page_link(parts.SWEEPS, label="All sweeps", icon=":material/arrow_back:")
    st.title(parts.plain(title), anchor=False)
    _buttons(sweep)
    known_state = sweep.state
    seconds = REFRESH_SECONDS if sweep.recipes <= _MANY else 4 * REFRESH_SECONDS

    @st.fragment(run_every=None if sweep.state.terminal else seconds)
    def live() -> None:
        with parts.problems_shown("sweep"):
            current = session.client().sweep(sweep_id)
            if current.state is not known_state:
                # The buttons outside this fragment change with the state.
                st.rerun()
            _show(current)

    live()


def _buttons(sweep: SweepDetails) -> None:
    with st.container(horizontal=True, key="sweep-actions", vertical_alignment="center"):
        badges = parts.state_badge(sweep.state) + parts.tag_badges(sweep.spec.tags)
        cancelling = sweep.cancel_requested and not sweep.state.terminal
        st.html(badges + (parts.badge("cancelling", "warn") if cancelling else ""), width="content")
        if not sweep.state.terminal and not sweep.cancel_requested:
            st.button(
                "Cancel sweep",
                icon=":material/cancel:",
                key="cancel",
                on_click=parts.ask,
                args=(f"cancel {sweep.id}",),
            )
    if parts.asked() == f"cancel {sweep.id}":
        _confirm_cancel(sweep)


@st.dialog("Cancel this sweep?", on_dismiss=parts.answered)
def _confirm_cancel(sweep: SweepDetails) -> None:
    st.write("All of its jobs that have not ended are given up. Artifacts that are there already stay.")
    with st.container(horizontal=True):
        if st.button("Cancel the sweep", type="primary", key="confirm-cancel"):
            with parts.problems_shown("cancel"):
                session.client().cancel_sweep(sweep.id)
                parts.answered()
                st.rerun()
        if st.button("Let it go on", key="dismiss-cancel", on_click=parts.answered):
            st.rerun()


def _show(sweep: SweepDetails) -> None:
    st.progress(sweep.progress, f"**{sweep.progress:.0%}** · {parts.plain(parts.sweep_counts(sweep))}")
    parts.facts(
        [
            ("Model", parts.mono(sweep.model)),
            ("Calibrations" if sweep.spec.calibrations else "Recipes", str(sweep.recipes)),
            ("There already", str(sweep.reused)),
            ("Submitted", fmt.moment(sweep.created_at)),
        ]
    )
    if sweep.spec.calibrations:
        _spread(sweep)
    else:
        _chart(sweep)
    unbeaten = {point.artifact_id for point in sweep.front.points if point.on_front} if sweep.front else set[UUID]()
    with st.container(key="list-members", gap=None):
        for member in sweep.members:
            _row(member, on_front=member.artifact_id is not None and member.artifact_id in unbeaten)
    parts.json_view(sweep.spec.model_dump(mode="json", exclude_unset=True), "The sweep as JSON")


_FIGURES: dict[SpreadFigure, tuple[str, Callable[[float], str]]] = {
    "perplexity": ("Perplexity", fmt.perplexity),
    "perplexity_increase": ("Rise over the base", fmt.change),
    "mean_divergence": ("Mean divergence", fmt.nats),
    "top1_agreement": ("Top-1 agreement", "{:.2%}".format),
}


def _spread(sweep: SweepDetails) -> None:
    """How far each figure lies apart over the calibrations."""
    if not sweep.spread:
        st.caption("How far the figures lie apart is told once two calibrations are measured.")
        return
    rows = []
    for spread in sweep.spread:
        name, written = _FIGURES[spread.figure]
        figures = (spread.minimum, spread.median, spread.maximum, spread.range)
        rows.append([name, *(parts.escaped(written(figure)) for figure in figures), str(spread.members)])
    parts.table(["Figure", "Least", "Median", "Most", "Most − least", "Of"], rows)


def _chart(sweep: SweepDetails) -> None:
    if sweep.front is None:
        st.caption("The chart comes with the first artifact that is measured.")
        return
    if not front.chart(sweep.front, "sweep.chart"):
        return
    measured = sum(member.perplexity is not None for member in sweep.members)
    drawn = sum(point.artifact_id is not None for point in sweep.front.points)
    if drawn < measured:
        st.caption(f"{measured - drawn} measured under another protocol, or with no finite perplexity, are left out.")


def _row(member: SweepMember, *, on_front: bool) -> None:
    state = parts.state_badge(member.state)
    if on_front:
        state += parts.badge("on the front", "good")
    if member.reused:
        state += parts.badge("was there already", "tag")
    if member.verdict:
        state += parts.verdict_badge(member.verdict)
    figures = ""
    if member.error:
        figures = f'<span class="pare-bad-text">{parts.escaped(member.error.code)}</span>'
    elif member.state is JobState.RUNNING:
        figures = f"<span>{parts.bar(member.progress)}{member.progress:.0%}</span>"
    elif member.size_bytes is not None:
        quality = f"perplexity {fmt.perplexity(member.perplexity)} ({fmt.change(member.perplexity_increase)})"
        figures = f"<span>{quality} · {fmt.size(member.size_bytes)} ({fmt.percent(member.size_ratio)})</span>"
    details = f'<span class="pare-grow">{state}</span>{figures}'
    if member.artifact_id or member.job_id:
        page = parts.ARTIFACT if member.artifact_id else parts.JOB
        key = f"member-{member.position}"
        parts.row(key, member.label, page, member.artifact_id or member.job_id, details)
    else:
        st.html(f'<div class="pare-row">{parts.escaped(member.label)}: the artifact was deleted {details}</div>')


page()
