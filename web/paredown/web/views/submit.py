"""Submit: the form that the methods' own schemas draw, and beside it what the job would need."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from paredown.client.errors import PareApiError
from paredown.contracts.gate import TERMS
from paredown.contracts.job import BUDGET_PRESETS
from paredown.contracts.methods import MethodView
from paredown.contracts.service import ModelEntry, PoolView
from paredown.web import draft, form, parts, plan_panel, session
from paredown.web import format as fmt

_UPLOAD_PROBLEM = "draft.upload_problem"

# Where a sentence about a field is shown: path → slot under the field.
Slots = dict[str, DeltaGenerator]
KeyOf = Callable[[str], str]


def page() -> None:
    parts.heading("Compress a model", "A model, a recipe and, if you like, a budget. The plan says what it takes.")
    client = session.client()
    methods = {view.method: view for view in session.remembered("methods", 60, client.methods)}
    models = session.remembered("models", 20, lambda: list(client.models()))
    pools = session.remembered("pools", 20, client.pools)

    slots: Slots = {}
    left, right = st.columns([1.65, 1], gap="large")
    with left:
        _model(models, slots)
        _recipe(methods, slots)
        _more(methods, pools, slots)
    found: Mapping[str, str] = {}
    with right, st.container(key="plan-panel"), parts.problems_shown("plan"):
        found = plan_panel.show(methods)
    _show_at_fields(found, slots)


def _model(models: list[ModelEntry], slots: Slots) -> None:
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
        "artifact:// and the id of an artifact compresses that one further.",
        persist_state="session",
    )
    slots["model"] = st.empty()
    entry = known.get(chosen or "")
    if entry and entry.parameters:
        st.caption(
            f"{parts.plain(entry.model_type or 'model')} · {fmt.count(entry.parameters)} parameters · "
            f"base {fmt.size(entry.base_bytes)}"
        )


def _recipe(methods: Mapping[str, MethodView], slots: Slots) -> None:
    st.subheader("Recipe", anchor=False)
    stages = draft.stages()
    for index, stage in enumerate(stages):
        _stage(index, stage, len(stages), methods, slots)
    if not stages:
        st.info("A recipe needs at least one stage: add one below.", icon=":material/add_circle:")
    slots["recipe"] = st.empty()
    if len(stages) < draft.MAX_STAGES:
        # Buttons, because adding is an act, not a choice that lasts.
        with st.container(horizontal=True, key="add-stage", vertical_alignment="center"):
            st.markdown("Add a stage:", width="content")
            for name, view in methods.items():
                st.button(
                    view.title,
                    key=f"draft.add.{name}",
                    icon=":material/add:",
                    on_click=draft.add_stage,
                    args=(name,),
                    help=f"{view.family.value.capitalize()}. {view.summary}",
                )


def _stage(index: int, stage: draft.StageDraft, count: int, methods: Mapping[str, MethodView], slots: Slots) -> None:
    uid = stage["uid"]
    view = methods.get(stage["method"])
    with st.container(border=True, key=f"stage-{uid}"):
        with st.container(horizontal=True, vertical_alignment="center", key=f"stage-head-{uid}"):
            title = view.title if view else stage["method"]
            st.markdown(f"**{index + 1}. {parts.plain(title)}**", width="stretch")
            for label, step, disabled in (("Up", -1, index == 0), ("Down", 1, index == count - 1)):
                st.button(
                    label,
                    key=f"draft.move.{uid}.{step}",
                    icon=":material/arrow_upward:" if step < 0 else ":material/arrow_downward:",
                    type="tertiary",
                    disabled=disabled,
                    on_click=draft.move_stage,
                    args=(uid, step),
                )
            st.button(
                "Remove",
                key=f"draft.remove.{uid}",
                icon=":material/delete:",
                type="tertiary",
                on_click=draft.remove_stage,
                args=(uid,),
            )
        if view is None:
            st.warning(f"The service does not offer {parts.plain(stage['method'])} any more; remove this stage.")
            return
        names = list(methods)
        picked = st.selectbox(
            "Method",
            names,
            index=names.index(stage["method"]),
            format_func=lambda name: f"{methods[name].title} · {methods[name].family.value}",
            key=f"draft.method.{uid}.{stage['method']}",
        )
        if picked != stage["method"]:
            draft.set_method(uid, picked)
            st.rerun()
        st.caption(f"{parts.plain(view.summary)}{_needs(view)}")
        _fields(form.fields(view.settings), f"recipe.{index}", slots, lambda name: draft.stage_key(stage, name))
        slots[f"recipe.{index}"] = st.empty()


def _needs(view: MethodView) -> str:
    if view.needs_gpu:
        return " Needs calibration and a GPU." if view.needs_calibration else " Needs a GPU."
    return " Needs calibration." if view.needs_calibration else " Needs no calibration."


def _fields(fields: list[form.Field], path: str, slots: Slots, key: KeyOf) -> None:
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


def _more(methods: Mapping[str, MethodView], pools: tuple[PoolView, ...], slots: Slots) -> None:
    st.subheader("Options", anchor=False)
    datasets = session.remembered("datasets", 20, lambda: list(session.client().datasets()))
    sources = {f"dataset://{dataset.id}": dataset.name for dataset in datasets}
    with st.expander("Budget: what the result must meet", icon=":material/savings:", key="options-budget"):
        st.caption("A job that misses its budget ends as rejected, with the evidence.")
        _budget(slots)
    used = [methods[stage["method"]] for stage in draft.stages() if stage["method"] in methods]
    with st.expander("Calibration: the text methods learn from", icon=":material/tune:", key="options-calibration"):
        if used and not any(view.needs_calibration for view in used):
            st.caption("No stage of this recipe needs calibration; these settings change nothing.")
        _text_part("calibration", draft.CALIBRATION, sources, slots)
        _upload()
    with st.expander("Evaluation: how base and result are measured", icon=":material/speed:", key="options-evaluation"):
        _text_part("evaluation", draft.EVALUATION, sources, slots)
    with st.expander("Output: format, name and tags", icon=":material/inventory_2:", key="options-output"):
        _job_fields("format", "dtype", "name", "tags", slots=slots)
    with st.expander("Queue: worker pool, priority and rehearsal", icon=":material/dns:", key="options-queue"):
        _pool(pools, slots)
        _job_fields("priority", "canary", slots=slots)
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
        _fields(draft.BUDGET, "budget", slots, lambda name: draft.part_key("budget", name))
    elif draft.budget_choice() == "default":
        preset = BUDGET_PRESETS["default"]
        limits = [(term, getattr(preset, term.field)) for term in TERMS.values()]
        parts.facts(
            (term.title, f"at {'least' if term.least else 'most'} {fmt.limit(limit, term.unit, None)}")
            for term, limit in limits
            if limit is not None
        )
    slots["budget"] = st.empty()


def _text_part(part: str, fields: list[form.Field], sources: Mapping[str, str], slots: Slots) -> None:
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
        format_func=lambda uri: f"{sources[uri]} ({uri})" if uri in sources else uri,
        accept_new_options=True,
        help=f"{source.help} Choose one, or write an address (hf://, https://, s3://, file://) and press Enter.",
        persist_state="session",
    )
    slots[f"{part}.source"] = st.empty()
    rest = [field for field in fields if field.name != "source"]
    _fields(rest, part, slots, lambda name: draft.part_key(part, name))


def _upload() -> None:
    uploaded = st.file_uploader(
        "Calibrate on your own text",
        type=["txt", "jsonl", "json", "md"],
        help="UTF-8 text, or JSON lines with a field text. It is kept in your project.",
        key="draft.upload",
    )
    if uploaded is not None:
        st.button(
            f"Upload {parts.plain(uploaded.name)} and use it",
            icon=":material/upload:",
            on_click=_send,
            args=(uploaded.name, uploaded.getvalue()),
            key="upload-send",
        )
    problem = st.session_state.pop(_UPLOAD_PROBLEM, None)
    if problem:
        st.error(parts.plain(problem), icon=":material/error:")


def _send(name: str, content: bytes) -> None:
    """Runs before the page is drawn, so that the new data set can be the chosen source."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "upload"
        path.write_bytes(content)
        try:
            dataset = session.client().upload_dataset(path, name)
        except PareApiError as error:
            st.session_state[_UPLOAD_PROBLEM] = error.detail
            return
    session.forget("datasets")
    st.session_state[draft.part_key("calibration", "source")] = f"dataset://{dataset.id}"
    st.session_state.pop("draft.upload", None)
    st.toast(f"{parts.plain(dataset.name)} is uploaded and chosen for calibration.", icon=":material/check:")


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


def _job_fields(*names: str, slots: Slots) -> None:
    _fields([draft.JOB[name] for name in names], "", slots, lambda name: draft.part_key("job", name))


def _show_at_fields(found: Mapping[str, str], slots: Slots) -> None:
    """Each sentence under the field that its path names, or under the nearest part around it."""
    for path, sentence in found.items():
        words = path.split(".")
        for length in range(len(words), 0, -1):
            slot = slots.get(".".join(words[:length]))
            if slot is not None:
                slot.markdown(f":red[:material/error: {parts.plain(sentence)}]")
                break


page()
