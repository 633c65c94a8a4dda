"""New search: a goal and limits in place of a recipe, and how much trying is allowed."""

from collections.abc import Mapping

import streamlit as st

from paredown.contracts.search import SearchSpec
from paredown.web import draft, job_fields, parts, search_draft, sending, session, snippets
from paredown.web import format as fmt


def page() -> None:
    st.page_link(parts.SEARCHES, label="All searches", icon=":material/arrow_back:")
    parts.heading("New search", "A goal and limits in place of a recipe: recipes are tried until one serves it best.")
    search_draft.begin()
    slots: job_fields.Slots = {}
    left, right = st.columns([1.65, 1], gap="large")
    with left:
        job_fields.model(slots)
        _goal(slots)
        _space(slots)
        st.subheader("Options", anchor=False)
        with st.expander("Effort: trials and time", icon=":material/timer:", key="options-effort"):
            job_fields.ask_all(search_draft.EFFORT, "", slots, search_draft.key)
        job_fields.texts(slots)
        job_fields.output(slots, "format", "dtype", "tags")
        job_fields.queue(slots)
        st.text_input(
            "Name of the search", max_chars=120, key=search_draft.NAME, placeholder="Optional", persist_state="session"
        )
        slots["name"] = st.empty()
        job_fields.clear_button()
    found: Mapping[str, str] = {}
    with right, st.container(key="plan-panel"), parts.problems_shown("plan"):
        found = _panel()
    job_fields.show_at_fields(found, slots)


def _goal(slots: job_fields.Slots) -> None:
    st.subheader("Goal", anchor=False)
    st.radio(
        "Goal",
        list(search_draft.GOALS),
        format_func=search_draft.GOALS.__getitem__,
        captions=["KL divergence from the base where every report has it, else perplexity", "The smallest artifact"],
        key=search_draft.MINIMIZE,
        horizontal=True,
        label_visibility="collapsed",
        persist_state="session",
    )
    st.caption("Within these limits; an empty one is no limit. 0.35 is 35 % of the base's bytes, or 35 % more.")
    job_fields.ask_all(search_draft.LIMITS, "", slots, search_draft.key)


def _space(slots: job_fields.Slots) -> None:
    st.subheader("Recipes to try", anchor=False)
    st.caption("Nothing or one stage that prunes or drops, then one that quantizes, in every combination.")
    job_fields.ask_all(search_draft.SPACE, "space", slots, search_draft.space_key)
    slots["space"] = st.empty()


def _panel() -> Mapping[str, str]:
    """Returns the sentences about fields, by path."""
    st.subheader("Plan", anchor=False)
    spec, found = search_draft.checked()
    if spec is None:
        return sending.not_ready(found, "Submit search")
    _figures(spec)
    client = session.client()
    refused = sending.button(spec, "search", parts.SEARCH, lambda key: client.submit_search(spec, key).id, allowed=True)
    sending.as_text(snippets.search_texts(spec, session.public_api_url(), draft.idempotency_key(spec)), "search.yaml")
    return refused


def _figures(spec: SearchSpec) -> None:
    count = len(spec.space.combinations())
    tried = min(spec.max_trials, count)
    with st.container(border=True, key="plan"):
        first, second = st.columns(2)
        proxies = "in full" if spec.proxy is None else f"on {spec.proxy:.0%} of the samples"
        first.metric("Recipes tried", f"≤ {tried}", proxies, delta_color="off", delta_arrow="off")
        in_full = tried if spec.proxy is None else min(spec.survivors, tried)
        second.metric("Made in full", f"≤ {in_full}", f"of {count} recipes", delta_color="off", delta_arrow="off")
        st.caption(
            "Every recipe is planned first, which costs nothing; those that do not fit the model, or whose planned "
            "bytes exceed the limit, are never run."
        )
        parts.facts(
            [
                ("Jobs at a time", str(spec.parallel)),
                ("Time", fmt.duration(spec.max_seconds) if spec.max_seconds else "no limit"),
            ]
        )


page()
