"""pare sweep plan, submit, list, show, watch, cancel."""

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
from paredown.contracts.job import JobState
from paredown.contracts.sweep import SweepDetails, SweepSpec, SweepState

SweepId = Annotated[UUID, typer.Argument(help="The sweep's id.", metavar="SWEEP")]

SweepFile = Annotated[
    Path,
    typer.Argument(help="YAML file: `model`, `recipes` or `grid` and, as you like, all else that a sweep takes."),
]
_WHAT = "`model` and `recipes` or `grid`, with what they share"


def register(app: typer.Typer) -> None:
    commands = typer.Typer(
        help="Many recipes over one model, followed and cancelled as one thing.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (plan, submit, show, watch, cancel):
        commands.command(command.__name__)(command)
    commands.command("list")(list_sweeps)
    app.add_typer(commands, name="sweep")


def plan(
    file: SweepFile,
    model: Annotated[str | None, typer.Option(help="Address of the model, in place of the file's.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Show what a sweep would need; nothing is queued."""
    spec = read_request(file, SweepSpec, _WHAT, model=model)
    with connect() as client:
        made = client.plan_sweep(spec)
    if json_output:
        emit_json(made)
    else:
        stdout().print(render.sweep_plan(made))


def submit(
    file: SweepFile,
    model: Annotated[str | None, typer.Option(help="Address of the model, in place of the file's.")] = None,
    pool: Annotated[str | None, typer.Option(help="Worker pool, in place of the file's.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep, in place of the file's.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the sweep to its end.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key never makes a second sweep; for pipelines that may run twice.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Queue one job for each recipe, all or none."""
    spec = read_request(file, SweepSpec, _WHAT, model=model, pool=pool, name=name)
    with connect() as client:
        view = client.submit_sweep(spec, idempotency_key)
        if wait:
            say(f"Sweep {view.id}")
            view = followed(client, view)
    _show(view, json_output)
    if wait:
        raise typer.Exit(exit_code(view))


def list_sweeps(limit: Limit = 20, json_output: JsonOption = False) -> None:
    """List sweeps, newest first."""
    with connect() as client:
        views = list(islice(client.sweeps(limit=min(limit, 100)), limit))
    if json_output:
        emit_json(views)
    else:
        stdout().print(render.sweeps(views))


def show(sweep_id: SweepId, json_output: JsonOption = False) -> None:
    """Show one sweep: its recipes, what was measured, and which are on the front."""
    with connect() as client:
        _show(client.sweep(sweep_id), json_output)


def watch(sweep_id: SweepId, json_output: JsonOption = False) -> None:
    """Follow a sweep to its end. Exit code 1 when a job failed, 3 when every artifact missed the budget."""
    with connect() as client:
        view = followed(client, client.sweep(sweep_id))
    _show(view, json_output)
    raise typer.Exit(exit_code(view))


def cancel(sweep_id: SweepId, json_output: JsonOption = False) -> None:
    """Cancel all of its jobs that have not ended."""
    with connect() as client:
        _show(client.cancel_sweep(sweep_id), json_output)


def followed(client: PareClient, view: SweepDetails) -> SweepDetails:
    """The sweep once it has ended."""
    return follow("sweep", view, client.sweep, render.sweep_counts)


def exit_code(view: SweepDetails) -> ExitCode:
    if view.state is SweepState.CANCELLED:
        return ExitCode.CANCELLED
    if view.counts.get(JobState.FAILED):
        return ExitCode.PROBLEM
    met = view.counts.get(JobState.SUCCEEDED)
    return ExitCode.OK if met else ExitCode.REJECTED


def _show(view: SweepDetails, json_output: bool) -> None:
    if json_output:
        emit_json(view)
    else:
        stdout().print(render.sweep(view))
