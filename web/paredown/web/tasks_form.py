"""Tasks of a job: which benchmarks, where their rows lie, and how many of them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from paredown.contracts.tasks import TASKS, TaskName
from paredown.web import format as fmt
from paredown.web import parts, uploads

CHOSEN = "draft.tasks"


def ask(sources: Mapping[str, str], slots: dict[str, DeltaGenerator]) -> None:
    """`sources` are the project's data sets, by address."""
    st.multiselect(
        "Tasks",
        list(TASKS),
        format_func=lambda name: f"{TASKS[name].title}: {TASKS[name].measures}",
        key=CHOSEN,
        placeholder="None, or those that lm-eval shall measure",
        help="Measured through lm-eval's own definitions, on base and artifact alike.",
        persist_state="session",
    )
    slots["evaluation.tasks"] = st.empty()
    for index, name in enumerate(_chosen()):
        _task(index, name, sources, slots)


def content() -> list[dict[str, Any]]:
    """The tasks as the API takes them; fields that were left empty are left out."""
    found = []
    for name in _chosen():
        task: dict[str, Any] = {"name": name}
        for field in ("source", "limit", "num_fewshot", "fewshot_source"):
            value = st.session_state.get(_key(name, field))
            value = value.strip() if isinstance(value, str) else value
            if value:
                task[field] = value
        found.append(task)
    return found


def _task(index: int, name: TaskName, sources: Mapping[str, str], slots: dict[str, DeltaGenerator]) -> None:
    task = TASKS[name]
    path = f"evaluation.tasks.{index}"
    with st.container(border=True, key=f"task-{name}"):
        st.markdown(f"**{parts.plain(task.title)}**, {parts.plain(task.metric)}")
        at_hub = f", or empty for {task.source}" if task.source else ""
        rows, count = st.columns([2.4, 1])
        with rows:
            _address("Rows", name, "source", sources, f"dataset://…, file://…, s3://…{at_hub}", _rows_help(task.source))
            slots[f"{path}.source"] = st.empty()
        with count:
            st.number_input(
                "Limit",
                value=None,
                min_value=1,
                max_value=1_000_000,
                step=1,
                placeholder=f"all {fmt.count(task.rows)}",
                help="Rows measured, from the start; empty takes all. Few rows leave wide intervals.",
                key=_key(name, "limit"),
                persist_state="session",
            )
            slots[f"{path}.limit"] = st.empty()
        with st.expander("Rows of your own", icon=":material/upload:", key=f"task-rows-{name}"):
            fields = ", ".join(task.row.model_fields)
            uploads.ask(
                f"Rows with {fields}",
                ["jsonl", "csv"],
                "JSON lines or CSV. They are kept in your project as a data set.",
                _key(name, "source"),
                name=f"upload-{name}",
            )
        if task.shots:
            with st.expander("Examples before each row", key=f"task-shots-{name}"):
                st.number_input(
                    "Examples",
                    value=0,
                    min_value=0,
                    max_value=64,
                    step=1,
                    help="Solved examples before each row; 0 measures without.",
                    key=_key(name, "num_fewshot"),
                    persist_state="session",
                )
                help_ = "Other rows of the same kind, such as the data set's training part."
                _address("Rows of the examples", name, "fewshot_source", sources, "dataset://…, hf://…", help_)
                slots[f"{path}.num_fewshot"] = st.empty()
        slots[path] = st.empty()


def _address(label: str, name: TaskName, field: str, sources: Mapping[str, str], example: str, help_: str) -> None:
    key = _key(name, field)
    chosen = st.session_state.get(key)
    st.selectbox(
        label,
        list(dict.fromkeys([*sources, *([chosen] if chosen else [])])),
        index=None,
        key=key,
        format_func=partial(parts.source_name, sources),
        accept_new_options=True,
        placeholder=example,
        help=help_,
        persist_state="session",
    )


def _rows_help(source: str | None) -> str:
    empty = f"Empty takes {source}." if source else "Pare knows no file on the hub for it, so it needs an address."
    return f"JSON lines, CSV or Parquet: a data set of the project, or an address. {empty}"


def _chosen() -> list[TaskName]:
    """In the order of the definitions, whatever the order of the clicks."""
    chosen = st.session_state.get(CHOSEN) or []
    return [name for name in TASKS if name in chosen]


def _key(name: TaskName, field: str) -> str:
    return f"draft.task.{name}.{field}"
