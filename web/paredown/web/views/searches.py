"""Searches: a budget instead of a recipe, newest first."""

import streamlit as st

from paredown.contracts.search import SearchView
from paredown.web import format as fmt
from paredown.web import parts, session

PAGE_SIZE = 25
REFRESH_SECONDS = 3
_SHOWN = "searches.shown"


def page() -> None:
    parts.heading("Searches", "A budget instead of a recipe: recipes are tried until one serves the goal best.")
    st.page_link(parts.NEW_SEARCH, label="**New search**", icon=":material/add_circle:")
    shown = int(st.session_state.get(_SHOWN, PAGE_SIZE))

    @st.fragment(run_every=REFRESH_SECONDS)
    def live() -> None:
        with parts.problems_shown("searches"):
            _list(shown)

    live()


def _list(shown: int) -> None:
    searches, has_more = session.first(
        lambda after, limit: session.client().searches_page(after=after, limit=limit), shown
    )
    if not searches:
        parts.empty_state("No search yet. Begin one above, or send a file with a model and a limit with", icon="search")
        parts.copyable("pare search submit search.yaml", "bash")
        return
    with st.container(key="list-searches", gap=None):
        for search in searches:
            title = search.name or f"least {'loss' if search.minimize == 'loss' else 'bytes'}"
            parts.row(str(search.id), title, parts.SEARCH, search.id, _details(search))
    if has_more and st.button(f"Load {PAGE_SIZE} more", key="searches-more", icon=":material/expand_more:"):
        st.session_state[_SHOWN] = shown + PAGE_SIZE
        st.rerun()


def _details(search: SearchView) -> str:
    progress = "" if search.state.terminal else f"<span>{parts.bar(search.progress)}{search.progress:.0%}</span>"
    chosen = f" · chose {search.chosen_recipe}" if search.chosen_recipe else ""
    return (
        f'<span class="pare-state">{parts.state_badge(search.state)}</span>'
        f'<span class="pare-grow">{parts.mono(search.model)}'
        f'<span class="pare-dim"> · {search.trials} trials{parts.escaped(chosen)}</span></span>'
        f'{progress}<span class="pare-dim pare-end">{fmt.ago(search.created_at)}</span>'
    )


page()
