"""Texts of languages and subjects whose perplexity a job measures one by one."""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from paredown.web import parts

CHOSEN = "draft.domains"


def ask(sources: Mapping[str, str], slots: dict[str, DeltaGenerator]) -> None:
    """`sources` are the project's data sets, by address."""
    st.multiselect(
        "Languages and subjects",
        list(dict.fromkeys([*sources, *_chosen()])),
        format_func=partial(parts.source_name, sources),
        key=CHOSEN,
        accept_new_options=True,
        placeholder="None, or held-out texts whose perplexity is measured one by one",
        help="Data sets of the project, or addresses (hf://, https://, s3://, file://), each measured with as many and "
        "as long sequences as above. A text that suffers much more than the others is named in the report.",
        persist_state="session",
    )
    slots["evaluation.domains"] = st.empty()
    for index, address in enumerate(_chosen()):
        st.text_input(
            f"Name of {parts.plain(sources.get(address, address))}",
            value=_short(sources.get(address, address)),
            max_chars=64,
            key=_key(address),
            help="What the report calls it: the language or the subject.",
            persist_state="session",
        )
        slots[f"evaluation.domains.{index}"] = st.empty()


def content() -> list[dict[str, Any]]:
    """The texts as the API takes them."""
    return [{"name": st.session_state.get(_key(address), ""), "source": address} for address in _chosen()]


def _chosen() -> list[str]:
    return cast("list[str]", st.session_state.get(CHOSEN) or [])


def _short(address: str) -> str:
    return address.rstrip("/").rpartition("/")[2][:64]


def _key(address: str) -> str:
    return f"draft.domain.{address}"
