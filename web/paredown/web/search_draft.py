"""The search that a form is writing: a goal, limits, the methods to try, and how much trying is allowed."""

from dataclasses import replace
from typing import Any

import streamlit as st

from paredown.contracts.search import SearchSpace, SearchSpec
from paredown.web import draft, form

MINIMIZE, NAME = "draft.search.minimize", "draft.search.name"
GOALS = {"loss": "Least loss", "size": "Fewest bytes"}
# A first limit, so that a form without any touch asks for something that can be had.
_FIRST_LIMIT = 0.35
_SPACE_LABELS = {"quantizers": "Quantize with", "pruners": "Prune before with", "droppers": "Or drop before with"}

SPACE = [
    replace(field, label=_SPACE_LABELS.get(field.name, field.label))
    for field in form.fields(SearchSpace.model_json_schema())
]
_LIMITS = ("max_size_ratio", "max_perplexity_increase")
_EFFORT = ("max_trials", "max_seconds", "parallel", "proxy", "survivors", "reuse")
_schema = SearchSpec.model_json_schema()
_FIELDS = {
    field.name: field
    for field in form.fields(
        _schema | {"properties": {name: _schema["properties"][name] for name in (*_LIMITS, *_EFFORT)}}
    )
}
LIMITS = [_FIELDS[name] for name in _LIMITS]
EFFORT = [_FIELDS[name] for name in _EFFORT]


def begin() -> None:
    """A first limit, which can be cleared: a default of the field itself would come back."""
    st.session_state.setdefault(key("max_size_ratio"), _FIRST_LIMIT)


def key(name: str) -> str:
    return draft.part_key("search", name)


def space_key(name: str) -> str:
    return draft.part_key("space", name)


def checked() -> tuple[SearchSpec | None, dict[str, str]]:
    """The search, or what is wrong at which path."""
    shared = draft.shared()
    if not shared["model"]:
        return None, {"model": "Choose a model, or write where yours lies."}
    own = {field.name: form.value_of(field, key(field.name)) for field in (*LIMITS, *EFFORT)}
    content = (
        shared
        | own
        | {
            "minimize": st.session_state.get(MINIMIZE) or "loss",
            "space": {field.name: form.value_of(field, space_key(field.name)) for field in SPACE},
            "name": (st.session_state.get(NAME) or "").strip() or None,
        }
    )
    if missing := _missing_limit(content):
        return None, missing
    return draft.validated(SearchSpec, content)


def _missing_limit(content: dict[str, Any]) -> dict[str, str]:
    """The contract says it of the whole; here it stands at the field."""
    if content["minimize"] == "loss" and content["max_size_ratio"] is None:
        return {"max_size_ratio": "Give a limit on bytes: without one, the base itself loses least."}
    if content["minimize"] == "size" and content["max_perplexity_increase"] is None:
        return {"max_perplexity_increase": "Give a limit on loss: without one, the smallest is always best."}
    return {}
