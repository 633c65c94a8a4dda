"""A method's JSON Schema as form fields. What the API says of a setting is what a person sees of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

Kind = Literal["choice", "switch", "integer", "number", "text", "list", "several"]
EMPTY = "empty"


@dataclass(frozen=True)
class Field:
    """One setting: how to ask for it, and what it may be."""

    name: str
    kind: Kind
    label: str
    help: str
    default: Any
    optional: bool = False
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    example: str | None = None


def fields(schema: Mapping[str, Any]) -> list[Field]:
    """The settings a person may change: constants and lists that stay empty are left out, and versions of defaults,
    because a form shows every value."""
    definitions = schema.get("$defs", {})
    found = []
    for name, described in schema["properties"].items():
        field = _field(name, described, definitions)
        if field and name != "version":
            found.append(field)
    return found


def _field(name: str, described: Mapping[str, Any], definitions: Mapping[str, Any]) -> Field | None:
    variants = [_resolved(variant, definitions) for variant in described.get("anyOf", [described])]
    kinds = [variant for variant in variants if variant.get("type") != "null"]
    if len(kinds) != 1:
        raise ValueError(f"{name}: a form field needs one type, not {len(kinds)}")
    kind = kinds[0]
    if "const" in kind or kind.get("maxItems") == 0:
        return None
    low, high = kind.get("minimum", kind.get("exclusiveMinimum")), kind.get("maximum", kind.get("exclusiveMaximum"))
    examples = kind.get("examples") or described.get("examples") or ()
    return Field(
        name=name,
        kind=_kind(name, kind),
        label=name.replace("_", " ").capitalize(),
        help=described.get("description", ""),
        default=described.get("default"),
        optional=len(kinds) < len(variants),
        choices=tuple(kind.get("enum", kind.get("items", {}).get("enum", ()))),
        minimum=low,
        maximum=high,
        example=str(examples[0]) if examples else None,
    )


def _resolved(described: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = described.get("$ref")
    return definitions[reference.removeprefix("#/$defs/")] if reference else described


def _kind(name: str, described: Mapping[str, Any]) -> Kind:
    if "enum" in described:
        return "choice"
    if "enum" in described.get("items", {}):
        return "several"
    kinds: dict[str, Kind] = {
        "boolean": "switch",
        "integer": "integer",
        "number": "number",
        "string": "text",
        "array": "list",
    }
    try:
        return kinds[described["type"]]
    except KeyError:
        raise ValueError(f"{name}: no form field for {dict(described)!r}") from None


def ask(field: Field, key: str, *, label: str | None = None, disabled: bool = False) -> DeltaGenerator:
    """Draw the field's widget under `key`, and below it a slot for what is wrong with its value.

    The value outlives page switches; `value_of` reads it.
    """
    label = label or field.label
    match field.kind:
        case "choice":
            options = [None, *field.choices] if field.optional else list(field.choices)
            st.selectbox(
                label,
                options,
                index=options.index(field.default),
                format_func=lambda choice: EMPTY if choice is None else str(choice),
                key=key,
                help=field.help,
                disabled=disabled,
                persist_state="session",
            )
        case "switch":
            st.toggle(
                label, value=bool(field.default), key=key, help=field.help, disabled=disabled, persist_state="session"
            )
        case "integer":
            st.number_input(
                label,
                value=field.default,
                min_value=None if field.minimum is None else int(field.minimum),
                max_value=None if field.maximum is None else int(field.maximum),
                step=1,
                key=key,
                help=field.help,
                placeholder=EMPTY,
                disabled=disabled,
                persist_state="session",
            )
        case "number":
            st.number_input(
                label,
                value=None if field.default is None else float(field.default),
                min_value=None if field.minimum is None else float(field.minimum),
                max_value=None if field.maximum is None else float(field.maximum),
                step=_step(field),
                format="%g",
                key=key,
                help=field.help,
                placeholder=EMPTY,
                disabled=disabled,
                persist_state="session",
            )
        case "text":
            st.text_input(
                label,
                value=field.default or "",
                key=key,
                help=field.help,
                placeholder=f"{EMPTY}, or for example {field.example}" if field.example else EMPTY,
                disabled=disabled,
                persist_state="session",
            )
        case "several":
            st.multiselect(
                label,
                list(field.choices),
                default=list(field.default or ()),
                key=key,
                help=field.help,
                disabled=disabled,
                persist_state="session",
            )
        case "list":
            st.text_input(
                label,
                value=" ".join(map(str, field.default or ())),
                key=key,
                help=f"{field.help} Separate several with spaces or commas.".strip(),
                placeholder=EMPTY,
                disabled=disabled,
                persist_state="session",
            )
    return st.empty()


def value_of(field: Field, key: str) -> Any:
    """What the person chose, as the API takes it."""
    raw = st.session_state.get(key, field.default)
    if field.kind == "text":
        return (raw or "").strip() or (None if field.optional else "")
    if field.kind == "list" and isinstance(raw, str):
        return split_words(raw)
    if field.kind == "several":
        # In the order of the choices, whatever the order of the clicks.
        chosen = [choice for choice in field.choices if choice in (raw or ())]
        return chosen or (None if field.optional else [])
    return raw


def split_words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]


def _step(field: Field) -> float:
    default = abs(float(field.default or 0))
    if field.maximum is not None and field.minimum is not None and field.maximum - field.minimum > 10:
        return 1.0
    return 0.005 if 0 < default <= 0.02 else 0.05
