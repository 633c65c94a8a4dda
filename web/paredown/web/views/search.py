"""One search: what was tried, the front of it, and what was chosen and why."""

import streamlit as st

from paredown.contracts.search import Rung, SearchDetails, TrialView
from paredown.web import format as fmt
from paredown.web import parts, search_chart, session

REFRESH_SECONDS = 3


def page() -> None:
    search_id = parts.item_id()
    if search_id is None:
        parts.empty_state(
            "This address names no search. Choose one from the list.",
            page=parts.SEARCHES,
            action="All searches",
            icon="link_off",
        )
        return
    search = session.client().search(search_id)
    title = search.name or f"least {'loss' if search.minimize == 'loss' else 'bytes'}"
    st.set_page_config(page_title=f"{title} · Pare")
    st.page_link(parts.SEARCHES, label="All searches", icon=":material/arrow_back:")
    st.title(parts.plain(title), anchor=False)
    _buttons(search)
    known_state = search.state

    @st.fragment(run_every=None if search.state.terminal else REFRESH_SECONDS)
    def live() -> None:
        with parts.problems_shown("search"):
            current = session.client().search(search_id)
            if current.state is not known_state:
                # The buttons outside this fragment change with the state.
                st.rerun()
            _show(current)

    live()


def _buttons(search: SearchDetails) -> None:
    with st.container(horizontal=True, key="search-actions", vertical_alignment="center"):
        st.html(parts.state_badge(search.state) + parts.tag_badges(search.spec.tags), width="content")
        if not search.state.terminal:
            st.button(
                "Cancel search",
                icon=":material/cancel:",
                key="cancel",
                on_click=parts.ask,
                args=(f"cancel {search.id}",),
            )
    if parts.asked() == f"cancel {search.id}":
        _confirm_cancel(search)


@st.dialog("Cancel this search?", on_dismiss=parts.answered)
def _confirm_cancel(search: SearchDetails) -> None:
    st.write("Its jobs that have not ended are given up. Artifacts that are there already stay.")
    with st.container(horizontal=True):
        if st.button("Cancel the search", type="primary", key="confirm-cancel"):
            with parts.problems_shown("cancel"):
                session.client().cancel_search(search.id)
                parts.answered()
                st.rerun()
        if st.button("Let it go on", key="dismiss-cancel", on_click=parts.answered):
            st.rerun()


def _show(search: SearchDetails) -> None:
    if search.explanation:
        tell = st.success if search.chosen is not None else st.info
        tell(parts.plain(search.explanation), icon=":material/flag:")
    st.progress(search.progress, f"**{search.progress:.0%}** · {search.state.value}, {search.trials} trials")
    spec = search.spec
    limits = [f"{fmt.percent(spec.max_size_ratio)} of the base bytes"] if spec.max_size_ratio is not None else []
    if spec.max_perplexity_increase is not None:
        limits.append(f"{fmt.change(spec.max_perplexity_increase)} perplexity")
    parts.facts(
        [
            ("Model", parts.mono(search.model)),
            ("Goal", "least loss" if search.minimize == "loss" else "fewest bytes"),
            ("At most", parts.escaped(" and ".join(limits))),
            ("Recipes", f"{search.candidates}, {search.ruled_out} ruled out by their plans"),
            ("Submitted", fmt.moment(search.created_at)),
        ]
    )
    if not search.members:
        st.caption("The chart comes with the first recipe that is measured.")
    for rung, heading in ((Rung.FULL, "Tried in full"), (Rung.PROXY, "Tried on a share of the samples")):
        trials = [trial for trial in search.members if trial.rung is rung]
        if trials:
            st.subheader(heading, anchor=False)
            _chart(search, rung)
            with st.container(key=f"list-{rung}", gap=None):
                for trial in trials:
                    _row(trial, chosen=trial.number == search.chosen)
    parts.json_view(spec.model_dump(mode="json", exclude_unset=True), "The search as JSON")


def _chart(search: SearchDetails, rung: Rung) -> None:
    drawn = search_chart.points(search, rung)
    chart = search_chart.chart(drawn, search.spec.max_size_ratio)
    if chart is None:
        st.caption("The chart comes with the first of them that is measured.")
        return
    loss = "divergence" if drawn.is_divergence else "perplexity"
    st.altair_chart(chart, key=f"search.chart.{rung}", alt=f"{loss} of {len(drawn.points)} trials against their bytes")
    notes = [f"{count} {what}" for what, count in search_chart.unmeasured(search, rung).items()]
    if notes:
        st.caption(f"Not on the chart: {', '.join(notes)}.")
    if search.spec.max_perplexity_increase is not None and drawn.is_divergence:
        st.caption("The limit on perplexity is no line among divergences; the colours tell what holds it.")


def _row(trial: TrialView, *, chosen: bool) -> None:
    state = parts.badge("chosen", "good") if chosen else parts.state_badge(trial.state)
    if trial.on_front:
        state += parts.badge("on the front", "good")
    if trial.reused:
        state += parts.badge("was there already", "tag")
    if trial.within_limits is False:
        state += parts.badge("beyond the limits", "warn")
    figures = f"<span>{fmt.percent(trial.predicted_size_ratio)} planned</span>"
    if trial.size_bytes is not None:
        quality = f"perplexity {fmt.perplexity(trial.perplexity)} ({fmt.change(trial.perplexity_increase)})"
        figures = f"<span>{quality} · {fmt.size(trial.size_bytes)} ({fmt.percent(trial.size_ratio)})</span>"
    details = f'<span class="pare-grow">{state}</span>{figures}'
    page, item = (parts.ARTIFACT, trial.artifact_id) if trial.artifact_id else (parts.JOB, trial.job_id)
    if item:
        parts.row(f"trial-{trial.number}", trial.label, page, item, details)
    else:
        st.html(f'<div class="pare-row">{parts.escaped(trial.label)}: the artifact was deleted {details}</div>')


page()
