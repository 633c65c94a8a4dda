"""pare search submit, list, show, watch, cancel."""

from itertools import islice
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from paredown.client import render
from paredown.client.client import PareClient
from paredown.client.commands.options import Limit
from paredown.client.credentials import connect
from paredown.client.errors import ExitCode
from paredown.client.output import JsonOption, emit_json, say, stdout
from paredown.client.recipe_files import read_request
from paredown.client.watching import follow
from paredown.contracts.search import SearchDetails, SearchSpec, SearchState

SearchId = Annotated[UUID, typer.Argument(help="The search's id.", metavar="SEARCH")]


def register(app: typer.Typer) -> None:
    commands = typer.Typer(help="A budget instead of a recipe.", no_args_is_help=True, rich_markup_mode=None)
    for command in (submit, show, watch, cancel):
        commands.command(command.__name__)(command)
    commands.command("list")(list_searches)
    app.add_typer(commands, name="search")


def submit(
    file: Annotated[
        Path, typer.Argument(help="YAML file: `model`, a limit and, as you like, all else that a search takes.")
    ],
    model: Annotated[str | None, typer.Option(help="Address of the model, in place of the file's.")] = None,
    pool: Annotated[str | None, typer.Option(help="Worker pool, in place of the file's.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the search, in place of the file's.")] = None,
    max_size_ratio: Annotated[float | None, typer.Option(help="Limit on bytes, in place of the file's.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the search to its end.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key never makes a second search; for pipelines that may run twice.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Try recipes until the one is found that serves the goal best."""
    what = "`model` and `max_size_ratio` or `max_perplexity_increase`"
    spec = read_request(file, SearchSpec, what, model=model, pool=pool, name=name, max_size_ratio=max_size_ratio)
    with connect() as client:
        view = client.submit_search(spec, idempotency_key)
        if wait:
            say(f"Search {view.id}")
            view = _followed(client, view)
    _show(view, json_output)
    if wait:
        raise typer.Exit(_exit_code(view))


def list_searches(limit: Limit = 20, json_output: JsonOption = False) -> None:
    """List searches, newest first."""
    with connect() as client:
        views = list(islice(client.searches(limit=min(limit, 100)), limit))
    if json_output:
        emit_json(views)
    else:
        stdout().print(render.searches(views))


def show(search_id: SearchId, json_output: JsonOption = False) -> None:
    """Show one search: its trials, and what was chosen and why."""
    with connect() as client:
        _show(client.search(search_id), json_output)


def watch(search_id: SearchId, json_output: JsonOption = False) -> None:
    """Follow a search to its end. Exit code 3 when no recipe is within the limits."""
    with connect() as client:
        view = _followed(client, client.search(search_id))
    _show(view, json_output)
    raise typer.Exit(_exit_code(view))


def cancel(search_id: SearchId, json_output: JsonOption = False) -> None:
    """End a search and its jobs."""
    with connect() as client:
        _show(client.cancel_search(search_id), json_output)


def _followed(client: PareClient, view: SearchDetails) -> SearchDetails:
    return follow("search", view, client.search, lambda view: f"{view.state}, {view.trials} trials")


def _exit_code(view: SearchDetails) -> ExitCode:
    if view.state is SearchState.CANCELLED:
        return ExitCode.CANCELLED
    return ExitCode.REJECTED if view.chosen is None else ExitCode.OK


def _show(view: SearchDetails, json_output: bool) -> None:
    if json_output:
        emit_json(view)
    else:
        stdout().print(render.search(view))
