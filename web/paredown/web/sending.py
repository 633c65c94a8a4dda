"""The end of every form: what is wrong, the button, what was sent, and the same as text."""

from collections.abc import Callable, Mapping, Sequence

import streamlit as st

from paredown.client.errors import PareApiError
from paredown.contracts.job import Contract
from paredown.web import draft, parts, problems, session


def attention(found: Mapping[str, str]) -> None:
    """Every sentence, also those whose field lies in a closed part of the form."""
    lines = [
        f"**{parts.plain(_spoken(path))}:** {parts.plain(sentence)}" if path else parts.plain(sentence)
        for path, sentence in found.items()
    ]
    st.warning("  \n".join(lines), icon=":material/error:")


def not_ready(found: Mapping[str, str], label: str) -> Mapping[str, str]:
    """What is to be done before anything can be planned. Returns the sentences about fields."""
    begun = bool(st.session_state.get(draft.MODEL))
    if begun or "model" not in found:
        attention(found)
    else:
        # The first thing to do is no mistake yet.
        st.info(parts.plain(found["model"]), icon=":material/arrow_back:")
    st.button(label, type="primary", disabled=True, width="stretch", key="submit-disabled")
    return found if begun else {}


def answer_or_refusal(call: Callable[[], Contract]) -> Contract | PareApiError:
    """A refusal is an answer too, and worth remembering; a service that is away or broken is not."""
    try:
        return call()
    except PareApiError as error:
        if not 400 <= error.status < 500 or error.status in (401, 429):
            raise
        return error


def button(spec: Contract, noun: str, page: str, send: Callable[[str], object], *, allowed: bool) -> Mapping[str, str]:
    """Send the form once, by `send(idempotency key)`, which returns the id of what was made; then lead there.

    Returns the sentences about fields of a refusal.
    """
    sent = draft.sent(spec)
    if sent:
        with st.container(border=True, key="submitted"):
            st.markdown(f":green[:material/check_circle:] **Submitted.** This form has become a {noun}.")
            st.page_link(
                page, label=f"**Watch the {noun}**", icon=":material/arrow_forward:", query_params={"id": sent}
            )
            st.button("Submit it once more", on_click=draft.submit_again, type="tertiary", key="submit-again")
        return {}
    pressed = st.button(
        f"Submit {noun}",
        type="primary",
        disabled=not allowed,
        width="stretch",
        icon=":material/rocket_launch:",
        key="submit",
    )
    if pressed:
        try:
            made = send(draft.idempotency_key(spec))
        except PareApiError as error:
            parts.show_problem(error, "submit")
            return problems.of_refusal(error) if error.field else {}
        draft.remember_sent(spec, str(made))
        session.forget("models")
        st.rerun()
    return {}


def as_text(kinds: Sequence[tuple[str, str, str]], file: str) -> None:
    """(tab, language, text) of the same request, the file's first, then the command and curl."""
    with st.expander("The same as a file or command", icon=":material/terminal:"):
        for tab, (name, language, text) in zip(st.tabs([name for name, _, _ in kinds]), kinds, strict=True):
            with tab:
                if name == "pare":
                    st.caption(f"With the file saved as {file}:")
                parts.copyable(text, language)


def _spoken(path: str) -> str:
    """`recipe.0.group_size` → `Stage 1, group size`; recipes of a sweep are counted from 0, as its members are."""
    words = path.split(".")
    if words[0] == "recipes" and len(words) > 1 and words[1].isdigit():
        stage = [f"stage {int(words[2]) + 1}"] if len(words) > 2 and words[2].isdigit() else []
        words = [f"Recipe {words[1]}", *stage, *words[2 + len(stage) :]]
    if words[0] == "recipe" and len(words) > 1 and words[1].isdigit():
        words = [f"Stage {int(words[1]) + 1}", *words[2:]]
    spoken = ", ".join(word.replace("_", " ") for word in words)
    return spoken[:1].upper() + spoken[1:]
