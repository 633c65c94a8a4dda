"""The sweep that a form is writing: a grid of methods and settings, or recipes that were put on a list one by one."""

from collections.abc import Mapping
from copy import deepcopy
from itertools import product
from typing import Any, cast

import streamlit as st

from paredown.contracts.methods import MethodView
from paredown.contracts.recipes import Family
from paredown.contracts.sweep import SweepSpec
from paredown.web import draft, form

MODES = {"grid": "Every combination", "list": "A list of recipes"}
MODE, NAME, REUSE = "draft.sweep.mode", "draft.sweep.name", "draft.sweep.reuse"
QUANTIZERS, BITS, GROUP_SIZES = "draft.sweep.quantizers", "draft.sweep.bits", "draft.sweep.group_sizes"
PRUNERS, SPARSITIES, UNPRUNED = "draft.sweep.pruners", "draft.sweep.sparsities", "draft.sweep.unpruned"
SPARSITY_CHOICES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# What a form without any touch says.
DEFAULTS: dict[str, list[Any]] = {
    QUANTIZERS: ["rtn", "gptq"],
    BITS: [3, 4],
    GROUP_SIZES: [64],
    PRUNERS: [],
    SPARSITIES: [0.5],
}
_LIST = "draft.sweep.list"

Recipe = list[dict[str, Any]]


def mode() -> str:
    return cast("str", st.session_state.get(MODE) or "grid")


def quantizers(methods: Mapping[str, MethodView]) -> list[str]:
    """Those that have both bits and a group size to vary."""
    return [name for name, view in methods.items() if _varies(view, Family.QUANTIZATION, "bits", "group_size")]


def pruners(methods: Mapping[str, MethodView]) -> list[str]:
    return [name for name, view in methods.items() if _varies(view, Family.PRUNING, "sparsity")]


def choices(methods: Mapping[str, MethodView], setting: str) -> list[Any]:
    """Values that a setting may take in any of the quantizers."""
    settings = [field for name in quantizers(methods) for field in form.fields(methods[name].settings)]
    return sorted({choice for field in settings if field.name == setting for choice in field.choices})


def listed() -> list[Recipe]:
    return cast("list[Recipe]", st.session_state.setdefault(_LIST, []))


def put_on_list(recipe: Recipe) -> None:
    st.session_state[_LIST] = [*listed(), deepcopy(recipe)]


def take_off_list(index: int) -> None:
    st.session_state[_LIST] = [recipe for place, recipe in enumerate(listed()) if place != index]


def recipes() -> list[Recipe]:
    return grid() if mode() == "grid" else listed()


def grid() -> list[Recipe]:
    """Nothing or one stage that prunes, then nothing or one that quantizes, in every combination."""
    pruned = [
        [{"method": name, "sparsity": share}] for name, share in product(_chosen(PRUNERS), sorted(_chosen(SPARSITIES)))
    ]
    first: list[Recipe] = pruned if pruned and not st.session_state.get(UNPRUNED, True) else [[], *pruned]
    last: list[Recipe] = [
        [{"method": name, "bits": bits, "group_size": size}]
        for name, bits, size in product(_chosen(QUANTIZERS), sorted(_chosen(BITS)), sorted(_chosen(GROUP_SIZES)))
    ] or [[]]
    return [[*before, *after] for before, after in product(first, last) if before or after]


def checked() -> tuple[SweepSpec | None, dict[str, str]]:
    """The sweep, or what is wrong at which path."""
    shared = draft.shared()
    if not shared["model"]:
        return None, {"model": "Choose a model, or write where yours lies."}
    wanted = recipes()
    if not wanted:
        missing = "Choose at least one method, with a value for each of its settings."
        return None, {"recipes": missing if mode() == "grid" else "Put at least one recipe on the list."}
    content = shared | {
        "recipes": wanted,
        "budget": draft.budget_terms(),
        "name": (st.session_state.get(NAME) or "").strip() or None,
        "reuse": bool(st.session_state.get(REUSE, True)),
    }
    return draft.validated(SweepSpec, content)


def _chosen(key: str) -> list[Any]:
    return list(st.session_state.get(key, DEFAULTS[key]))


def _varies(view: MethodView, family: Family, *settings: str) -> bool:
    return view.family is family and set(settings) <= set(view.settings["properties"])
