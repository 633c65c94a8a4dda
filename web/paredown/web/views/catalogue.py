"""Catalogue: every artifact of the project, and those that other projects share, to search and open."""

import streamlit as st

from paredown.client.comparison import MOST_COMPARED, labels
from paredown.contracts.artifact import ArtifactView
from paredown.contracts.report import Verdict
from paredown.web import format as fmt
from paredown.web import parts, session

PAGE_SIZE = 25
_SHOWN, _WANTED = "catalogue.shown", "catalogue.wanted"


def page() -> None:
    parts.heading("Catalogue", "Compressed models, measured and ready to load.")
    wanted = _filters()
    if st.session_state.get(_WANTED) != wanted:
        st.session_state[_WANTED], st.session_state[_SHOWN] = wanted, PAGE_SIZE
    shown = int(st.session_state.get(_SHOWN, PAGE_SIZE))
    search, tag, verdict, method = wanted
    views, has_more = session.first(
        lambda after, limit: session.client().artifacts_page(
            search=search, tag=tag, verdict=verdict, method=method, after=after, limit=limit
        ),
        shown,
    )
    if not views:
        if any(wanted):
            parts.empty_state("No artifact fits. Take some of the filters away.", icon="filter_alt_off")
        else:
            parts.empty_state(
                "The catalogue is empty. Every job that finishes puts its artifact here.",
                page=parts.SUBMIT,
                action="Compress a model",
            )
        return
    _compare(views)
    with st.container(key="list-artifacts", gap=None):
        for view in views:
            parts.row(str(view.id), view.name, parts.ARTIFACT, view.id, _details(view))
    if has_more:
        st.button(f"Load {PAGE_SIZE} more", key="catalogue-more", icon=":material/expand_more:", on_click=_show_more)


def _compare(views: list[ArtifactView]) -> None:
    names = dict(zip((str(view.id) for view in views), labels(views), strict=True))
    if len(names) < 2:
        return
    with st.container(horizontal=True, vertical_alignment="bottom", key="catalogue-compare"):
        chosen = st.multiselect(
            "Compare",
            list(names),
            format_func=names.__getitem__,
            max_selections=MOST_COMPARED,
            placeholder=f"Two to {MOST_COMPARED} of those below",
            key="catalogue.compared",
        )
        st.page_link(
            parts.COMPARE,
            label="**Compare**",
            icon=":material/compare:",
            query_params={"ids": ",".join(chosen)},
            disabled=len(chosen) < 2,
        )


def _filters() -> tuple[str | None, str | None, Verdict | None, str | None]:
    methods = [view.method for view in session.remembered("methods", 60, session.client().methods)]
    search_column, tag_column, verdict_column, method_column = st.columns([2, 1.2, 1.2, 1.2])
    search = search_column.text_input(
        "Search",
        key="search",
        type="search",
        placeholder="Words in name, model or recipe",
        icon=":material/search:",
        bind="query-params",
        persist_state="session",
    )
    tag = parts.pick_or_write(tag_column, "Tag", _known_tags(), key="tag", placeholder="Any tag")
    verdict = verdict_column.selectbox(
        "Budget",
        [verdict.value for verdict in Verdict],
        index=None,
        key="verdict",
        placeholder="Any verdict",
        bind="query-params",
        persist_state="session",
    )
    method = method_column.selectbox(
        "Method",
        methods,
        index=None,
        key="method",
        placeholder="Any method",
        bind="query-params",
        persist_state="session",
    )
    return (search or "").strip() or None, tag, Verdict(verdict) if verdict else None, method


def _known_tags() -> list[str]:
    """Those of the newest artifacts; others can be written."""
    newest = session.remembered("catalogue.newest", 30, lambda: session.client().artifacts_page(limit=100).items)
    return sorted({tag for view in newest for tag in view.tags})


def _show_more() -> None:
    st.session_state[_SHOWN] = int(st.session_state.get(_SHOWN, PAGE_SIZE)) + PAGE_SIZE


def _details(view: ArtifactView) -> str:
    increase = None
    if view.perplexity is not None and view.base_perplexity is not None:
        increase = view.perplexity / view.base_perplexity - 1
    quality = fmt.ABSENT
    if view.perplexity is not None:
        quality = f"perplexity {fmt.perplexity(view.perplexity)} ({fmt.change(increase)})"
    shared = parts.badge("shared by everyone", "active") if view.visibility == "everyone" else ""
    return (
        f'<span class="pare-verdict">{parts.verdict_badge(view.verdict)}</span>'
        f'<span class="pare-grow">{parts.mono(view.model)}'
        f'<span class="pare-dim"> · {parts.escaped(view.recipe_name)} </span>'
        f"{shared}{parts.alias_badges(view.aliases)}{parts.tag_badges(view.tags)}</span>"
        f'<span class="pare-figure">{fmt.size(view.size_bytes)} ({fmt.percent(view.size_ratio)})</span>'
        f'<span class="pare-figure pare-wide">{quality}</span>'
        f'<span class="pare-figure">{fmt.speed(view.decode_tokens_per_second)}</span>'
        f'<span class="pare-dim pare-end">{fmt.ago(view.created_at)}</span>'
    )


page()
