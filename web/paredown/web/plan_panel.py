"""Beside the Submit form: what the job would need, what is wrong with it, the button, and the same job as text."""

from collections.abc import Mapping

import streamlit as st

from paredown.client.errors import PareApiError
from paredown.contracts.job import JobSpec, Plan
from paredown.contracts.methods import MethodView
from paredown.web import draft, parts, problems, session, snippets
from paredown.web import format as fmt

_PLAN_SECONDS = 300


def show(methods: Mapping[str, MethodView]) -> dict[str, str]:
    """Draw the panel. Returns the sentences about fields, by path."""
    st.subheader("Plan", anchor=False)
    spec, found = draft.checked(draft.content(methods))
    if spec is None:
        begun = bool(st.session_state.get(draft.MODEL))
        if begun or "model" not in found:
            _attention(found)
        else:
            # The first thing to do is no mistake yet.
            st.info(parts.plain(found["model"]), icon=":material/arrow_back:")
        st.button("Submit job", type="primary", disabled=True, width="stretch", key="submit-disabled")
        return found if begun else {}
    with st.spinner("Planning…"):
        planned = session.remembered(f"plan.{draft.spec_hash(spec)}", _PLAN_SECONDS, lambda: _plan(spec))
    if isinstance(planned, PareApiError):
        found = problems.of_refusal(planned)
        _attention(found)
    else:
        _figures(planned)
    _submit(spec, allowed=isinstance(planned, Plan))
    _as_text(spec)
    return found


def _plan(spec: JobSpec) -> Plan | PareApiError:
    """A refusal is an answer too, and worth remembering; a service that is away or broken is not."""
    try:
        return session.client().plan(spec)
    except PareApiError as error:
        if not 400 <= error.status < 500 or error.status in (401, 429):
            raise
        return error


def _attention(found: Mapping[str, str]) -> None:
    """Every sentence, also those whose field lies in a closed part of the form."""
    lines = [
        f"**{parts.plain(_spoken(path))}:** {parts.plain(sentence)}" if path else parts.plain(sentence)
        for path, sentence in found.items()
    ]
    st.warning("  \n".join(lines), icon=":material/error:")


def _spoken(path: str) -> str:
    """`recipe.0.group_size` → `Stage 1, group size`."""
    words = path.split(".")
    if words[0] == "recipe" and len(words) > 1 and words[1].isdigit():
        words = [f"Stage {int(words[1]) + 1}", *words[2:]]
    return ", ".join(word.replace("_", " ") for word in words).capitalize()


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


def _submit(spec: JobSpec, *, allowed: bool) -> None:
    sent = draft.sent_job(spec)
    if sent:
        with st.container(border=True, key="submitted"):
            st.markdown(":green[:material/check_circle:] **Submitted.** This form has become a job.")
            st.page_link(
                parts.JOB, label="**Watch the job**", icon=":material/arrow_forward:", query_params={"id": sent}
            )
            st.button("Submit it once more", on_click=draft.submit_again, type="tertiary", key="submit-again")
        return
    pressed = st.button(
        "Submit job",
        type="primary",
        disabled=not allowed,
        width="stretch",
        icon=":material/rocket_launch:",
        key="submit",
    )
    if pressed:
        try:
            job = session.client().submit(spec, draft.idempotency_key(spec))
        except PareApiError as error:
            parts.show_problem(error, "submit")
            return
        draft.remember_sent(spec, str(job.id))
        session.forget("models")
        st.rerun()


def _as_text(spec: JobSpec) -> None:
    with st.expander("The same as a file or command", icon=":material/terminal:"):
        recipe, command, request = st.tabs(["Recipe file", "pare", "curl"])
        with recipe:
            parts.copyable(snippets.recipe_yaml(spec), "yaml")
        with command:
            st.caption("With the recipe file saved as recipe.yaml:")
            parts.copyable(snippets.submit_command(spec), "bash")
        with request:
            parts.copyable(snippets.curl(spec, session.public_api_url(), draft.idempotency_key(spec)), "bash")
