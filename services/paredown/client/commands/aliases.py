"""aliases: list, set, show, remove."""

from typing import Annotated
from uuid import UUID

import typer

from paredown.client import render_artifacts
from paredown.client.credentials import connect
from paredown.client.output import JsonOption, emit_json, stdout

AliasName = Annotated[
    str, typer.Argument(help="Such as smollm2-prod; other commands take it as @NAME.", metavar="NAME")
]

aliases = typer.Typer(
    help="Names that point at artifacts and can be moved; other commands take them as @NAME.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    app.add_typer(aliases, name="aliases")


@aliases.command("list")
def list_aliases(json_output: JsonOption = False) -> None:
    """List the project's aliases, newest first."""
    with connect() as client:
        views = list(client.aliases())
    if json_output:
        emit_json(views)
    else:
        stdout().print(render_artifacts.aliases(views))


@aliases.command("set")
def set_alias(
    name: AliasName,
    artifact_id: Annotated[UUID, typer.Argument(help="The artifact that it shall point at.", metavar="ARTIFACT")],
    protected: Annotated[
        bool | None,
        typer.Option(
            "--protected/--unprotected",
            help="Whether it takes only artifacts that met their budget or were overridden; left out, as it is.",
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why; it stays with the move.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Make an alias, or move it. A protected one needs the scope artifacts:promote."""
    with connect() as client:
        alias = client.set_alias(name, artifact_id, protected=protected, reason=reason)
    if json_output:
        emit_json(alias)
    else:
        stdout().print(render_artifacts.alias(alias))


@aliases.command("show")
def show_alias(name: AliasName, json_output: JsonOption = False) -> None:
    """Show where an alias points, and where it pointed before."""
    with connect() as client:
        alias = client.alias(name)
    if json_output:
        emit_json(alias)
    else:
        stdout().print(render_artifacts.alias(alias))


@aliases.command("remove")
def remove_alias(name: AliasName, json_output: JsonOption = False) -> None:
    """Remove an alias; the artifact and the alias's history stay."""
    with connect() as client:
        client.remove_alias(name)
    if json_output:
        emit_json({"removed": name})
