"""pare calibrations list, show, download, delete, compare."""

from itertools import islice, product
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from pydantic import ValidationError

from paredown.client import render, render_artifacts
from paredown.client.commands.options import Limit, ModelUri, RecipePath
from paredown.client.commands.sweeps import exit_code, followed
from paredown.client.credentials import connect
from paredown.client.errors import CommandFailed, ExitCode
from paredown.client.output import JsonOption, emit_json, say, stdout
from paredown.client.recipe_files import explain, read_recipe_file
from paredown.contracts.job import CALIBRATION_SCHEME, Calibration, RecipeFile
from paredown.contracts.sweep import MAX_CALIBRATIONS, SweepSpec

CalibrationId = Annotated[UUID, typer.Argument(help="The calibration's id.", metavar="CALIBRATION")]

# What says how tokens are drawn from a text; those of a calibration:// are drawn.
_DRAWING = {"source", "samples", "sequence_length", "seed", "exclude_held_out"}


def register(app: typer.Typer) -> None:
    commands = typer.Typer(
        help="The tokens that jobs calibrated on, and how much figures hang on them.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (show, download, delete, compare):
        commands.command(command.__name__)(command)
    commands.command("list")(list_calibrations)
    app.add_typer(commands, name="calibrations")


def list_calibrations(limit: Limit = 20, json_output: JsonOption = False) -> None:
    """List calibrations, newest first."""
    with connect() as client:
        views = list(islice(client.calibrations(limit=min(limit, 100)), limit))
    if json_output:
        emit_json(views)
    else:
        stdout().print(render_artifacts.calibrations(views))


def show(calibration_id: CalibrationId, json_output: JsonOption = False) -> None:
    """Show where a calibration's tokens are from; use it in recipes as calibration://ID."""
    with connect() as client:
        view = client.calibration(calibration_id)
    if json_output:
        emit_json(view)
    else:
        stdout().print(render_artifacts.calibration(view))


def download(
    calibration_id: CalibrationId,
    file: Annotated[Path, typer.Argument(help="Where to write them: NumPy's .npy, int32, samples × sequence_length.")],
    json_output: JsonOption = False,
) -> None:
    """Bring the tokens to a file, checked by their hash."""
    with connect() as client:
        view = client.download_calibration(calibration_id, file)
    if json_output:
        emit_json(view)
    else:
        say(f"Wrote {file}")


def delete(calibration_id: CalibrationId, json_output: JsonOption = False) -> None:
    """Delete a calibration; what was made with it stays. Refused while a job that has not ended takes it."""
    with connect() as client:
        client.delete_calibration(calibration_id)
    if json_output:
        emit_json({"deleted": str(calibration_id)})


def compare(
    model: ModelUri,
    recipe: RecipePath,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Address of a text, or a calibration's id; once for each that is compared."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Which sequences are drawn; once for each.")] = None,
    pool: Annotated[str | None, typer.Option(help="Worker pool.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep that runs them.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Run one recipe over several calibrations, and show how far its figures lie apart.

    Each source with each seed, from the recipe file's calibration otherwise: two to eight in all. It is a sweep, and
    followed to its end. Exit code 1 when a job failed, 3 when every artifact missed the budget.
    """
    spec = _spec(model, read_recipe_file(recipe), source or [], seed or [], pool, name)
    with connect() as client:
        view = client.submit_sweep(spec)
        say(f"Sweep {view.id}")
        view = followed(client, view)
    if json_output:
        emit_json(view)
    else:
        stdout().print(render.sweep(view))
    raise typer.Exit(exit_code(view))


def _spec(
    model: str, file: RecipeFile, sources: list[str], seeds: list[int], pool: str | None, name: str | None
) -> SweepSpec:
    """Raises CommandFailed."""
    try:
        each = product(sources or (None,), seeds or (None,))
        given = tuple(_calibration(file.calibration, source, seed) for source, seed in each)
        if not 2 <= len(given) <= MAX_CALIBRATIONS:
            raise CommandFailed(
                f"This makes {len(given)} calibration{'' if len(given) == 1 else 's'}; give two to {MAX_CALIBRATIONS} "
                "with --source and --seed, such as --seed 1 --seed 2 --seed 3.",
                code="usage",
                exit_code=ExitCode.USAGE,
            )
        shared = {field: getattr(file, field) for field in ("evaluation", "budget", "format", "dtype")}
        return SweepSpec(model=model, recipes=(file.recipe,), calibrations=given, pool=pool, name=name, **shared)
    except ValidationError as error:
        mistakes = "; ".join(line.strip() for line in explain(error))
        raise CommandFailed(f"This cannot be compared: {mistakes}", code="usage", exit_code=ExitCode.USAGE) from error


def _calibration(shared: Calibration, source: str | None, seed: int | None) -> Calibration:
    """The file's, but for what is given. A bare id is that of a calibration."""
    changes = {} if seed is None else {"seed": seed}
    if source is None:
        return Calibration.model_validate({**shared.model_dump(), **changes})
    if "://" not in source:
        source = f"{CALIBRATION_SCHEME}{source}"
    kept = shared.model_dump(exclude=_DRAWING if source.startswith(CALIBRATION_SCHEME) else {"source"})
    return Calibration.model_validate({**kept, "source": source, **changes})
