"""One job: how far it is, all that happened to it, and what came out."""

from typing import Any

import streamlit as st

from paredown.client.errors import PareApiError
from paredown.contracts.job import Canary, Corrected, JobEvent, JobState, JobView
from paredown.web import format as fmt
from paredown.web import parts, report, session, snippets

REFRESH_SECONDS = 1.5
_EVENT_LIMIT = 100
_WORDS = {
    "queued": "Queued",
    "claimed": "Taken up by a worker",
    "canary": "Canary",
    "progress": "Progress",
    "requeued": "Back in the queue",
    "cancel_requested": "Cancellation asked for",
    "succeeded": "Succeeded",
    "rejected": "Rejected: the budget was missed",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "retried": "Queued again by hand",
}
_COLOURS = {
    "succeeded": "#16a34a",
    "rejected": "#d97706",
    "failed": "#dc2626",
    "requeued": "#d97706",
    "claimed": "#2563eb",
    "progress": "#93c5fd",
    "canary": "#a16207",
}


def page() -> None:
    job_id = parts.item_id()
    if job_id is None:
        parts.empty_state(
            "This address names no job. Choose one from the list.", page=parts.JOBS, action="All jobs", icon="link_off"
        )
        return
    job = session.client().job(job_id)
    st.set_page_config(page_title=f"{job.spec.name or job.recipe_name} · Pare")
    st.page_link(parts.JOBS, label="All jobs", icon=":material/arrow_back:")
    st.title(parts.plain(job.spec.name or job.recipe_name), anchor=False)
    _buttons(job)
    known_state = job.state

    @st.fragment(run_every=None if job.state.terminal else REFRESH_SECONDS)
    def live() -> None:
        with parts.problems_shown("job"):
            current = session.client().job(job_id)
            if current.state is not known_state:
                # Buttons and report outside this fragment change with the state.
                st.rerun()
            _status(current)
            if current.canary:
                _canary(current.canary)
            _timeline(current)

    left, right = st.columns([2.2, 1], gap="large")
    if job.state.terminal:
        with left, parts.problems_shown("report"):
            _outcome(job)
        with right:
            live()
    else:
        with left:
            live()
    # A running job's facts stand beside its progress, a finished one's below the report.
    with left if job.state.terminal else right:
        _about(job)


def _buttons(job: JobView) -> None:
    with st.container(horizontal=True, key="job-actions", vertical_alignment="center"):
        badges = parts.state_badge(job.state) + parts.tag_badges(job.spec.tags)
        if job.cancel_requested and not job.state.terminal:
            badges += parts.badge("cancelling", "warn")
        st.html(badges, width="content")
        if not job.state.terminal and not job.cancel_requested:
            st.button(
                "Cancel job", icon=":material/cancel:", key="cancel", on_click=parts.ask, args=(f"cancel {job.id}",)
            )
        if job.state is JobState.FAILED:
            st.button("Try again", icon=":material/replay:", key="retry", on_click=parts.ask, args=(f"retry {job.id}",))
        if job.artifact_id:
            st.page_link(
                parts.ARTIFACT,
                label="Open the artifact",
                icon=":material/deployed_code:",
                query_params={"id": str(job.artifact_id)},
            )
    if parts.asked() == f"cancel {job.id}":
        _confirm_cancel(job)
    elif parts.asked() == f"retry {job.id}":
        _confirm_retry(job)


@st.dialog("Cancel this job?", on_dismiss=parts.answered)
def _confirm_cancel(job: JobView) -> None:
    st.write("The worker stops within seconds. What it has done so far is given up; no artifact is kept.")
    with st.container(horizontal=True):
        if st.button("Cancel the job", type="primary", key="confirm-cancel"):
            with parts.problems_shown("cancel"):
                session.client().cancel(job.id)
                parts.answered()
                st.rerun()
        if st.button("Let it go on", key="dismiss-cancel", on_click=parts.answered):
            st.rerun()


@st.dialog("Try this job again?", on_dismiss=parts.answered)
def _confirm_retry(job: JobView) -> None:
    st.write("It goes back into the queue as it is, with three new tries. Its history is kept.")
    if job.error and not job.error.retryable:
        st.caption("The error was permanent: without a change outside of the job it will most likely come back.")
    with st.container(horizontal=True):
        if st.button("Queue it again", type="primary", key="confirm-retry"):
            with parts.problems_shown("retry"):
                session.client().retry(job.id)
                parts.answered()
                st.rerun()
        if st.button("Leave it", key="dismiss-retry", on_click=parts.answered):
            st.rerun()


def _status(job: JobView) -> None:
    if job.state is JobState.RUNNING and job.progress:
        progress = job.progress
        words = [progress.phase.value.capitalize()]
        if progress.num_blocks:
            words.append(f"block {progress.block or 0} of {progress.num_blocks}")
        if progress.eta_seconds is not None:
            words.append(f"about {fmt.duration(progress.eta_seconds)} left")
        if progress.message:
            words.append(parts.plain(progress.message))
        st.progress(progress.fraction, f"**{progress.fraction:.0%}** · {' · '.join(words)}")
    elif job.state is JobState.RUNNING:
        st.progress(0.0, "A worker has taken the job up and is getting started.")
    elif job.state is JobState.QUEUED:
        st.info(_waiting(job), icon=":material/hourglass_top:")


