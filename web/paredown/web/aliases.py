"""Aliases on an artifact's page: which point at it, where they pointed before, and a form to set one."""

import streamlit as st
from pydantic import TypeAdapter, ValidationError

from paredown.client.errors import PareApiError
from paredown.contracts.access import Scope
from paredown.contracts.alias import SIGN, AliasDetails, AliasMove, AliasName
from paredown.contracts.artifact import ArtifactView
from paredown.web import format as fmt
from paredown.web import parts, session

_NAMED = 20
_PROTECTION = {None: "Leave it as it is", True: "Protected", False: "Not protected"}


def show(view: ArtifactView) -> None:
    """Draw all of it. Raises PareApiError."""
    if view.project != session.me().project:
        st.info(f"Aliases of this artifact belong to the project {parts.plain(view.project)}.", icon=":material/info:")
        return
    st.caption(
        "An alias is a name that points at an artifact and can be moved: `pare download @name` takes it, and so does "
        "`artifact://@name` as the model of a job. A protected alias takes only artifacts that met their budget or "
        "were overridden."
    )
    if not view.aliases:
        st.caption("None points at this artifact.")
    for name in view.aliases:
        _alias(session.client().alias(name))
    _form(view)


def _alias(alias: AliasDetails) -> None:
    with st.container(border=True, key=f"alias-{alias.name}"):
        with st.container(horizontal=True, vertical_alignment="center", key=f"alias-head-{alias.name}"):
            protected = parts.badge("protected", "active") if alias.protected else ""
            since = f'<span class="pare-dim">since {fmt.moment(alias.moved_at)}</span>'
            st.html(f"{parts.alias_badges([alias.name])}{protected} {since}", width="stretch")
            question = f"remove {alias.name}"
            st.button(
                "Remove",
                icon=":material/link_off:",
                type="tertiary",
                key=f"alias.remove.{alias.name}",
                on_click=parts.ask,
                args=(question,),
                disabled=alias.protected and not _may_promote(),
            )
        with st.expander("Where it pointed", icon=":material/history:"):
            parts.table(["When", "To", "Protected", "Key", "Reason"], [_moved(move) for move in alias.moves])
    if parts.asked() == question:
        _confirm_removal(alias)


def _moved(move: AliasMove) -> list[str]:
    return [
        fmt.moment(move.at),
        parts.mono(str(move.to_id)[:8]) if move.to_id else "removed",
        "yes" if move.protected else "no",
        parts.escaped(move.key_name),
        parts.escaped(move.reason or ""),
    ]


@st.dialog("Remove this alias?", on_dismiss=parts.answered)
def _confirm_removal(alias: AliasDetails) -> None:
    st.write(f"Whoever asks for **{parts.plain(SIGN + alias.name)}** finds nothing from then on. The artifact stays.")
    with st.container(horizontal=True):
        if st.button("Remove it", type="primary", key="confirm-remove"):
            with parts.problems_shown("remove-alias"):
                session.client().remove_alias(alias.name)
                parts.answered()
                st.rerun()
        if st.button("Keep it", key="dismiss-remove", on_click=parts.answered):
            st.rerun()


def _form(view: ArtifactView) -> None:
    st.subheader("Point an alias here", anchor=False)
    newest = session.client().aliases_page(limit=_NAMED).items
    if newest:
        st.caption("There are " + ", ".join(parts.plain(SIGN + alias.name) for alias in newest) + ".")
    with st.form("set-alias"):
        name = st.text_input(
            "Alias",
            max_chars=120,
            placeholder="One that is there, which then moves, or a new name such as smollm2-prod",
            help="Letters, digits and - . _ /; every part begins with a letter or digit.",
            key=f"alias.name.{view.id}",
        ).strip()
        protected = st.radio(
            "Protection",
            list(_PROTECTION),
            format_func=_PROTECTION.__getitem__,
            horizontal=True,
            help="A new alias is not protected unless you say so. Protection needs the scope artifacts:promote.",
            key=f"alias.protected.{view.id}",
        )
        reason = st.text_input(
            "Reason", max_chars=2000, placeholder="Optional; it stays with the move", key=f"alias.reason.{view.id}"
        )
        pressed = st.form_submit_button("Point it here", type="primary", icon=":material/add_link:")
    if not pressed:
        return
    if not name:
        st.error("An alias needs a name.", icon=":material/error:")
        return
    if not _is_name(name):
        st.error(
            "A name is made of letters, digits and - . _ / without spaces; each part begins with a letter or digit.",
            icon=":material/error:",
        )
        return
    try:
        session.client().set_alias(name, view.id, protected=protected, reason=reason.strip() or None)
    except PareApiError as error:
        parts.show_problem(error, "set-alias")
        return
    st.toast(f"{parts.plain(SIGN + name)} points here.", icon=":material/check:")
    st.rerun()


def _is_name(text: str) -> bool:
    try:
        TypeAdapter(AliasName).validate_python(text)
    except ValidationError:
        return False
    return True


def _may_promote() -> bool:
    return Scope.ARTIFACTS_PROMOTE in session.me().scopes
