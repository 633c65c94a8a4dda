"""`pare run`: one job in the foreground, without database, queue or store. The same engine, report and manifest.

OUT_DIR.work/   order.json, engine.log, checkpoint/, output/ — until the run is complete; a rerun resumes there
OUT_DIR/        the artifact, renamed into place when it is complete
"""

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn
from uuid import UUID, uuid4

from pydantic import ValidationError

from paredown.client import render_artifacts
from paredown.client.errors import CommandFailed, ExitCode
from paredown.client.output import emit_json, say, stdout
from paredown.client.recipe_files import BadRecipeFile, explain
from paredown.client.watching import JobBoard
from paredown.contracts.artifact import MANIFEST_NAME, Manifest
from paredown.contracts.gate import unmeasurable
from paredown.contracts.job import CALIBRATION_SCHEME, JobSpec, JobState, Phase, Plan, Progress, RecipeFile
from paredown.contracts.recipes import recipe_hash, recipe_name
from paredown.contracts.report import Verdict
from paredown.contracts.tasks import TaskName
from paredown.contracts.work import EngineProgress, EngineStarted, WorkOrder
from paredown.core import planning, recipe_checks, sources
from paredown.core.errors import NotFound, PareError, SourceNotFound
from paredown.core.prices import Rate
from paredown.core.settings import Settings
from paredown.core.storage import LocalStore
from paredown.local.home import Home
from paredown.worker import publish
from paredown.worker.inputs import task_files
from paredown.worker.process import EngineProcess, EngineRun, run_engine
from paredown.worker.runtimes import vllm_python

TICK_SECONDS = 2.0
# The engine ends by itself when this process is killed or stopped for longer.
TICK_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class _Run:
    spec: JobSpec
    evaluate: bool
    threads: int | None
    statistics_dir: Path | None
    out_dir: Path
    settings: Settings
    home: Home

    @property
    def work_dir(self) -> Path:
        return self.out_dir.with_name(f"{self.out_dir.name}.work")


def run_here(
    model: str,
    file: RecipeFile,
    out_dir: Path,
    *,
    evaluate: bool,
    threads: int | None,
    statistics_dir: Path | None,
    as_json: bool,
) -> ExitCode:
    """Compress `model` into `out_dir`. Raises CommandFailed and BadRecipeFile."""
    spec = _spec(model, file)
    if not evaluate and spec.budget:
        for name, _ in unmeasurable(spec.budget, evaluated=False, speed=False, base_is_here=True):
            raise BadRecipeFile(f"budget.{name} needs an evaluation; leave out --no-evaluation.")
    if statistics_dir and spec.calibration.statistics != "dense":
        raise BadRecipeFile("--statistics shares what `calibration.statistics: dense` gathers; the recipe has none.")
    home = Home.open()
    shared = statistics_dir.absolute() if statistics_dir else None
    run = _Run(spec, evaluate, threads, shared, out_dir.absolute(), own_settings(home), home)
    try:
        manifest = _finished_before(run)
        if manifest:
            say(f"{out_dir} holds this very artifact already.")
        else:
            with _terminable(), _locked(run.work_dir):
                manifest = _make(run)
    except PareError as error:
        told = error.as_job_error()
        raise CommandFailed(told.detail, code=told.code, field=told.field) from error
    if as_json:
        emit_json(manifest)
    else:
        stdout().print(render_artifacts.report(manifest))
        stdout().print(str(out_dir), soft_wrap=True)
    gate = manifest.report.gate
    return ExitCode.REJECTED if gate and gate.verdict is Verdict.MISSED else ExitCode.OK


def _spec(model: str, file: RecipeFile) -> JobSpec:
    uri = model if "://" in model else Path(model).expanduser().absolute().as_uri()
    try:
        return file.job(uri)
    except ValidationError as error:
        raise BadRecipeFile("\n".join(["This cannot be run:", *explain(error)])) from error


def own_settings(home: Home) -> Settings:
    """The user's own machine and files: nothing on it is out of bounds."""
    try:
        settings = Settings(file_roots=[Path("/")])
    except ValidationError as error:
        mistakes = "; ".join(line.strip() for line in explain(error))
        raise CommandFailed(f"A PARE_* variable cannot be used: {mistakes}.", code="settings_invalid") from error
    return (
        settings if "cache_dir" in settings.model_fields_set else settings.model_copy(update={"cache_dir": home.cache})
    )


