"""submit, plan, jobs, job, watch, cancel, retry, methods."""

from datetime import datetime
from itertools import islice
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import ValidationError

from paredown.client import render
from paredown.client.commands.options import (
    BudgetPreset,
    Limit,
    MaxPerplexityIncrease,
    MaxSizeRatio,
    ModelUri,
    RecipePath,
    load_recipe,
)
from paredown.client.credentials import connect
from paredown.client.output import JsonOption, emit_json, emit_json_line, say, stdout
from paredown.client.recipe_files import BadRecipeFile, explain
from paredown.client.watching import exit_code, watch
from paredown.contracts.job import JobSpec, JobState, JobView, RecipeFile

JobId = Annotated[UUID, typer.Argument(help="The job's id.", metavar="JOB")]
Name = Annotated[str | None, typer.Option(help="Name of the artifact in the catalogue.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Tag of the artifact; repeat for more.")]
PoolOption = Annotated[str | None, typer.Option(help="Worker pool; by default the plan chooses.")]


def register(app: typer.Typer) -> None:
    for command in (submit, plan, outcomes, job, watch_job, cancel, retry, methods):
        app.command(command.__name__.removesuffix("_job"))(command)
    app.command("jobs")(list_jobs)


def submit(
    model: ModelUri,
    recipe: RecipePath,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job; the exit code tells how it ended.")] = False,
    budget: BudgetPreset = None,
    max_size_ratio: MaxSizeRatio = None,
    max_perplexity_increase: MaxPerplexityIncrease = None,
    name: Name = None,
    tag: Tags = None,
    pool: PoolOption = None,
    priority: Annotated[int, typer.Option(help="−100 to 100; higher runs first.")] = 0,
    run_at: Annotated[datetime | None, typer.Option(help="Not before this time (local, unless it has a zone).")] = None,
    deadline_at: Annotated[datetime | None, typer.Option(help="Failed when not finished by then.")] = None,
    canary: Annotated[
        bool, typer.Option("--canary", help="Rehearse the largest block and a save on the worker before all else.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key never makes a second job; for pipelines that may run twice.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Queue a compression job."""
    spec = _spec(
        load_recipe(recipe, budget, max_size_ratio, max_perplexity_increase),
        model,
        name=name,
        tags=tuple(tag or ()),
        pool=pool,
        priority=priority,
        run_at=_zoned(run_at),
        deadline_at=_zoned(deadline_at),
        canary=canary,
    )
    with connect() as client:
        view = client.submit(spec, idempotency_key)
        if wait:
            say(f"Job {view.id}")
            view = _watched(lambda: watch(client, view), view.id)
    if json_output:
        emit_json(view)
    else:
        stdout().print(render.job(view))
        if not wait:
            say(f"Follow it with: pare watch {view.id}")
    raise typer.Exit(exit_code(view))


def plan(
    model: ModelUri,
    recipe: RecipePath,
    budget: BudgetPreset = None,
    max_size_ratio: MaxSizeRatio = None,
    max_perplexity_increase: MaxPerplexityIncrease = None,
    pool: PoolOption = None,
    json_output: JsonOption = False,
) -> None:
    """Say what a job would need: memory, disk, time, bytes and cost. Nothing is queued."""
    spec = _spec(load_recipe(recipe, budget, max_size_ratio, max_perplexity_increase), model, pool=pool)
    with connect() as client:
        view = client.plan(spec)
    if json_output:
        emit_json(view)
    else:
        stdout().print(render.plan(view))


def outcomes(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Jobs, the newest first.")] = 20,
    json_output: JsonOption = False,
) -> None:
    """Show what the latest jobs took beside what was planned for them."""
    with connect() as client:
        found = client.plan_outcomes(limit)
    if json_output:
        emit_json(found)
    else:
        stdout().print(render.plan_outcomes(found))


def list_jobs(
    state: Annotated[list[JobState] | None, typer.Option(help="Only in this state; repeat for more.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    pool: Annotated[str | None, typer.Option(help="Only of this pool.")] = None,
    method: Annotated[str | None, typer.Option(help="Only recipes with this method.")] = None,
    limit: Limit = 20,
    json_output: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    with connect() as client:
        found = client.jobs(states=state or (), model=model, pool=pool, method=method, limit=min(limit, 100))
        views = list(islice(found, limit))
    if json_output:
        emit_json(views)
    else:
        stdout().print(render.jobs(views))


def job(job_id: JobId, json_output: JsonOption = False) -> None:
    """Show one job."""
    with connect() as client:
        _show(client.job(job_id), json_output)


def watch_job(job_id: JobId, json_output: JsonOption = False) -> None:
    """Follow a job to its end; with --json, its events as JSON lines. The exit code tells how it ended."""
    with connect() as client:
        view = client.job(job_id)
        final = _watched(lambda: watch(client, view, emit_json_line if json_output else None), job_id)
    if not json_output:
        stdout().print(render.job(final))
    raise typer.Exit(exit_code(final))


def cancel(job_id: JobId, json_output: JsonOption = False) -> None:
    """Cancel a queued or running job."""
    with connect() as client:
        _show(client.cancel(job_id), json_output)


def retry(job_id: JobId, json_output: JsonOption = False) -> None:
    """Queue a failed job again; its history is kept."""
    with connect() as client:
        _show(client.retry(job_id), json_output)


def methods(json_output: JsonOption = False) -> None:
    """List the compression methods, with --json also the schema of their settings."""
    with connect() as client:
        views = client.methods()
    if json_output:
        emit_json(views)
    else:
        stdout().print(render.methods(views))


def _show(view: JobView, json_output: bool) -> None:
    if json_output:
        emit_json(view)
    else:
        stdout().print(render.job(view))


def _watched(follow: Any, job_id: UUID) -> JobView:
    try:
        view: JobView = follow()
    except KeyboardInterrupt:
        say(f"The job goes on. Follow it with: pare watch {job_id}; stop it with: pare cancel {job_id}")
        raise
    return view


def _spec(file: RecipeFile, model: str, **more: Any) -> JobSpec:
    if "://" not in model:
        raise BadRecipeFile(
            f"{model} is not an address. A service takes hf://org/name@revision, s3://bucket/prefix, https://…, "
            "pkg://…, artifact://ID or file:///directory below its allowed roots; `pare run` takes a path."
        )
    try:
        return file.job(model, **more)
    except ValidationError as error:
        raise BadRecipeFile("\n".join(["The job cannot be submitted:", *explain(error)])) from error


def _zoned(moment: datetime | None) -> datetime | None:
    return moment.astimezone() if moment else None
