"""What the forms are writing: which stages a recipe has, what the fields say, and the idempotency key.

A job, a sweep and a search share what they have in common: the model, the texts, the tasks, the queue.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar, cast
from uuid import uuid4

import streamlit as st
from pydantic import ValidationError

from paredown.contracts.job import (
    BUDGET_PRESETS,
    Budget,
    Calibration,
    Contract,
    EvaluationSettings,
    JobSpec,
    content_hash,
)
from paredown.contracts.methods import MethodView
from paredown.web import domains_form, form, problems, tasks_form

MAX_STAGES = 8
MODEL = "draft.model"
# "default", "own" or "none".
BUDGET_CHOICE = "draft.budget_choice"
BUDGET_CHOICES = {"default": "The default budget", "own": "Terms of my own", "none": "No budget"}
Spec = TypeVar("Spec", bound=Contract)
_STAGES, _KEY, _SENT = "draft.stages", "draft.key", "draft.sent"


class StageDraft(TypedDict):
    """A stage keeps its `uid` when it moves, so that its fields keep what was typed."""

    uid: int
    method: str


# Schemas of the parts of a job that every recipe has; a stage's own comes from the API.
CALIBRATION = form.fields(Calibration.model_json_schema())
_OF_THEIR_OWN = ("tasks", "domains")
_evaluation_schema = EvaluationSettings.model_json_schema()
EVALUATION = form.fields(
    _evaluation_schema
    | {
        "properties": {
            name: part for name, part in _evaluation_schema["properties"].items() if name not in _OF_THEIR_OWN
        }
    }
)
BUDGET = form.fields(Budget.model_json_schema())
_JOB_FIELDS = ("format", "dtype", "pool", "priority", "canary", "name", "tags")
# What a sweep and a search lack, or have of their own.
_JOB_ALONE = ("canary", "name")
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
    """The job as the API would take it, right or wrong."""
    alone = {name: form.value_of(JOB[name], part_key("job", name)) for name in _JOB_ALONE}
    return {"recipe": recipe(methods), "budget": _budget()} | shared() | alone


def recipe(methods: Mapping[str, MethodView]) -> list[dict[str, Any]]:
    return [
        {"method": stage["method"]}
        | {field.name: form.value_of(field, stage_key(stage, field.name)) for field in _settings(methods, stage)}
        for stage in stages()
    ]


def shared() -> dict[str, Any]:
    """What a sweep and a search have too."""
    return {
        "model": (st.session_state.get(MODEL) or "").strip(),
        "calibration": part("calibration", CALIBRATION),
        "evaluation": part("evaluation", EVALUATION)
        | {"tasks": tasks_form.content(), "domains": domains_form.content()},
    } | {name: form.value_of(field, part_key("job", name)) for name, field in JOB.items() if name not in _JOB_ALONE}


def budget_terms() -> dict[str, Any] | None:
    """The budget where no preset's name is taken."""
    chosen = _budget()
    return BUDGET_PRESETS[chosen].model_dump(exclude_none=True) if isinstance(chosen, str) else chosen


def budget_choice() -> str:
    return cast("str", st.session_state.get(BUDGET_CHOICE, "default"))


def _budget() -> dict[str, Any] | str | None:
    if budget_choice() == "default":
        return "default"
    terms = part("budget", BUDGET) if budget_choice() == "own" else {}
    return terms if any(limit is not None for limit in terms.values()) else None


def _settings(methods: Mapping[str, MethodView], stage: StageDraft) -> list[form.Field]:
    method = methods.get(stage["method"])
    return form.fields(method.settings) if method else []


def part(name: str, fields: Sequence[form.Field]) -> dict[str, Any]:
    return {field.name: form.value_of(field, part_key(name, field.name)) for field in fields}


def checked(draft: dict[str, Any]) -> tuple[JobSpec | None, dict[str, str]]:
    """The job, or what is wrong at which path."""
    if not draft["model"]:
        return None, {"model": "Choose a model, or write where yours lies."}
    if not draft["recipe"]:
        return None, {"recipe": "Add at least one stage."}
    return validated(JobSpec, draft)


def validated(contract: type[Spec], content: dict[str, Any]) -> tuple[Spec | None, dict[str, str]]:
    """The request, or what is wrong at which path."""
    try:
        return contract.model_validate(content), {}
    except ValidationError as error:
        return None, problems.of_validation(error)


def spec_hash(spec: Contract) -> str:
    return content_hash([type(spec).__name__, spec.model_dump(mode="json")])


def idempotency_key(spec: Contract) -> str:
    """One key for one state of the form: a double click, or a second try after a lost answer, makes one job."""
    wanted = spec_hash(spec)
    known = cast("tuple[str, str] | None", st.session_state.get(_KEY))
    if known is None or known[0] != wanted:
        known = (wanted, str(uuid4()))
        st.session_state[_KEY] = known
    return known[1]


def remember_sent(spec: Contract, item_id: str) -> None:
    st.session_state[_SENT] = (spec_hash(spec), item_id)


def sent(spec: Contract) -> str | None:
    """The job, sweep or search that this very state of the form has become."""
    last = cast("tuple[str, str] | None", st.session_state.get(_SENT))
    return last[1] if last and last[0] == spec_hash(spec) else None


def submit_again() -> None:
    """The person wants the same job a second time: the next one gets a key of its own."""
    st.session_state.pop(_KEY, None)
    st.session_state.pop(_SENT, None)


def clear() -> None:
    for name in [name for name in st.session_state if str(name).startswith("draft.")]:
        del st.session_state[name]