def _finished_before(run: _Run) -> Manifest | None:
    """The manifest when OUT_DIR is what this run would make. Raises CommandFailed when it is something else."""
    if not run.out_dir.exists() or (run.out_dir.is_dir() and not any(run.out_dir.iterdir())):
        return None
    refusal = CommandFailed(
        f"{run.out_dir} is not empty and not the result of this very run; choose another directory.",
        code="target_differs",
        exit_code=ExitCode.USAGE,
    )
    try:
        manifest = Manifest.model_validate_json((run.out_dir / MANIFEST_NAME).read_bytes(), extra="ignore")
    except (OSError, ValidationError):
        raise refusal from None
    spec = run.spec
    calibrates = any(stage.needs_calibration for stage in spec.recipe)
    report = manifest.report
    gate = publish.complete_report(report, cost=report.cost, budget=spec.budget).gate if run.evaluate else None
    same = (
        manifest.base.uri == spec.model
        and manifest.recipe_hash == recipe_hash(spec.recipe)
        and manifest.calibration == (spec.calibration if calibrates else None)
        and manifest.evaluation == (spec.evaluation if run.evaluate else None)
        and manifest.format == spec.resolved_format
        and manifest.dtype == spec.dtype
        and (not run.evaluate or manifest.report.gate == gate)
    )
    if not same:
        raise refusal
    return manifest


def _make(run: _Run) -> Manifest:
    started_at = time.monotonic()
    name, job_id = recipe_name(run.spec.recipe), uuid4()
    with JobBoard() as board:

        def show(phase: Phase, fraction: float, message: str = "") -> None:
            board.show(job_id, name, JobState.RUNNING, Progress(phase=phase, fraction=fraction, message=message))

        show(Phase.FETCH, 0)
        plan = _plan(run)
        model = sources.fetch_model(
            run.spec.model,
            run.settings,
            progress=lambda present, total: show(Phase.FETCH, 0.05 * present / max(total, 1)),
            cancelled=lambda: False,
        )
        with closing(model):
            order = _order(run, model, plan)
            engine = _engine(run, order, board, job_id, name)
            assert engine.result is not None, "nobody asks this engine to drain"
            show(Phase.UPLOAD, 0.99, "hashing")
            manifest = _publish(run, order, model, engine, time.monotonic() - started_at)
    return manifest


def _plan(run: _Run) -> Plan:
    """Refuses what cannot work before anything large is fetched."""
    spec, settings = run.spec, run.settings
    description = sources.describe(spec.model, settings)
    recipe_checks.check_recipe(description.shape, spec, evaluated=run.evaluate)
    plan = planning.make_plan(spec, description, settings)
    for warning in plan.warnings:
        say(f"Note: {warning}")
    return plan


def _order(run: _Run, model: sources.FetchedModel, plan: Plan) -> WorkOrder:
    spec = run.spec
    calibrates = any(stage.needs_calibration for stage in spec.recipe)
    return WorkOrder(
        model_dir=model.directory,
        gguf_file=model.gguf_file,
        recipe=spec.recipe,
        calibration=spec.calibration if calibrates else None,
        calibration_text=_text(run, spec.calibration.source, "calibration") if calibrates else None,
        evaluation=spec.evaluation if run.evaluate else None,
        evaluation_text=_text(run, spec.evaluation.source, "evaluation") if run.evaluate else None,
        tasks=task_files(spec.evaluation, lambda uri, task: _rows(run, uri, task)) if run.evaluate else (),
        domain_texts=_domain_texts(run) if run.evaluate else (),
        format=spec.resolved_format,
        dtype=spec.dtype,
        pausing=plan.pausing,
        work_dir=run.work_dir / "checkpoint",
        statistics_dir=run.statistics_dir,
        output_dir=run.work_dir / "output",
        vllm_python=vllm_python(spec.evaluation, run.settings),
        require_isolation=run.settings.engine_isolation == "required",
        tick_timeout_seconds=TICK_TIMEOUT_SECONDS,
        threads=run.threads or run.settings.engine_threads,
    )


