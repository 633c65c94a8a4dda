"""One epoch's work on one job, phase by phase: fetch, check, compress and evaluate (the engine), upload.

Each phase looks about ten times a second at the lease, which raises where the job must be let go.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy.orm import Session

from paredown.contracts.artifact import Manifest
from paredown.contracts.families import ModelShape, shape_from_config
from paredown.contracts.job import Phase, Plan, Progress, content_hash
from paredown.contracts.recipes import Family
from paredown.contracts.recipes.pruning import Pruner
from paredown.contracts.report import Evaluation, Report
from paredown.contracts.tasks import TaskName
from paredown.contracts.work import (
    CALIBRATION_FILE,
    EngineProgress,
    EngineResult,
    EngineStarted,
    Origin,
    TaskFiles,
    WorkOrder,
)
from paredown.core import calibrations, canary, catalogue, history, jobs, planning, prices, recipe_checks, sources
from paredown.core.calibrations import NewCalibration, StoredCalibration
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database, database_now
from paredown.core.errors import CanaryRefused, DatabaseUnavailable, DiskFull, EngineCrashed, LeaseLost, PareError
from paredown.core.estimates import statistics_bytes
from paredown.core.history import Took
from paredown.core.jobs import Claim
from paredown.core.settings import Pool, Settings
from paredown.core.sources import FetchedModel, ModelDescription, SourceFile
from paredown.core.sources.cache import Cache, SharedStatistics
from paredown.core.storage import ObjectStore
from paredown.worker import checkpoints, lookups, publish
from paredown.worker.blocking import T, attended, retried
from paredown.worker.inputs import task_files
from paredown.worker.lease import CancelRequested, DrainRequested, Lease
from paredown.worker.process import ENGINE_COMMAND, EngineProcess, EngineRun, run_engine
from paredown.worker.runtimes import vllm_python
from paredown.worker.workspace import Workspace

log = structlog.get_logger(__name__)

# Shares of the whole job's progress before and after the engine, which counts from the one to the other.
FETCH_SHARE = 0.02
UPLOAD_SHARE = 0.03


@dataclass(frozen=True)
class Worker:
    """What a supervisor works with. `name` is what the job's history shows."""

    database: Database
    store: ObjectStore
    settings: Settings
    name: str
    draining: Callable[[], bool]
    command: Sequence[str] = ENGINE_COMMAND


@dataclass(frozen=True)
class _Inputs:
    model: FetchedModel
    calibration_text: Path | None
    # Of a calibration:// in the text's place, and the hash of the tokenizer that they are of.
    calibration_tokens: tuple[Path, str] | None
    evaluation_text: Path
    tasks: tuple[TaskFiles, ...]
    domain_texts: tuple[Path, ...]


