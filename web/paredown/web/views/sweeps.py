"""Sweeps: many recipes over one model, newest first."""

import streamlit as st

from paredown.contracts.sweep import SweepView
from paredown.web import format as fmt
from paredown.web import parts, session

PAGE_SIZE = 25
REFRESH_SECONDS = 3
_SHOWN = "sweeps.shown"


def page() -> None:
    parts.heading("Sweeps", "Many recipes over one model, measured alike. Newest first.")
    st.page_link(parts.NEW_SWEEP, label="**New sweep**", icon=":material/add_circle:")
    shown = int(st.session_state.get(_SHOWN, PAGE_SIZE))

    @st.fragment(run_every=REFRESH_SECONDS)
    def live() -> None:
        with parts.problems_shown("sweeps"):
            _list(shown)

    live()


def _list(shown: int) -> None:
    sweeps, has_more = session.first(lambda after, limit: session.client().sweeps_page(after=after, limit=limit), shown)
    if not sweeps:
        parts.empty_state("No sweep yet. Begin one above, or send a file with recipes or a grid with", icon="grid_view")
        parts.copyable("pare sweep submit sweep.yaml", "bash")
        return
    with st.container(key="list-sweeps", gap=None):
        for sweep in sweeps:
            title = sweep.name or f"{sweep.recipes} recipes"
            parts.row(str(sweep.id), title, parts.SWEEP, sweep.id, _details(sweep))
    if has_more and st.button(f"Load {PAGE_SIZE} more", key="sweeps-more", icon=":material/expand_more:"):
        st.session_state[_SHOWN] = shown + PAGE_SIZE
        st.rerun()


def _details(sweep: SweepView) -> str:
    cancelling = sweep.cancel_requested and not sweep.state.terminal
    state = parts.state_badge(sweep.state) + (parts.badge("cancelling", "warn") if cancelling else "")
    progress = "" if sweep.state.terminal else f"<span>{parts.bar(sweep.progress)}{sweep.progress:.0%}</span>"
    return (
        f'<span class="pare-state">{state}</span>'
        f'<span class="pare-grow">{parts.mono(sweep.model)}'
        f'<span class="pare-dim"> · {parts.escaped(parts.sweep_counts(sweep))}</span></span>'
        f'{progress}<span class="pare-dim pare-end">{fmt.ago(sweep.created_at)}</span>'
    )


page()
