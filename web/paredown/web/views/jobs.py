"""Jobs: what runs, waits and has ended, newest first, kept up to date while one looks."""

import streamlit as st

from paredown.contracts.job import JobState, JobView
from paredown.web import format as fmt
from paredown.web import parts, session

PAGE_SIZE = 25
REFRESH_SECONDS = 3
_SHOWN = "jobs.shown"
# More rows than this are refreshed less often, so that a long list does not keep the browser busy.
_MANY = 50


def page() -> None:
    parts.heading("Jobs", "Newest first. The list follows the work as it goes on.")
    states, model, method = _filters()
    wanted = (states, model, method)
    if st.session_state.get("jobs.wanted") != wanted:
        st.session_state["jobs.wanted"], st.session_state[_SHOWN] = wanted, PAGE_SIZE
    shown = int(st.session_state.get(_SHOWN, PAGE_SIZE))
    seconds = REFRESH_SECONDS if shown <= _MANY else 4 * REFRESH_SECONDS

    @st.fragment(run_every=seconds)
    def live() -> None:
        with parts.problems_shown("jobs"):
            _list(states, model, method, shown)

    live()


def _filters() -> tuple[tuple[JobState, ...], str | None, str | None]:
    methods = [view.method for view in session.remembered("methods", 60, session.client().methods)]
    state_column, model_column, method_column = st.columns([1.6, 1.6, 1])
    states = state_column.multiselect(
        "State",
        [state.value for state in JobState],
        key="jobs_state",
        placeholder="Any state",
        bind="query-params",
        persist_state="session",
    )
    known = [entry.uri for entry in session.remembered("models", 20, lambda: list(session.client().models()))]
    model = parts.pick_or_write(model_column, "Model", known, key="jobs_model", placeholder="Any model")
    method = method_column.selectbox(
        "Method",
        methods,
        index=None,
        key="jobs_method",
        placeholder="Any method",
        bind="query-params",
        persist_state="session",
    )
    return tuple(JobState(state) for state in states), model, method


def _list(states: tuple[JobState, ...], model: str | None, method: str | None, shown: int) -> None:
    jobs, has_more = session.first(
        lambda after, limit: session.client().jobs_page(
            states=states, model=model, method=method, after=after, limit=limit
        ),
        shown,
    )
    if not jobs:
        if states or model or method:
            parts.empty_state("No job fits these filters. Take some of them away.", icon="filter_alt_off")
        else:
            parts.empty_state(
                "No job yet. Submit a model and a recipe, and watch it here.",
                page=parts.SUBMIT,
                action="Compress a model",
            )
        return
    with st.container(key="list-jobs", gap=None):
        for job in jobs:
            parts.row(str(job.id), job.spec.name or job.recipe_name, parts.JOB, job.id, _details(job))
    if has_more and st.button(f"Load {PAGE_SIZE} more", key="jobs-more", icon=":material/expand_more:"):
        st.session_state[_SHOWN] = shown + PAGE_SIZE
        # The whole page, not this fragment alone, which would go on with the length that it was made with.
        st.rerun()


def _details(job: JobView) -> str:
    progress = ""
    if job.state is JobState.RUNNING and job.progress:
        words = [job.progress.phase.value]
        if job.progress.num_blocks:
            words.append(f"block {job.progress.block or 0} of {job.progress.num_blocks}")
        if job.progress.eta_seconds is not None:
            words.append(f"{fmt.duration(job.progress.eta_seconds)} left")
        progress = f"<span>{parts.bar(job.progress.fraction)}{parts.escaped(' · '.join(words))}</span>"
    elif job.error:
        progress = f'<span class="pare-bad-text">{parts.escaped(job.error.code)}</span>'
    state = parts.state_badge(job.state) + (parts.badge("cancelling", "warn") if job.cancel_requested else "")
    took = ""
    if job.finished_at and job.started_at:
        took = f"took {fmt.duration((job.finished_at - job.started_at).total_seconds())} · "
    return (
        f'<span class="pare-state">{state}</span>'
        f'<span class="pare-grow">{parts.mono(job.spec.model)}'
        f'<span class="pare-dim"> · {parts.escaped(job.recipe_name)} · {parts.escaped(job.pool)}</span></span>'
        f'{progress}<span class="pare-dim pare-end">{took}{fmt.ago(job.created_at)}</span>'
    )


page()
