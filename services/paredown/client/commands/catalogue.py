"""front, artifacts, artifact, download, verify, datasets."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import ValidationError

from paredown.client import comparison, render, render_artifacts, wording
from paredown.client.commands.options import ArtifactReference, Limit, MaxPerplexityIncrease, MaxSizeRatio, reference_of
from paredown.client.comparison import MOST_COMPARED
from paredown.client.credentials import connect
from paredown.client.errors import CommandFailed, ExitCode
from paredown.client.output import JsonOption, emit_json, say, stdout
from paredown.client.watching import DownloadBars
from paredown.contracts.alias import SIGN
from paredown.contracts.artifact import MANIFEST_NAME, CostAxis, Front, Manifest, verify_files
from paredown.contracts.report import TaskMetric, Verdict

datasets = typer.Typer(help="Calibration texts that were uploaded.", no_args_is_help=True, rich_markup_mode=None)


artifacts = typer.Typer(rich_markup_mode=None)
_CHART_ENDINGS = ("png", "svg")


def register(app: typer.Typer) -> None:
    for command in (front, artifact, download, verify):
        app.command()(command)
    app.add_typer(artifacts, name="artifacts")
    app.add_typer(datasets, name="datasets")


def front(
    model: Annotated[str, typer.Argument(help="The model's URI or fingerprint.")],
    cost_axis: Annotated[CostAxis, typer.Option(help="What accuracy is weighed against.")] = "size_bytes",
    protocol: Annotated[
        str | None, typer.Option(help="Hash of the evaluation protocol; by default the latest.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the chart to this file as well: .png, .svg, or .csv for its points.")
    ] = None,
    max_size_ratio: MaxSizeRatio = None,
    max_perplexity_increase: MaxPerplexityIncrease = None,
    json_output: JsonOption = False,
) -> None:
    """Show a model's artifacts, and mark those that no other beats on accuracy and cost together.

    The chart's budget lines are the options', or those that an artifact of the model was held to last.
    """
    if export:
        _check_export(export)
    given = {"size_ratio": max_size_ratio, "perplexity_increase": max_perplexity_increase}
    with connect() as client:
        view = client.front(model, cost_axis, protocol)
        families = {method.method: method.family.value for method in client.methods()} if export else {}
    if export:
        limits = view.limits | {figure: limit for figure, limit in given.items() if limit is not None}
        _export(export, view, families, limits)
    if json_output:
        emit_json(view)
    else:
        out = stdout()
        out.print(render_artifacts.front(view, out.width))


def _check_export(path: Path) -> None:
    """Before anything is asked of the service. Raises CommandFailed."""
    ending = path.suffix.removeprefix(".").lower()
    if ending not in (*_CHART_ENDINGS, "csv"):
        raise CommandFailed(
            f"{path} must end in .png, .svg or .csv.", code="export_unknown", exit_code=ExitCode.USAGE, field="export"
        )
    missing = [name for name in ("altair", "vl_convert") if find_spec(name) is None]
    if missing:
        raise CommandFailed(
            f"Drawing the chart needs {' and '.join(missing)}; install it with: pip install 'paredown[charts]'",
            code="extra_missing",
            exit_code=ExitCode.USAGE,
        )


def _export(path: Path, view: Front, families: Mapping[str, str], limits: Mapping[str, float]) -> None:
    """Raises CommandFailed where no artifact has a figure for the axis."""
    # Altair takes half a second to import, which no other command needs.
    from paredown.client import front_chart

    shown = front_chart.points(view, families)
    if not shown:
        raise CommandFailed(f"No artifact of this model has {view.cost_axis}, so there is no chart.", code="not_found")
    ending = path.suffix.removeprefix(".").lower()
    if ending == "csv":
        content = front_chart.csv_text(shown).encode()
    else:
        lines = front_chart.budget_lines(view, limits)
        chart = front_chart.front_chart(shown, view.cost_axis, lines, dark=False)
        content = front_chart.image(chart, "svg" if ending == "svg" else "png")
    path.write_bytes(content)
    say(f"Wrote {path}")


@artifacts.callback(invoke_without_command=True)
def list_artifacts(
    context: typer.Context,
    search: Annotated[str | None, typer.Option(help="Words in name, model or recipe.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    method: Annotated[str | None, typer.Option(help="Only recipes with this method.")] = None,
    verdict: Annotated[Verdict | None, typer.Option(help="Only with this verdict.")] = None,
    parent: Annotated[UUID | None, typer.Option(help="Only those that were made of this artifact.")] = None,
    limit: Limit = 20,
    json_output: JsonOption = False,
) -> None:
    """List artifacts, newest first; or with a command, show one, compare some, or override a verdict."""
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        found = client.artifacts(
            search=search, tag=tag, model=model, method=method, verdict=verdict, parent=parent, limit=min(limit, 100)
        )
        views = list(islice(found, limit))
    if json_output:
        emit_json(views)
    else:
        stdout().print(render_artifacts.artifacts(views))


@artifacts.command("show")
def artifact(reference: ArtifactReference, json_output: JsonOption = False) -> None:
    """Show one artifact and its report; with --json, its whole manifest."""
    with connect() as client:
        artifact_id = client.artifact_id(reference)
        manifest = client.manifest(artifact_id)
        view = client.artifact(artifact_id)
    if json_output:
        emit_json(manifest)
    else:
        stdout().print(render_artifacts.artifact(view, manifest.report))


@artifacts.command()
def override(
    reference: ArtifactReference,
    reason: Annotated[str, typer.Option(help="Why it may be used all the same; it stays with the artifact.")],
    json_output: JsonOption = False,
) -> None:
    """Override the verdict of an artifact that missed its budget. Needs the scope artifacts:override."""
    with connect() as client:
        artifact_id = client.artifact_id(reference)
        view = client.override_verdict(artifact_id, reason)
        manifest = client.manifest(artifact_id)
    if json_output:
        emit_json(view)
    else:
        stdout().print(render_artifacts.artifact(view, manifest.report))


@artifacts.command()
def compare(
    references: Annotated[
        list[str],
        typer.Argument(metavar="ARTIFACT ARTIFACT…", help="Two to six ids, or @NAMEs of aliases.", parser=reference_of),
    ],
    json_output: JsonOption = False,
) -> None:
    """Put two to six artifacts side by side: what was done differently, and what came of it."""
    with connect() as client:
        chosen = list(dict.fromkeys(map(client.artifact_id, dict.fromkeys(references))))
        if not 2 <= len(chosen) <= MOST_COMPARED:
            raise CommandFailed(
                f"Two to {MOST_COMPARED} different artifacts can be compared, not {len(chosen)}.",
                code="usage",
                exit_code=ExitCode.USAGE,
            )
        names = comparison.labels([client.artifact(one) for one in chosen])
        manifests = [client.manifest(one) for one in chosen]
    settings, figures = comparison.settings(manifests), comparison.figures(manifests)
    tasks = comparison.tasks(manifests)
    if json_output:
        lines = {"settings": [asdict(line) for line in settings], "figures": [asdict(line) for line in figures]}
        lines["tasks"] = [asdict(line) | {"values": [_json(value) for value in line.values]} for line in tasks]
        emit_json({"artifacts": [str(one) for one in chosen], **lines})
    else:
        stdout().print(render_artifacts.comparison(names, settings, figures, tasks))


def _json(metric: TaskMetric | None) -> dict[str, Any] | None:
    return metric.model_dump(mode="json") if metric else None


def download(
    reference: ArtifactReference,
    directory: Annotated[Path, typer.Argument(help="Where the files go; run again, it resumes.")],
    json_output: JsonOption = False,
) -> None:
    """Download an artifact, every file checked by its hash."""
    with connect() as client, DownloadBars("Fetching") as bars:
        artifact_id = client.artifact_id(reference)
        path = client.download(artifact_id, directory, bars.callback)
    if json_output:
        emit_json({"artifact_id": str(artifact_id), "directory": str(path)})
    else:
        stdout().print(str(path), soft_wrap=True)


def verify(
    target: Annotated[
        str, typer.Argument(metavar="DIR_OR_ARTIFACT", help="A downloaded directory, an id, or @NAME of an alias.")
    ],
    json_output: JsonOption = False,
) -> None:
    """Compare every byte with the manifest's hashes: of a directory, or of what the service has stored."""
    directory = Path(target)
    if directory.is_dir():
        manifest = _read_manifest(directory)
        problems = list(verify_files(manifest, directory))
        unlisted = _unlisted(manifest, directory)
    elif target.startswith(SIGN) or _uuid(target):
        with connect() as client, DownloadBars("Reading") as bars:
            artifact_id = client.artifact_id(target)
            manifest = client.manifest(artifact_id)
            problems, unlisted = client.verify(artifact_id, bars.callback), []
    else:
        raise CommandFailed(
            f"{target} is neither a directory nor an artifact's id or @NAME.",
            code="target_unknown",
            exit_code=ExitCode.USAGE,
        )
    if json_output:
        emit_json(
            {
                "artifact_id": str(manifest.artifact_id),
                "files": len(manifest.files),
                "intact": not problems,
                "problems": problems,
                "unlisted": unlisted,
            }
        )
    for path in unlisted:
        say(f"Note: {path} is not in the manifest.")
    for problem in problems:
        say(problem)
    if problems:
        raise typer.Exit(ExitCode.PROBLEM)
    if not json_output:
        total = sum(file.size_bytes for file in manifest.files)
        stdout().print(f"Intact: {len(manifest.files)} files, {wording.size(total)}, artifact {manifest.artifact_id}")


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes(), extra="ignore")
    except FileNotFoundError:
        raise CommandFailed(
            f"{directory} holds no {MANIFEST_NAME}: it is not a complete artifact.", code="manifest_missing"
        ) from None
    except ValidationError as error:
        raise CommandFailed(f"{path} is not a manifest of this release.", code="manifest_invalid") from error


def _unlisted(manifest: Manifest, directory: Path) -> list[str]:
    listed = {file.path for file in manifest.files} | {MANIFEST_NAME}
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in found if path not in listed)


@datasets.command()
def upload(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="UTF-8 text, or JSON lines with `text`.")],
    name: Annotated[str | None, typer.Option(help="By default the file's name.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Upload calibration text; use it in recipes as dataset://ID."""
    with connect() as client:
        view = client.upload_dataset(path, name)
    if json_output:
        emit_json(view)
    else:
        stdout().print(f"dataset://{view.id}")


@datasets.command("list")
def list_datasets(json_output: JsonOption = False) -> None:
    """List the project's texts."""
    with connect() as client:
        views = list(client.datasets())
    if json_output:
        emit_json(views)
    else:
        stdout().print(render.datasets(views))


@datasets.command()
def delete(dataset_id: Annotated[UUID, typer.Argument(metavar="DATASET")], json_output: JsonOption = False) -> None:
    """Delete a text; jobs that wait for it will fail."""
    with connect() as client:
        client.delete_dataset(dataset_id)
    if json_output:
        emit_json({"deleted": str(dataset_id)})
