"""Where a command's words go: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

# Tables of a pipeline's log are not cut to the 80 columns that rich assumes there.
_PLAIN_WIDTH = 160


def stdout() -> Console:
    return _console(stderr=False)


def stderr() -> Console:
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # No markup: names, tags and errors come from users and may contain brackets.
    return Console(
        stderr=stderr,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
        width=None if stream.isatty() else _PLAIN_WIDTH,
    )


def say(*sentences: object) -> None:
    """For people; never part of a command's result."""
    stderr().print(*sentences, soft_wrap=True)


def emit_json(value: BaseModel | Iterable[BaseModel] | dict[str, Any]) -> None:
    """A result for machines: one JSON document. Lists are {"items": […]}, as in the API."""
    if isinstance(value, BaseModel):
        text = value.model_dump_json(indent=2)
    elif isinstance(value, dict):
        text = json.dumps(value, indent=2)
    else:
        text = json.dumps({"items": [item.model_dump(mode="json") for item in value]}, indent=2)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def emit_json_line(value: BaseModel) -> None:
    """One of a stream of results."""
    sys.stdout.write(value.model_dump_json() + "\n")
    sys.stdout.flush()


def _note_json(context: typer.Context, chosen: bool) -> bool:
    if chosen:
        # So that a failure, too, is told in JSON.
        context.find_root().meta["pare.json"] = True
    return chosen


JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on standard output.", callback=_note_json, is_eager=True),
]
