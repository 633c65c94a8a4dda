"""keys: create, list, revoke."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import typer

from paredown.client import render
from paredown.client.credentials import connect
from paredown.client.output import JsonOption, emit_json, say, stdout
from paredown.contracts.access import Scope

keys = typer.Typer(help="API keys of this key's project.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; repeat for more.")],
    expires_at: Annotated[
        datetime | None, typer.Option(help="When it stops working (local, unless it has a zone).")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Make a key; its secret is shown this once."""
    with connect() as client:
        made = client.create_key(name, scope, expires_at.astimezone() if expires_at else None)
    if json_output:
        emit_json(made)
    else:
        say("Keep it now; it is not shown again:")
        stdout().print(made.secret, soft_wrap=True)


@keys.command("list")
def list_keys(json_output: JsonOption = False) -> None:
    """List the keys, without their secrets."""
    with connect() as client:
        views = client.keys()
    if json_output:
        emit_json(views)
    else:
        stdout().print(render.keys(views))


@keys.command()
def revoke(key_id: Annotated[UUID, typer.Argument(metavar="KEY")], json_output: JsonOption = False) -> None:
    """Stop a key from working, at once and for good."""
    with connect() as client:
        client.revoke_key(key_id)
    if json_output:
        emit_json({"revoked": str(key_id)})