def _canary(canary: Canary) -> None:
    st.subheader("Canary", anchor=False)
    took = f"1 of {canary.num_blocks} blocks took {fmt.duration(canary.block_seconds)}"
    took += f" and {fmt.size(canary.rehearsal_memory_bytes)}"
    if canary.rehearsal_device_memory_bytes is not None:
        took += f" ({fmt.size(canary.rehearsal_device_memory_bytes)} on the GPU)"
    if canary.refusal is not None:
        st.caption(f"{took}, and the job was refused.")
    else:
        ends = canary.seconds
        st.caption(f"{took}; expected to end in {fmt.duration(ends.expected)} (planned {fmt.duration(ends.planned)}).")

    def beside(figure: Corrected) -> str:
        return f"{fmt.size(figure.expected)} (planned {fmt.size(figure.planned)})"

    parts.facts(
        [
            ("Memory", beside(canary.memory_bytes)),
            *([("On the GPU", beside(canary.device_memory_bytes))] if canary.device_memory_bytes else []),
            ("Disk", beside(canary.disk_bytes)),
            ("Saved", f"{fmt.size(canary.saved_bytes)} in {fmt.duration(canary.saved_seconds)}"),
        ]
    )


def _waiting(job: JobView) -> str:
    pools = {pool.name: pool for pool in session.remembered("pools", 5, session.client().pools)}
    pool = pools.get(job.pool)
    sentence = f"Waits for a worker of the pool {parts.plain(job.pool)}."
    if pool:
        sentence += f" {pool.running} running, {pool.queued} waiting there."
    if job.failures:
        sentence += f" It has failed {job.failures} times and is tried again from {fmt.moment(job.run_at)}."
    return sentence


def _timeline(job: JobView) -> None:
    st.subheader("What happened", anchor=False)
    events = _events(job)
    items = "".join(
        f'<li style="--tone:{_COLOURS.get(event.type, "#6b7280")}">'
        f"<span>{parts.escaped(_told(event))}</span><time>{fmt.moment(event.at)}</time></li>"
        for event in reversed(events)
    )
    with st.container(height=420 if len(events) > 8 else "content", border=False, key="timeline"):
        st.html(f'<ul class="pare-timeline">{items}</ul>')


def _events(job: JobView) -> list[JobEvent]:
    """All events so far; only the new ones are asked for."""
    name = f"job.events.{job.id}"
    known: list[JobEvent] = st.session_state.setdefault(name, [])
    while True:
        page = session.client().events_page(job.id, after=known[-1].seq if known else 0, limit=_EVENT_LIMIT)
        known.extend(page.items)
        if not page.has_more:
            return known


def _told(event: JobEvent) -> str:
    sentence = _WORDS[event.type]
    data = event.data
    if event.type == "progress":
        sentence = str(data.get("phase", "progress")).capitalize()
        if data.get("num_blocks"):
            sentence += f", block {data.get('block') or 0} of {data['num_blocks']}"
    if event.type == "canary" and data.get("refusal"):
        return f"{sentence}: {data['refusal']}"
    if event.type == "claimed" and data.get("worker"):
        sentence += f" ({data['worker']})"
    detail = _error_of(data)
    return f"{sentence}: {detail}" if detail else sentence


def _error_of(data: dict[str, Any]) -> str | None:
    error = data.get("error", data)
    detail = error.get("detail") if isinstance(error, dict) else None
    return str(detail) if detail else None


def _outcome(job: JobView) -> None:
    if job.error:
        st.error(f"{parts.plain(job.error.detail)}  \n`{job.error.code}`", icon=":material/error:")
        if job.error.field:
            st.caption(f"Field: {parts.plain(job.error.field)}")
    if job.state is JobState.REJECTED:
        st.warning("The result missed the job's budget. The figures below say by how much.", icon=":material/gavel:")
    if job.state is JobState.CANCELLED:
        st.info("The job was cancelled; it left no artifact.", icon=":material/cancel:")
    if job.artifact_id:
        try:
            manifest = session.remembered(
                f"manifest.{job.artifact_id}", 600, lambda: session.client().manifest(str(job.artifact_id))
            )
        except PareApiError as error:
            if error.status != 404:
                raise
            st.info("The artifact of this job was deleted.", icon=":material/delete:")
            return
        report.show(manifest)


def _about(job: JobView) -> None:
    st.subheader("The job", anchor=False)
    parts.facts(
        [
            ("Model", parts.mono(job.spec.model)),
            ("Recipe", parts.escaped(job.recipe_name)),
            ("Worker pool", parts.escaped(job.pool)),
            ("Priority", str(job.priority)),
            ("Submitted", fmt.moment(job.created_at)),
            ("Started", fmt.moment(job.started_at)),
            ("Finished", fmt.moment(job.finished_at)),
            ("Claims", str(job.epoch)),
            ("Failed tries", str(job.failures)),
        ]
    )
    with st.expander("Recipe file", icon=":material/description:"):
        parts.copyable(snippets.recipe_yaml(job.spec), "yaml")
    parts.json_view(job.model_dump(mode="json"), "The job as JSON")


page()
