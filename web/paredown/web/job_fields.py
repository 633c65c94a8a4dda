"""The parts of a job that sweeps and searches have too: the model, the texts, the budget, the output, the queue.

Each field has a slot for what is wrong with it. The three forms share what was typed, so that a job becomes a sweep
without typing it again.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from paredown.contracts.gate import TERMS
from paredown.contracts.job import BUDGET_PRESETS
from paredown.contracts.service import PoolView
from paredown.web import domains_form, draft, form, parts, session, tasks_form, uploads
from paredown.web import format as fmt

# Where a sentence about a field is shown: path → slot under the field.
Slots = dict[str, DeltaGenerator]
KeyOf = Callable[[str], str]


def model(slots: Slots) -> None:
    models = session.remembered("models", 20, lambda: list(session.client().models()))
    st.subheader("Model", anchor=False)
    known = {entry.uri: entry for entry in models}
    chosen = st.session_state.get(draft.MODEL)
    st.selectbox(
        "Model address",
        [*known, *([chosen] if chosen and chosen not in known else [])],
        index=None,
        key=draft.MODEL,
        accept_new_options=True,
        placeholder="hf://organisation/model@revision, s3://bucket/prefix, https://…, file://…, pkg://…, artifact://…",
        help="Choose a model that was used before or comes with the service, or write an address and press Enter. "
        "artifact:// and the id of an artifact, or @ and the name of an alias, compresses that one further.",
        persist_state="session",
    )
    slots["model"] = st.empty()
    entry = known.get(chosen or "")
    if entry and entry.parameters:
        st.caption(
            f"{parts.plain(entry.model_type or 'model')} · {fmt.count(entry.parameters)} parameters · "
            f"base {fmt.size(entry.base_bytes)}"
        )


def ask_all(fields: Sequence[form.Field], path: str, slots: Slots, key: KeyOf) -> None:
    """Figures and choices two beside each other, then the switches in one line, then lists over the whole width."""
    boxes = [field for field in fields if field.kind not in ("switch", "list")]
    switches = [field for field in fields if field.kind == "switch"]
    prefix = f"{path}." if path else ""
    for first in range(0, len(boxes), 2):
        for column, field in zip(st.columns(2), boxes[first : first + 2], strict=False):
            with column:
                slots[prefix + field.name] = form.ask(field, key(field.name))
    if switches:
        with st.container(horizontal=True, gap="large"):
            for field in switches:
                with st.container(width="content", gap=None):
                    slots[prefix + field.name] = form.ask(field, key(field.name))
    for field in fields:
        if field.kind == "list":
            slots[prefix + field.name] = form.ask(field, key(field.name))


def budget(slots: Slots) -> None:
    with st.expander("Budget: what the result must meet", icon=":material/savings:", key="options-budget"):
        st.caption("A job that misses its budget ends as rejected, with the evidence.")
        _budget(slots)


def texts(slots: Slots, *, calibrates: bool = True) -> None:
    """What methods learn from, and what base and result are measured on."""
    datasets = session.remembered("datasets", 20, lambda: list(session.client().datasets()))
    sources = {f"dataset://{dataset.id}": dataset.name for dataset in datasets}
    with st.expander("Calibration: the text methods learn from", icon=":material/tune:", key="options-calibration"):
        if not calibrates:
            st.caption("No stage of this recipe needs calibration; these settings change nothing.")
        _text_part("calibration", draft.CALIBRATION, sources, slots)
        uploads.ask(
            "Calibrate on your own text",
            ["txt", "jsonl", "json", "md"],
            "UTF-8 text, or JSON lines with a field text. It is kept in your project.",
            draft.part_key("calibration", "source"),
        )
    with st.expander("Evaluation: how base and result are measured", icon=":material/speed:", key="options-evaluation"):
        _text_part("evaluation", draft.EVALUATION, sources, slots)
        domains_form.ask(sources, slots)
    with st.expander("Tasks: benchmarks of base and result", icon=":material/quiz:", key="options-tasks"):
        tasks_form.ask(sources, slots)


def output(slots: Slots, *names: str) -> None:
    with st.expander(
        f"Output: {', '.join(names[:-1])} and {names[-1]}".replace("dtype", "number type"),
        icon=":material/inventory_2:",
        key="options-output",
    ):
        job_fields(*names, slots=slots)


def queue(slots: Slots, *, rehearsal: bool = False) -> None:
    """`rehearsal`: only a job by itself can ask for one."""
    pools = session.remembered("pools", 20, session.client().pools)
    title = "Queue: worker pool, priority and rehearsal" if rehearsal else "Queue: worker pool and priority"
    with st.expander(title, icon=":material/dns:", key="options-queue"):
        _pool(pools, slots)
        job_fields("priority", *(["canary"] if rehearsal else []), slots=slots)


def clear_button() -> None:
    st.button("Clear the form", icon=":material/ink_eraser:", type="tertiary", on_click=draft.clear, key="clear-form")


def _budget(slots: Slots) -> None:
    st.radio(
        "Budget",
        list(draft.BUDGET_CHOICES),
        format_func=draft.BUDGET_CHOICES.__getitem__,
        key=draft.BUDGET_CHOICE,
        horizontal=True,
        label_visibility="collapsed",
        persist_state="session",
    )
    if draft.budget_choice() == "own":
        st.caption("Empty fields are no limit; with all of them empty there is no budget.")
        ask_all(draft.BUDGET, "budget", slots, lambda name: draft.part_key("budget", name))
    elif draft.budget_choice() == "default":
        preset = BUDGET_PRESETS["default"]
        limits = [(term, getattr(preset, term.field)) for term in TERMS.values()]
        parts.facts(
            (term.title, f"at {'least' if term.least else 'most'} {fmt.limit(limit, term.unit, None)}")
            for term, limit in limits
            if limit is not None
        )
    slots["budget"] = st.empty()


def _text_part(part: str, fields: Sequence[form.Field], sources: Mapping[str, str], slots: Slots) -> None:
    """Settings of a part that reads text: its source can be chosen, or written."""
    source = next(field for field in fields if field.name == "source")
    key = draft.part_key(part, "source")
    chosen = st.session_state.get(key)
    options = list(dict.fromkeys([source.default, *sources, *([chosen] if chosen else [])]))
    st.selectbox(
        source.label,
        options,
        index=0,
        key=key,
        format_func=partial(parts.source_name, sources),
        accept_new_options=True,
        help=f"{source.help} Choose one, or write an address (hf://, https://, s3://, file://) and press Enter.",
        persist_state="session",
    )
    slots[f"{part}.source"] = st.empty()
    rest = [field for field in fields if field.name != "source"]
    ask_all(rest, part, slots, lambda name: draft.part_key(part, name))


def _pool(pools: tuple[PoolView, ...], slots: Slots) -> None:
    known = {pool.name: pool for pool in pools}

    def describe(name: str | None) -> str:
        if name is None:
            return "chosen by the plan"
        pool = known.get(name)
        if pool is None:
            return name
        return f"{name}: {pool.device}, {fmt.money(pool.price_per_hour, pool.currency)}/h, {pool.queued} waiting"

    st.selectbox(
        "Worker pool",
        [None, *known],
        format_func=describe,
        key=draft.part_key("job", "pool"),
        help=draft.JOB["pool"].help,
        persist_state="session",
    )
    slots["pool"] = st.empty()


def job_fields(*names: str, slots: Slots) -> None:
    ask_all([draft.JOB[name] for name in names], "", slots, lambda name: draft.part_key("job", name))


def show_at_fields(found: Mapping[str, str], slots: Slots) -> None:
    """Each sentence under the field that its path names, or under the nearest part around it."""
    for path, sentence in found.items():
        words = path.split(".")
        for length in range(len(words), 0, -1):
            slot = slots.get(".".join(words[:length]))
            if slot is not None:
                slot.markdown(f":red[:material/error: {parts.plain(sentence)}]")
                break
