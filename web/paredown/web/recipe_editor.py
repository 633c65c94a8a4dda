"""The recipe of a form: its stages, each with the fields that the method's own schema draws."""

from collections.abc import Mapping

import streamlit as st

from paredown.contracts.methods import MethodView
from paredown.web import draft, form, job_fields, parts
from paredown.web.job_fields import Slots


def calibrates(methods: Mapping[str, MethodView]) -> bool:
    """Whether calibration changes anything; an empty recipe may yet get a stage that needs it."""
    used = [methods[stage["method"]] for stage in draft.stages() if stage["method"] in methods]
    return not used or any(view.needs_calibration for view in used)


def show(methods: Mapping[str, MethodView], slots: Slots) -> None:
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
        job_fields.ask_all(
            form.fields(view.settings), f"recipe.{index}", slots, lambda name: draft.stage_key(stage, name)
        )
        slots[f"recipe.{index}"] = st.empty()


def _needs(view: MethodView) -> str:
    if view.needs_gpu:
        return " Needs calibration and a GPU." if view.needs_calibration else " Needs a GPU."
    return " Needs calibration." if view.needs_calibration else " Needs no calibration."
