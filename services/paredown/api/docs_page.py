"""The page at /docs: the OpenAPI document for people to read, without script and without anything from elsewhere."""

import json
from html import escape
from typing import Any

Operation = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #0a7d5a; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: 0 .9rem; }
summary { cursor: pointer; padding: .5rem 0; }
summary b { display: inline-block; min-width: 4.2rem; color: var(--accent); }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: var(--soft); border-radius: 4px; }
code { padding: .1rem .25rem; } pre { padding: .7rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid var(--line); padding: .3rem .6rem .3rem 0;
vertical-align: top; } .quiet { opacity: .7; }
"""


def render(document: dict[str, Any]) -> str:
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    sections = "".join(
        f"<h2>{escape(tag['name'].capitalize())}</h2><p>{escape(tag['description'])}</p>"
        + "".join(_operation(*item) for item in operations if tag["name"] in item[2]["tags"])
        for tag in document["tags"]
    )
    info = document["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{escape(info['title'])} <span class=quiet>{escape(info['version'])}</span></h1>"
        f"<p>{_text(info['description'])}</p>"
        f'<p>For programs: <a href="/openapi.json">openapi.json</a></p>{sections}{_schemas(document)}</html>'
    )


def _operation(method: str, path: str, operation: Operation) -> str:
    scopes = [scope for way in operation.get("security", ()) for scope in way.get("ApiKey", ())]
    scope = f" <span class=quiet>· scope {escape(', '.join(scopes))}</span>" if scopes else ""
    return (
        f'<details id="{escape(operation["operationId"])}"><summary><b>{method}</b> <code>{escape(path)}</code> '
        f"{escape(operation['summary'])}{scope}</summary>"
        f"<p>{_text(operation.get('description', ''))}</p>"
        f"{_parameters(operation)}{_body(operation)}{_responses(operation)}</details>"
    )


def _parameters(operation: Operation) -> str:
    rows = [
        (
            f"<code>{escape(parameter['name'])}</code>",
            f"{parameter['in']}{', needed' if parameter.get('required') else ''}",
            _text(parameter.get("description", "")),
        )
        for parameter in operation.get("parameters", ())
    ]
    return _table("Parameters", rows)


def _body(operation: Operation) -> str:
    shown = ""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        shown += f"<h4>Body <span class=quiet>{escape(media_type)}{_schema_name(content)}</span></h4>"
        for example in content.get("examples", {}).values():
            text = json.dumps(example["value"], indent=2)
            shown += f"<p>{escape(example['summary'])}</p><pre>{escape(text)}</pre>"
    return shown


def _responses(operation: Operation) -> str:
    rows = []
    for status, response in operation["responses"].items():
        types = ", ".join(
            f"{escape(kind)}{_schema_name(content)}" for kind, content in response.get("content", {}).items()
        )
        rows.append((f"<code>{escape(status)}</code>", _text(response["description"]), f"<i>{types}</i>"))
    return _table("Answers", rows)


def _schema_name(content: dict[str, Any]) -> str:
    schema = content.get("schema", {})
    return f", {_type(schema)}" if "$ref" in schema else ""


def _schemas(document: dict[str, Any]) -> str:
    shown = "<h2>Schemas</h2>"
    for name, schema in sorted(document["components"]["schemas"].items()):
        rows = [
            (f"<code>{escape(field)}</code>", _type(part), _text(part.get("description", "")))
            for field, part in schema.get("properties", {}).items()
        ]
        values = ", ".join(map(str, schema.get("enum", ())))
        shown += (
            f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
            f"<p>{_text(schema.get('description', ''))} {escape(values)}</p>{_table('Fields', rows)}</details>"
        )
    return shown


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words; links where it has a name."""
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    for either in ("anyOf", "oneOf"):
        if either in schema:
            return " or ".join(_type(option) for option in schema[either])
    if "const" in schema or "enum" in schema:
        return escape(" | ".join(map(str, schema.get("enum", [schema.get("const")]))))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    return escape(str(schema.get("format") or schema.get("type", "any")))


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h4>{title}</h4><table>{body}</table>"


def _text(markdown: str) -> str:
    """Paragraphs and `code`, which is all that our descriptions use."""
    pieces = escape(markdown).split("`")
    coded = "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
    return coded.replace("\n\n", "</p><p>")
