"""New sweep: one model, many recipes, and beside them how many jobs that makes and what they need together."""

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from paredown.client.errors import PareApiError
from paredown.contracts.methods import MethodView
from paredown.contracts.sweep import MAX_RECIPES, SweepPlan, SweepSpec
from paredown.web import draft, job_fields, parts, problems, recipe_editor, sending, session, snippets, sweep_draft
from paredown.web import format as fmt

_PLAN_SECONDS = 300


def page() -> None:
    st.page_link(parts.SWEEPS, label="All sweeps", icon=":material/arrow_back:")
    parts.heading("New sweep", "One model, many recipes, measured alike. The plan says what they take together.")
    methods = {view.method: view for view in session.remembered("methods", 60, session.client().methods)}
    slots: job_fields.Slots = {}
    left, right = st.columns([1.65, 1], gap="large")
    with left:
        job_fields.model(slots)
        _recipes(methods, slots)
        st.subheader("Options", anchor=False)
        job_fields.budget(slots)
        job_fields.texts(slots)
        job_fields.output(slots, "format", "dtype", "tags")
        job_fields.queue(slots)
        _own_fields(slots)
        job_fields.clear_button()
    found: Mapping[str, str] = {}
    with right, st.container(key="plan-panel"), parts.problems_shown("plan"):
        found = _panel()
    job_fields.show_at_fields(found, slots)


def _recipes(methods: Mapping[str, MethodView], slots: job_fields.Slots) -> None:
    st.subheader("Recipes", anchor=False)
    st.radio(
        "Recipes",
        list(sweep_draft.MODES),
        format_func=sweep_draft.MODES.__getitem__,
        key=sweep_draft.MODE,
        horizontal=True,
        label_visibility="collapsed",
        persist_state="session",
    )
    if sweep_draft.mode() == "grid":
        _grid(methods)
    else:
        _list(methods, slots)
    slots["recipes"] = st.empty()


def _grid(methods: Mapping[str, MethodView]) -> None:
    st.caption("Each method below with each of its values; what prunes comes before what quantizes.")

    def title(name: str) -> str:
        return methods[name].title

    first, second, third = st.columns([1.6, 1, 1])
    with first:
        _several("Quantize with", sweep_draft.quantizers(methods), sweep_draft.QUANTIZERS, title)
    with second:
        _several("Bits", sweep_draft.choices(methods, "bits"), sweep_draft.BITS)
    with third:
        _several("Group sizes", sweep_draft.choices(methods, "group_size"), sweep_draft.GROUP_SIZES)
    first, second = st.columns([1.6, 2])
    with first:
        _several("Prune before with", sweep_draft.pruners(methods), sweep_draft.PRUNERS, title)
    with second:
        _several("Sparsities", list(sweep_draft.SPARSITY_CHOICES), sweep_draft.SPARSITIES, lambda share: f"{share:.0%}")
    st.toggle(
        "Also without pruning",
        value=True,
        key=sweep_draft.UNPRUNED,
        help="Each quantized recipe without a stage before it as well, to see what pruning costs.",
        disabled=not st.session_state.get(sweep_draft.PRUNERS),
        persist_state="session",
    )


def _several(label: str, options: list[Any], key: str, title: Callable[[Any], str] = str) -> None:
    known = [choice for choice in sweep_draft.DEFAULTS[key] if choice in options]
    st.multiselect(
        label, options, default=known, format_func=title, key=key, placeholder="None", persist_state="session"
    )