def _domain_texts(run: _Run) -> tuple[Path, ...]:
    return tuple(
        _text(run, domain.source, "evaluation", f"evaluation.domains.{index}.source")
        for index, domain in enumerate(run.spec.evaluation.domains)
    )


def _text(run: _Run, uri: str, part: sources.Part, field: str | None = None) -> Path:
    if uri.startswith(CALIBRATION_SCHEME):
        raise SourceNotFound(
            f"{uri} lies in a service; `pare run` takes file:// and builtin:// texts.", field=field or f"{part}.source"
        )
    try:
        return sources.fetch_text(
            uri, run.settings, part=part, store=LocalStore(run.home.store), resolve_dataset=no_datasets
        )
    except PareError as error:
        error.field = error.field or field or f"{part}.source"
        raise


def _rows(run: _Run, uri: str, task: TaskName) -> Path:
    return sources.fetch_rows(
        uri, run.settings, task=task, store=LocalStore(run.home.store), resolve_dataset=no_datasets
    )


def no_datasets(dataset_id: UUID) -> NoReturn:
    """Raises NotFound: there is no service here that could have them."""
    raise NotFound(f"dataset://{dataset_id} lies in a service; `pare run` takes file:// and builtin:// texts.")


def _engine(run: _Run, order: WorkOrder, board: JobBoard, job_id: UUID, name: str) -> EngineRun:
    shutil.rmtree(order.output_dir, ignore_errors=True)
    order.work_dir.mkdir(parents=True, exist_ok=True)
    if order.statistics_dir:
        order.statistics_dir.mkdir(parents=True, exist_ok=True)
    ticked_at = 0.0

    def on_message(message: EngineStarted | EngineProgress) -> None:
        if isinstance(message, EngineProgress):
            inner = message.progress
            overall = inner.model_copy(update={"fraction": 0.05 + 0.93 * inner.fraction})
            board.show(job_id, name, JobState.RUNNING, overall)

    def attend(engine: EngineProcess) -> None:
        nonlocal ticked_at
        if time.monotonic() - ticked_at >= TICK_SECONDS:
            engine.tick()
            ticked_at = time.monotonic()

    return run_engine(order, run.work_dir, on_message=on_message, attend=attend)


def _publish(run: _Run, order: WorkOrder, model: sources.FetchedModel, engine: EngineRun, seconds: float) -> Manifest:
    assert engine.result is not None
    pool = run.settings.pools[run.settings.default_pool]
    cost = publish.job_cost(
        engine.result.report,
        rate=Rate(pool.price_per_hour, run.settings.currency),
        job_seconds=seconds,
    )
    manifest = publish.build_manifest(
        order.output_dir,
        artifact_id=uuid4(),
        job_id=None,
        base=model.record,
        order=order,
        started=engine.started,
        result=engine.result,
        report=publish.complete_report(engine.result.report, cost=cost, budget=run.spec.budget),
    )
    publish.write_manifest(manifest, order.output_dir)
    _take_over(order.output_dir)
    if run.out_dir.exists():
        run.out_dir.rmdir()  # empty, as was checked
    order.output_dir.rename(run.out_dir)
    shutil.rmtree(run.work_dir)
    return manifest


def _take_over(directory: Path) -> None:
    """Root's engine works as a user who owns nothing; what it made becomes root's."""
    if os.geteuid() != 0:
        return
    for path in (directory, *directory.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)


@contextmanager
def _locked(work_dir: Path) -> Iterator[None]:
    """Two runs into one directory would ruin each other's checkpoint."""
    path = work_dir / "lock"
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        reason = f"{work_dir.name}, beside the result, cannot be made in {work_dir.parent}: {error.strerror}."
        raise CommandFailed(reason, code="target_unwritable", exit_code=ExitCode.USAGE) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandFailed(f"Another run is at work in {work_dir}.", code="target_busy") from error
        try:
            yield
        finally:
            # Of a run that was refused, nothing is left to go on with.
            if work_dir.is_dir() and list(work_dir.iterdir()) == [path]:
                shutil.rmtree(work_dir)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds this process as Ctrl-C does, so that the engine ends with it."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
