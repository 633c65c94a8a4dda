"""The job that the Submit page is writing: which stages it has, what its fields say, and its idempotency key."""

from collections.abc import Mapping
from typing import Any, TypedDict, cast
from uuid import uuid4

import streamlit as st
from pydantic import ValidationError

from paredown.contracts.job import Budget, Calibration, EvaluationSettings, JobSpec, content_hash
from paredown.contracts.methods import MethodView
from paredown.web import form, problems

MAX_STAGES = 8
MODEL = "draft.model"
# "default", "own" or "none".
BUDGET_CHOICE = "draft.budget_choice"
BUDGET_CHOICES = {"default": "The default budget", "own": "Terms of my own", "none": "No budget"}
_STAGES, _KEY, _SENT = "draft.stages", "draft.key", "draft.sent"


class StageDraft(TypedDict):
    """A stage keeps its `uid` when it moves, so that its fields keep what was typed."""

    uid: int
    method: str


# Schemas of the parts of a job that every recipe has; a stage's own comes from the API.
CALIBRATION = form.fields(Calibration.model_json_schema())
EVALUATION = form.fields(EvaluationSettings.model_json_schema())
BUDGET = form.fields(Budget.model_json_schema())
_JOB_FIELDS = ("format", "dtype", "pool", "priority", "canary", "name", "tags")
_job_schema = JobSpec.model_json_schema()
JOB = {
    field.name: field
    for field in form.fields(
        _job_schema | {"properties": {name: _job_schema["properties"][name] for name in _JOB_FIELDS}}
    )
}


def stages() -> list[StageDraft]:
    if _STAGES not in st.session_state:
        st.session_state[_STAGES] = [StageDraft(uid=1, method="gptq")]
    return cast("list[StageDraft]", st.session_state[_STAGES])


def add_stage(method: str) -> None:
    current = stages()
    uid = 1 + max((stage["uid"] for stage in current), default=0)
    st.session_state[_STAGES] = [*current, StageDraft(uid=uid, method=method)]


def remove_stage(uid: int) -> None:
    st.session_state[_STAGES] = [stage for stage in stages() if stage["uid"] != uid]


def move_stage(uid: int, step: int) -> None:
    """Up with −1, down with +1; at either end nothing happens."""
    current = list(stages())
    place = next(index for index, stage in enumerate(current) if stage["uid"] == uid)
    target = min(max(0, place + step), len(current) - 1)
    current.insert(target, current.pop(place))
    st.session_state[_STAGES] = current


def set_method(uid: int, method: str) -> None:
    st.session_state[_STAGES] = [
        StageDraft(uid=uid, method=method) if stage["uid"] == uid else stage for stage in stages()
    ]


def stage_key(stage: StageDraft, name: str) -> str:
    return f"draft.stage.{stage['uid']}.{stage['method']}.{name}"


def part_key(part: str, name: str) -> str:
    return f"draft.{part}.{name}"


def content(methods: Mapping[str, MethodView]) -> dict[str, Any]:
    """The draft as the API would take it, right or wrong."""
    recipe = [
        {"method": stage["method"]}
        | {field.name: form.value_of(field, stage_key(stage, field.name)) for field in _settings(methods, stage)}
        for stage in stages()
    ]
    return {
        "model": (st.session_state.get(MODEL) or "").strip(),
        "recipe": recipe,
        "calibration": _part("calibration", CALIBRATION),
        "evaluation": _part("evaluation", EVALUATION),
        "budget": _budget(),
    } | {name: form.value_of(field, part_key("job", name)) for name, field in JOB.items()}


def budget_choice() -> str:
    return cast("str", st.session_state.get(BUDGET_CHOICE, "default"))


def _budget() -> dict[str, Any] | str | None:
    if budget_choice() == "default":
        return "default"
    terms = _part("budget", BUDGET) if budget_choice() == "own" else {}
    return terms if any(limit is not None for limit in terms.values()) else None


def _settings(methods: Mapping[str, MethodView], stage: StageDraft) -> list[form.Field]:
    method = methods.get(stage["method"])
    return form.fields(method.settings) if method else []


def _part(part: str, fields: list[form.Field]) -> dict[str, Any]:
    return {field.name: form.value_of(field, part_key(part, field.name)) for field in fields}


def checked(draft: dict[str, Any]) -> tuple[JobSpec | None, dict[str, str]]:
    """The job, or what is wrong at which path."""
    if not draft["model"]:
        return None, {"model": "Choose a model, or write where yours lies."}
    if not draft["recipe"]:
        return None, {"recipe": "Add at least one stage."}
    try:
        return JobSpec.model_validate(draft), {}
    except ValidationError as error:
        return None, problems.of_validation(error)


def spec_hash(spec: JobSpec) -> str:
    return content_hash(spec.model_dump(mode="json"))


def idempotency_key(spec: JobSpec) -> str:
    """One key for one state of the form: a double click, or a second try after a lost answer, makes one job."""
    wanted = spec_hash(spec)
    known = cast("tuple[str, str] | None", st.session_state.get(_KEY))
    if known is None or known[0] != wanted:
        known = (wanted, str(uuid4()))
        st.session_state[_KEY] = known
    return known[1]


def remember_sent(spec: JobSpec, job_id: str) -> None:
    st.session_state[_SENT] = (spec_hash(spec), job_id)


def sent_job(spec: JobSpec) -> str | None:
    """The job that this very state of the form has become."""
    sent = cast("tuple[str, str] | None", st.session_state.get(_SENT))
    return sent[1] if sent and sent[0] == spec_hash(spec) else None


def submit_again() -> None:
    """The person wants the same job a second time: the next one gets a key of its own."""
    st.session_state.pop(_KEY, None)
    st.session_state.pop(_SENT, None)


def clear() -> None:
    for name in [name for name in st.session_state if str(name).startswith("draft.")]:
        del st.session_state[name]
