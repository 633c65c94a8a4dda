"""Uploading a text or a task's rows from a form: it becomes a data set of the project, and the source of a field."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from paredown.client.errors import PareApiError
from paredown.web import parts, session


def ask(label: str, types: Sequence[str], help_: str, source: str, *, name: str = "upload") -> None:
    """`source` is the key of the field that takes the data set's address; `name` tells apart several on one page."""
    uploaded = st.file_uploader(label, type=list(types), help=help_, key=_key(name))
    if uploaded is not None:
        st.button(
            f"Upload {parts.plain(uploaded.name)} and use it",
            icon=":material/upload:",
            on_click=_send,
            args=(uploaded.name, uploaded.getvalue(), source, name),
            key=f"{name}-send",
        )
    problem = st.session_state.pop(f"{_key(name)}.problem", None)
    if problem:
        st.error(parts.plain(problem), icon=":material/error:")


def _send(file: str, content: bytes, source: str, name: str) -> None:
    """Runs before the page is drawn, so that the new data set can be the chosen source."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "upload"
        path.write_bytes(content)
        try:
            dataset = session.client().upload_dataset(path, file)
        except PareApiError as error:
            st.session_state[f"{_key(name)}.problem"] = error.detail
            return
    session.forget("datasets")
    st.session_state[source] = f"dataset://{dataset.id}"
    st.session_state.pop(_key(name), None)
    st.toast(f"{parts.plain(dataset.name)} is uploaded and chosen.", icon=":material/check:")


def _key(name: str) -> str:
    return f"draft.{name}"
