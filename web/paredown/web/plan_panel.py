"""Beside the Submit form: what the job would need, what is wrong with it, the button, and the same job as text."""

from collections.abc import Mapping

import streamlit as st

from paredown.client.errors import PareApiError
from paredown.contracts.job import JobSpec, Plan
from paredown.contracts.methods import MethodView
from paredown.web import draft, parts, problems, sending, session, snippets
from paredown.web import format as fmt

_PLAN_SECONDS = 300


def show(methods: Mapping[str, MethodView]) -> Mapping[str, str]:
    """Draw the panel. Returns the sentences about fields, by path."""
    st.subheader("Plan", anchor=False)
    spec, found = draft.checked(draft.content(methods))
    if spec is None:
        return sending.not_ready(found, "Submit job")
    client = session.client()
    with st.spinner("Planning…"):
        planned = session.remembered(
            f"plan.{draft.spec_hash(spec)}", _PLAN_SECONDS, lambda: sending.answer_or_refusal(lambda: client.plan(spec))
        )
    if isinstance(planned, PareApiError):
        found = problems.of_refusal(planned)
        sending.attention(found)
    elif isinstance(planned, Plan):
        _figures(planned)
    refused = sending.button(
        spec, "job", parts.JOB, lambda key: client.submit(spec, key).id, allowed=isinstance(planned, Plan)
    )
    _as_text(spec)
    return {**found, **refused}


def _as_text(spec: JobSpec) -> None:
    curl = snippets.curl(spec, session.public_api_url(), draft.idempotency_key(spec))
    kinds = [
        ("Recipe file", "yaml", snippets.recipe_yaml(spec)),
        ("pare", "bash", snippets.submit_command(spec)),
        ("curl", "bash", curl),
    ]
    sending.as_text(kinds, "recipe.yaml")


def _figures(plan: Plan) -> None:
    with st.container(border=True, key="plan"):
        first, second = st.columns(2)
        first.metric(
            "Artifact",
            fmt.size(plan.output_bytes),
            f"{fmt.percent(plan.size_ratio)} of the base",
            delta_color="off",
            delta_arrow="off",
        )
        second.metric(
            "Time",
            fmt.duration(plan.seconds),
            fmt.money(plan.cost, plan.currency),
            delta_color="off",
            delta_arrow="off",
        )
        parts.facts(
            [
                ("Memory", fmt.size(plan.memory_bytes)),
                *([("Of it on the GPU", fmt.size(plan.device_memory_bytes))] if plan.device_memory_bytes else []),
                ("Disk", fmt.size(plan.disk_bytes)),
                ("Download", fmt.size(plan.download_bytes)),
                ("Worker pool", parts.escaped(plan.pool)),
                ("Format", parts.escaped(plan.format.value)),
                ("Model", f"{parts.escaped(plan.model_type)}, {fmt.count(plan.parameters)}"),
            ]
        )
        st.caption(_expected(plan))
        if not plan.pausing:
            st.caption("Activations do not fit in memory at once, so blocks run more often and the job takes longer.")
        for warning in plan.warnings:
            st.warning(parts.plain(warning), icon=":material/warning:")


def _expected(plan: Plan) -> str:
    """Where the figures will end, and from what that is known."""
    ranges = [
        f"{fmt.duration(plan.seconds_interval.low)} to {fmt.duration(plan.seconds_interval.high)}"
        if plan.seconds_interval
        else "",
        f"{fmt.size(plan.memory_interval.low)} to {fmt.size(plan.memory_interval.high)} of memory"
        if plan.memory_interval
        else "",
    ]
    known = (
        f"as the last {plan.history_jobs} finished jobs like it went"
        if plan.history_jobs
        else "from the model's configuration alone: no finished jobs tell more yet"
    )
    return f"Expect {', '.join(part for part in ranges if part)}, {known}." if any(ranges) else ""