def _list(methods: Mapping[str, MethodView], slots: job_fields.Slots) -> None:
    st.caption("Write a recipe, put it on the list, change it, and put it there again.")
    recipe_editor.show(methods, slots)
    recipe = draft.recipe(methods)
    st.button(
        "Put this recipe on the list",
        icon=":material/playlist_add:",
        key="sweep.put",
        on_click=sweep_draft.put_on_list,
        args=(recipe,),
        disabled=not recipe or len(sweep_draft.listed()) >= MAX_RECIPES,
    )
    for index, kept in enumerate(sweep_draft.listed()):
        with st.container(horizontal=True, vertical_alignment="center", key=f"sweep-recipe-{index}"):
            st.markdown(f"**{index}.** {parts.plain(_said(kept, methods))}", width="stretch")
            st.button(
                "Remove",
                key=f"sweep.take.{index}",
                icon=":material/delete:",
                type="tertiary",
                on_click=sweep_draft.take_off_list,
                args=(index,),
            )
        slots[f"recipes.{index}"] = st.empty()


def _said(recipe: sweep_draft.Recipe, methods: Mapping[str, MethodView]) -> str:
    """Each stage with the settings that differ from their default: `wanda (sparsity 0.3), gptq (bits 3)`."""
    stages = []
    for stage in recipe:
        view = methods.get(stage["method"])
        defaults = {name: part.get("default") for name, part in view.settings["properties"].items()} if view else {}
        changed = [
            f"{name.replace('_', ' ')} {value}"
            for name, value in stage.items()
            if name != "method" and value != defaults.get(name) and value != []
        ]
        stages.append(stage["method"] + (f" ({', '.join(changed)})" if changed else ""))
    return ", ".join(stages)


def _own_fields(slots: job_fields.Slots) -> None:
    st.text_input(
        "Name of the sweep", max_chars=120, key=sweep_draft.NAME, placeholder="Optional", persist_state="session"
    )
    slots["name"] = st.empty()
    st.toggle(
        "Take artifacts that are there already",
        value=True,
        key=sweep_draft.REUSE,
        help=SweepSpec.model_fields["reuse"].description,
        persist_state="session",
    )


def _panel() -> Mapping[str, str]:
    """Returns the sentences about fields, by path."""
    st.subheader("Plan", anchor=False)
    spec, found = sweep_draft.checked()
    if spec is None:
        return sending.not_ready(found, "Submit sweep")
    client = session.client()
    with st.spinner(f"Planning {len(spec.recipes)} recipes…"):
        planned = session.remembered(
            f"plan.{draft.spec_hash(spec)}",
            _PLAN_SECONDS,
            lambda: sending.answer_or_refusal(lambda: client.plan_sweep(spec)),
        )
    if isinstance(planned, PareApiError):
        found = problems.of_refusal(planned)
        sending.attention(found)
    elif isinstance(planned, SweepPlan):
        _figures(planned)
    refused = sending.button(
        spec,
        "sweep",
        parts.SWEEP,
        lambda key: client.submit_sweep(spec, key).id,
        allowed=isinstance(planned, SweepPlan),
    )
    sending.as_text(snippets.sweep_texts(spec, session.public_api_url(), draft.idempotency_key(spec)), "sweep.yaml")
    return {**found, **refused}


def _figures(plan: SweepPlan) -> None:
    with st.container(border=True, key="plan"):
        first, second = st.columns(2)
        there = f"{plan.reused} of {plan.recipes} there already" if plan.reused else f"{plan.recipes} recipes"
        first.metric("Jobs", str(plan.jobs), there, delta_color="off", delta_arrow="off")
        second.metric(
            "Worker time",
            fmt.duration(plan.seconds),
            fmt.money(plan.cost, plan.currency),
            delta_color="off",
            delta_arrow="off",
        )
        parts.facts([("Memory, at most", fmt.size(plan.memory_bytes)), ("Artifacts", fmt.size(plan.output_bytes))])
        st.caption("Worker time is that of all jobs together; several workers share it.")
        for warning in plan.warnings:
            st.warning(parts.plain(warning), icon=":material/warning:")
        with st.expander("Each recipe", icon=":material/table_rows:"):
            rows = [
                [
                    parts.escaped(member.label),
                    "there already" if member.reused else fmt.duration(member.seconds),
                    fmt.percent(member.size_ratio),
                ]
                for member in plan.members
            ]
            parts.table(["Recipe", "Time", "Size"], rows)


page()