class Attempt:
    """Makes one artifact. Its methods raise PareError, LeaseLost, CancelRequested or DrainRequested."""

    def __init__(self, worker: Worker, claim: Claim, lease: Lease, *, claimed_at: float) -> None:
        self._worker = worker
        self._settings = worker.settings
        self._claim = claim
        self._spec = claim.job.spec
        self._lease = lease
        self._claimed_at = claimed_at
        self._pool = worker.settings.pools.get(claim.job.pool, Pool())
        self.workspace = Workspace(worker.settings, claim.job.id, claim.epoch)
        self._uploader = checkpoints.CheckpointUploader(
            worker.store, claim.job.id, self.workspace, worker.settings.checkpoint_upload_seconds
        )
        self._calibration_key: str | None = None

    @property
    def prefix(self) -> str:
        return publish.artifact_prefix(self._claim.job.id, self._claim.epoch)

    def make(self) -> NewArtifact:
        """From the model's address to files in the store; the job is not finished yet."""
        self.workspace.create()
        inputs = self._fetch()
        with closing(inputs.model), ExitStack() as held:
            fetched_at = time.monotonic()
            plan, order = self._check(inputs)
            rehearsing = time.monotonic()
            if self._spec.canary and not (self._claim.job.canary and self._claim.job.canary.passed):
                self._rehearse(plan, order, shape_from_config(inputs.model.config))
            # What the job itself takes is what its plan is compared with.
            fetched_at += time.monotonic() - rehearsing
            if statistics := self._statistics(inputs, order):
                held.enter_context(closing(statistics))
                order = order.model_copy(update={"statistics_dir": statistics.directory})
            run = self._run(order, self.workspace.directory, self._uploader)
        result = run.result
        assert result is not None
        self._save_baseline(inputs.model.record.fingerprint, result.report.base)
        artifact = self._upload(inputs.model, order, run)
        return replace(artifact, took=Took(plan, time.monotonic() - fetched_at))

    def keep_checkpoint(self) -> None:
        """Leave the checkpoint to whoever claims the job next, on this machine or another."""
        if not self.workspace.checkpoint.is_dir():
            return
        try:
            self._uploader.upload_now(self._lease.check_held)
        except LeaseLost:
            raise
        except (PareError, OSError) as error:
            # It is still on this machine's disk.
            log.warning("checkpoint_not_uploaded", error=str(error))

    def discard_upload(self) -> None:
        """Remove what was uploaded, once the job has ended without it. What cannot be removed now is swept later."""
        try:
            self._worker.store.delete_prefix(f"{self.prefix}/")
            if self._calibration_key is not None:
                self._worker.store.delete(self._calibration_key)
        except PareError as error:
            log.warning("upload_not_removed", error=error.detail)

    def discard_job(self) -> None:
        """The job has ended: nothing of it is needed here, nor its checkpoints."""
        self.workspace.remove_job()
        try:
            self._worker.store.delete_prefix(checkpoints.job_prefix(self._claim.job.id))
        except PareError as error:
            log.warning("checkpoints_not_removed", error=error.detail)

    def _fetch(self) -> _Inputs:
        spec, settings = self._spec, self._settings
        self._progress(Phase.FETCH, 0, message=f"fetching {spec.model}")

        def on_bytes(present: int, total: int) -> None:
            self._progress(Phase.FETCH, FETCH_SHARE * present / max(total, 1), message=_of(present, total))

        def model(step: Callable[[], None]) -> FetchedModel:
            def cancelled() -> bool:
                step()
                return False

            shelf = sources.Shelf(self._find_artifact, self._worker.store)
            return sources.fetch_model(spec.model, settings, shelf, progress=on_bytes, cancelled=cancelled)

        fetched = attended(model, self._lease.check)
        if not fetched.lineage:
            self._transaction(
                lambda session: catalogue.record_model(session, self._claim.project_id, fetched.record, fetched.config)
            )
        calibration = tokens = None
        if any(stage.needs_calibration for stage in spec.recipe):
            if spec.calibration.stored_id is None:
                calibration = self._text(spec.calibration.source, "calibration")
            else:
                tokens = self._calibration_tokens()
        evaluation = self._text(spec.evaluation.source, "evaluation")
        tasks = task_files(spec.evaluation, self._rows)
        domains = tuple(
            self._text(domain.source, "evaluation", f"evaluation.domains.{index}.source")
            for index, domain in enumerate(spec.evaluation.domains)
        )
        return _Inputs(fetched, calibration, tokens, evaluation, tasks, domains)

    def _find_artifact(self, artifact_id: UUID) -> tuple[Manifest, str]:
        return self._transaction(lambda session: catalogue.stored(session, self._claim.project_id, artifact_id))

    def _calibration_tokens(self) -> tuple[Path, str]:
        def stored(calibration_id: UUID) -> StoredCalibration:
            return self._transaction(
                lambda session: calibrations.stored(session, self._claim.project_id, calibration_id)
            )

        def tokens(_step: Callable[[], None]) -> tuple[Path, str]:
            return sources.fetch_calibration(
                self._spec.calibration, self._settings, store=self._worker.store, resolve=stored
            )

        return attended(tokens, self._lease.check)

    def _dataset(self, dataset_id: UUID) -> str:
        return self._transaction(lambda session: lookups.dataset_key(session, self._claim.project_id, dataset_id))

    def _rows(self, uri: str, task: TaskName) -> Path:
        def rows(_step: Callable[[], None]) -> Path:
            return sources.fetch_rows(
                uri, self._settings, task=task, store=self._worker.store, resolve_dataset=self._dataset
            )

        return attended(rows, self._lease.check)

    def _text(self, uri: str, part: sources.Part, field: str | None = None) -> Path:
        def text(_step: Callable[[], None]) -> Path:
            return sources.fetch_text(
                uri, self._settings, part=part, store=self._worker.store, resolve_dataset=self._dataset
            )

        try:
            return attended(text, self._lease.check)
        except PareError as error:
            error.field = error.field or field or f"{part}.source"
            raise

    def _check(self, inputs: _Inputs) -> tuple[Plan, WorkOrder]:
        """What only the fetched files can tell: does the recipe fit, and does the work fit this machine."""
        spec, settings, model = self._spec, self._settings, inputs.model
        self._progress(Phase.CHECK, FETCH_SHARE)
        plan = self._plan(model)
        self._check_disk(plan)
        resumed = attended(
            lambda step: checkpoints.restore(self._worker.store, self._claim.job.id, self.workspace, step),
            self._lease.check,
        )
        if resumed is not None:
            log.info("checkpoint_restored", from_epoch=resumed)
        tokens, tokenizer_sha256 = inputs.calibration_tokens or (None, None)
        return plan, WorkOrder(
            model_dir=model.directory,
            gguf_file=model.gguf_file,
            origin=self._origin(model),
            recipe=spec.recipe,
            calibration=spec.calibration if inputs.calibration_text or tokens else None,
            calibration_text=inputs.calibration_text,
            calibration_tokens=tokens,
            calibration_tokenizer_sha256=tokenizer_sha256,
            evaluation=spec.evaluation,
            evaluation_text=inputs.evaluation_text,
            tasks=inputs.tasks,
            domain_texts=inputs.domain_texts,
            format=spec.resolved_format,
            dtype=spec.dtype,
            device=self._pool.device,
            pausing=plan.pausing,
            work_dir=self.workspace.checkpoint,
            output_dir=self.workspace.output,
            vllm_python=vllm_python(spec.evaluation, settings),
            baseline=self._baseline(model.record.fingerprint),
            require_isolation=settings.engine_isolation == "required",
            tick_timeout_seconds=settings.tick_timeout_seconds,
            threads=settings.engine_threads,
        )

    def _rehearse(self, plan: Plan, order: WorkOrder, shape: ModelShape) -> None:
        """Run the job's largest block, and a save, before hours are spent. Raises CanaryRefused, and whatever ends the
        real run: a store that takes nothing, an engine that fails."""
        self._progress(Phase.CHECK, FETCH_SHARE, message="canary: trying the object store")
        store_seconds = attended(self._try_store, self._lease.check)
        self._progress(Phase.CHECK, FETCH_SHARE, message="canary: running the largest block")
        directory = self.workspace.directory / "canary"
        places = {"work_dir": directory / "work", "output_dir": directory / "output", "baseline": None}
        try:
            run = self._run(order.model_copy(update={"rehearse": True, **places}), directory, None)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        assert run.rehearsal is not None
        free = shutil.disk_usage(self.workspace.directory).free
        planned, now = self._transaction(lambda session: (self._as_planned(session, plan), database_now(session)))
        found = canary.judge(
            run.rehearsal,
            spec=self._spec,
            shape=shape,
            bare=plan,
            planned=planned,
            pool=self._pool,
            threads=self._settings.engine_threads,
            store_seconds=store_seconds,
            room=canary.Room(free, self._claim.job.deadline_at),
            now=now,
        )
        job_id, epoch = self._claim.job.id, self._claim.epoch
        self._transaction(lambda session: jobs.rehearsed(session, job_id, epoch, found))
        log.info("canary", **found.model_dump(mode="json"))
        if found.refusal is not None:
            raise CanaryRefused(found.refusal)

    def _try_store(self, _step: Callable[[], None]) -> float:
        """Seconds to put a small object where the artifact will lie, and to delete it. Raises StorageUnavailable."""
        started = time.monotonic()
        key = f"{self.prefix}/canary"
        self._worker.store.put_bytes(key, b"canary")
        self._worker.store.delete(key)
        return time.monotonic() - started

    def _as_planned(self, session: Session, plan: Plan) -> Plan:
        """What a person was told: with what finished jobs taught."""
        return history.corrected(plan, history.ratios(session, plan, self._spec.recipe))

    def _statistics(self, inputs: _Inputs, order: WorkOrder) -> SharedStatistics | None:
        """Where this machine's jobs on the model share dense statistics; None where each gathers its own.

        The key holds what a worker knows of all that decides them; the engine keeps apart what else does, such as the
        versions of its libraries.
        """
        calibration, text = order.calibration, order.calibration_text or order.calibration_tokens
        if calibration is None or text is None or calibration.statistics != "dense":
            return None
        if any(stage.family in (Family.DEPTH, Family.WIDTH, Family.TRAINING) for stage in order.recipe):
            return None  # gathered of the model that this stage leaves, which no other recipe has
        model = inputs.model
        ancestors = [str(ancestor.artifact_id) for ancestor in model.lineage]
        drawn: list[Any] = [calibration.samples, calibration.sequence_length, calibration.seed]
        if calibration.exclude_held_out:
            held_out = [inputs.evaluation_text, *inputs.domain_texts]
            drawn += [self._spec.evaluation.model_dump(mode="json"), [path.stem for path in held_out]]
        # The cache names a text by its hash.
        key = content_hash([model.record.fingerprint, ancestors, text.stem, drawn, order.dtype, order.device])
        size_bytes = statistics_bytes(shape_from_config(model.config), self._spec)
        shared = Cache(self._settings).statistics(key, size_bytes)
        if shared is None:
            log.info("statistics_not_shared", size_bytes=size_bytes)
        return shared

    def _origin(self, model: FetchedModel) -> Origin | None:
        if not model.lineage:
            return None
        budget = self._spec.budget
        return Origin(
            base_bytes=model.record.base_bytes,
            pruned=any(isinstance(stage, Pruner) for stage in model.earlier),
            baseline_required=budget is not None and budget.max_perplexity_increase is not None,
        )

    def _plan(self, model: FetchedModel) -> Plan:
        shape = shape_from_config(model.config)
        recipe_checks.check_recipe(shape, self._spec, model.earlier)
        files = [path for path in sorted(model.directory.iterdir()) if path.is_file()]
        description = ModelDescription(
            uri=model.record.uri,
            revision=model.record.revision,
            config=model.config,
            shape=shape,
            files=tuple(SourceFile(path.name, path.stat().st_size) for path in files),
            container="gguf" if model.gguf_file else "safetensors",
            gguf_file=model.gguf_file,
            base=model.record if model.lineage else None,
            earlier=model.earlier,
        )
        # Where a job leaves the choice of the pool open, it was made when the job was queued.
        spec = self._spec.model_copy(update={"pool": self._claim.job.pool})
        return planning.make_plan(spec, description, self._settings)

    def _check_disk(self, plan: Plan) -> None:
        free = shutil.disk_usage(self.workspace.directory).free
        # The model itself lies in the cache already.
        needed = plan.disk_bytes - plan.download_bytes
        if free < needed:
            raise DiskFull(
                f"The worker's disk has {free} bytes left, and the job needs about {needed}; free some space."
            )

    def _baseline(self, fingerprint: str) -> Evaluation | None:
        return self._transaction(
            lambda session: catalogue.likely_baseline(
                session, fingerprint, self._spec.evaluation, self._spec.dtype, self._pool.device
            )
        )

    def _save_baseline(self, fingerprint: str, base: Evaluation | None) -> None:
        if base is not None and not base.cached:
            self._transaction(lambda session: catalogue.save_baseline(session, fingerprint, base, self._pool.device))

    def _run(self, order: WorkOrder, directory: Path, uploader: checkpoints.CheckpointUploader | None) -> EngineRun:
        """The engine, to its end. Raises CancelRequested or DrainRequested once it has stopped for that."""
        asked_at: float | None = None

        def on_message(message: EngineStarted | EngineProgress) -> None:
            if isinstance(message, EngineStarted):
                log.info("engine_started", device=message.device, isolation=message.isolation.model_dump())
            else:
                self._lease.report(message.progress)

        def attend(engine: EngineProcess) -> None:
            nonlocal asked_at
            self._lease.on_beat(engine.tick)
            self._lease.check_held()
            if uploader:
                uploader.attend()
            if not (self._lease.cancel_requested or self._lease.draining):
                return
            if asked_at is None:
                log.info("engine_asked_to_stop", cancel=self._lease.cancel_requested)
                asked_at = time.monotonic()
                engine.drain()
            cancel = self._lease.cancel_requested
            grace = self._settings.cancel_grace_seconds if cancel else self._settings.drain_grace_seconds
            if time.monotonic() - asked_at > grace:
                raise CancelRequested if cancel else DrainRequested

        try:
            run = run_engine(order, directory, on_message=on_message, attend=attend, command=self._worker.command)
        except EngineCrashed:
            # A signal to the whole machine's processes, such as a shutdown, ends the engine as well.
            self._lease.check()
            raise
        finally:
            self._lease.on_beat(None)
            if uploader:
                uploader.stop()
        if run.result is None and run.rehearsal is None:
            self._lease.check()
            raise EngineCrashed("The engine stopped at a block boundary, though nobody had asked it to.")
        return run

    def _upload(self, model: FetchedModel, order: WorkOrder, run: EngineRun) -> NewArtifact:
        assert run.result is not None
        started, result = run.started, run.result
        self._lease.check()
        artifact_id = uuid4()
        report = self._completed(result.report)
        total = sum(path.stat().st_size for path in self.workspace.output.rglob("*") if path.is_file())
        done = 0
        # Each byte is read twice: to hash it, and to send it.
        self._progress(Phase.UPLOAD, 1 - UPLOAD_SHARE)

        def on_bytes(step: Callable[[], None], size: int) -> None:
            nonlocal done
            step()
            done += size
            share = UPLOAD_SHARE * done / max(2 * total, 1)
            self._progress(Phase.UPLOAD, min(1 - UPLOAD_SHARE + share, 1), message=_of(done // 2, total))

        def upload(step: Callable[[], None]) -> NewArtifact:
            manifest = publish.build_manifest(
                self.workspace.output,
                artifact_id=artifact_id,
                job_id=self._claim.job.id,
                base=model.record,
                lineage=model.lineage,
                order=order,
                started=started,
                result=result,
                report=report,
                on_file=lambda size: on_bytes(step, size),
            )
            publish.upload(
                self._worker.store,
                manifest,
                self.workspace.output,
                self.prefix,
                on_bytes=lambda size: on_bytes(step, size),
            )
            return NewArtifact(
                manifest=manifest,
                storage_prefix=self.prefix,
                name=lookups.artifact_name(self._claim.job, manifest),
                tags=self._spec.tags,
                calibration=self._uploaded_calibration(model, order, manifest, result),
            )

        return attended(upload, self._lease.check)

    def _uploaded_calibration(
        self, model: FetchedModel, order: WorkOrder, manifest: Manifest, result: EngineResult
    ) -> NewCalibration | None:
        """The tokens that were drawn, in the store; None where there are none, or where the project has them."""
        new = publish.drawn_calibration(order, manifest, result, shape_from_config(model.config))
        if new is None:
            return None
        same = (new.tokens_sha256, new.settings.sequence_length, new.tokenizer_sha256)
        if self._transaction(lambda session: calibrations.is_known(session, self._claim.project_id, *same)):
            return None
        self._worker.store.put_file(new.storage_key, order.work_dir / CALIBRATION_FILE, new.file_sha256)
        self._calibration_key = new.storage_key
        return new

    def _completed(self, report: Report) -> Report:
        seconds = self._claim.worker_seconds + time.monotonic() - self._claimed_at
        book = self._transaction(lambda session: prices.price_book(session, self._claim.project_id))
        rate = prices.rate(self._pool, book, self._settings)
        cost = publish.job_cost(report, rate=rate, job_seconds=seconds)
        return publish.complete_report(report, cost=cost, budget=self._spec.budget)

    def _transaction(self, work: Callable[[Session], T]) -> T:
        """One transaction, tried again while the database is away and the lease lasts."""

        def once() -> T:
            with self._worker.database.transaction() as session:
                return work(session)

        return retried(once, DatabaseUnavailable, self._lease.check)

    def _progress(self, phase: Phase, fraction: float, message: str = "") -> None:
        self._lease.report(Progress(phase=phase, fraction=fraction, message=message))


def _of(present: int, total: int) -> str:
    return f"{math.floor(present / 1e6):,} of {math.ceil(total / 1e6):,} MB"
