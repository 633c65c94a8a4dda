"""A job's ways out of a worker: each ends in its row, with nothing left behind."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest
from sqlalchemy import func, update
from tests.support.task_rows import save_rows
from tests.worker.conftest import MakeWorker, Submit

from paredown.contracts.artifact import MANIFEST_NAME, Manifest, verify_files
from paredown.contracts.job import JobState, JobView, Phase
from paredown.contracts.prices import InstanceType, PriceBook
from paredown.contracts.report import Verdict
from paredown.contracts.work import WorkOrder
from paredown.core import catalogue, history, jobs, prices
from paredown.core.db import Database
from paredown.core.errors import DiskFull, StorageUnavailable
from paredown.core.settings import Pool, Settings
from paredown.core.storage import LocalStore, ObjectStore
from paredown.core.tables import JobRow
from paredown.worker.attempt import Worker
from paredown.worker.supervisor import claim_all, run_job
from paredown.worker.workspace import remove_ended_jobs


def state_of(database: Database, job_id: UUID) -> JobView:
    with database.transaction() as session:
        return jobs.get(session, None, job_id)


def events_of(database: Database, job_id: UUID) -> list[str]:
    with database.transaction() as session:
        return [event.type for event in jobs.events_after(session, job_id, 0)]


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@contextmanager
def working(worker: Worker) -> Iterator[threading.Thread]:
    """claim_all in the background; at the end it must have come back."""
    thread = threading.Thread(target=claim_all, args=(worker, "cpu"), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)
        assert not thread.is_alive()


def in_phase(database: Database, job: JobView, phase: Phase) -> Callable[[], bool]:
    return lambda: state_of(database, job.id).phase is phase


def engines() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children(recursive=True) if "scripted_engine" in " ".join(child.cmdline())
    ]


def test_a_job_ends_with_one_complete_artifact(
    database: Database, store: ObjectStore, submit: Submit, make_worker: MakeWorker, settings: Settings, tmp_path: Path
) -> None:
    job = submit(tags=["t"])
    assert claim_all(make_worker(), "cpu") == 1
    done = state_of(database, job.id)
    assert done.state is JobState.SUCCEEDED
    assert done.artifact_id is not None
    with database.transaction() as session:
        manifest = catalogue.manifest(session, None, done.artifact_id)
        prefix = catalogue.storage_prefix(session, None, done.artifact_id)
        view = catalogue.get_artifact(session, None, done.artifact_id)
    assert (view.name, view.tags, view.verdict) == ("tiny rtn-4", ("t",), None)
    assert {file.path for file in manifest.files} == {"config.json", "deep/model.safetensors"}
    for path in (*(file.path for file in manifest.files), MANIFEST_NAME):
        store.get_file(f"{prefix}/{path}", tmp_path / "got" / path)
    assert list(verify_files(manifest, tmp_path / "got")) == []
    assert Manifest.model_validate_json((tmp_path / "got" / MANIFEST_NAME).read_bytes()) == manifest
    assert list(settings.work_dir.iterdir()) == []
    assert [item.key for item in store.list("checkpoints/")] == []
    assert events_of(database, job.id)[0:2] == ["queued", "claimed"]
    assert events_of(database, job.id)[-1] == "succeeded"


def test_a_job_leaves_what_it_took_beside_what_was_planned(
    database: Database, submit: Submit, make_worker: MakeWorker
) -> None:
    job = submit()
    assert claim_all(make_worker(), "cpu") == 1

    with database.transaction() as session:
        row = session.get(JobRow, job.id)
        assert row is not None
        [outcome] = history.latest(session, row.project_id, 20).items
    assert outcome.job_id == job.id
    assert min(outcome.seconds, outcome.planned_seconds) > 0
    assert min(outcome.planned_memory_bytes, outcome.planned_output_bytes, outcome.output_bytes) > 0


def test_the_manifest_says_what_the_job_cost(database: Database, submit: Submit, make_worker: MakeWorker) -> None:
    job = submit()
    claim_all(make_worker(blocks=2, block_seconds=0.5), "cpu")
    done = state_of(database, job.id)
    assert done.artifact_id
    with database.transaction() as session:
        cost = catalogue.manifest(session, None, done.artifact_id).report.cost
    assert cost is not None
    assert cost.job_seconds >= 1
    assert cost.job == pytest.approx(cost.job_seconds * 3.6 / 3600)
    assert cost.instance is None


def test_a_job_is_at_the_price_of_its_pools_instance_type(
    database: Database, project: UUID, settings: Settings, submit: Submit, make_worker: MakeWorker
) -> None:
    item = InstanceType(
        name="m7i.xlarge",
        device="cpu",
        memory_bytes=2**34,
        price_per_hour=7.2,
        currency="EUR",
        as_of=date(2026, 11, 1),
    )
    with database.transaction() as session:
        prices.replace(session, project, PriceBook(items=(item,)))
    pools = {"cpu": Pool(price_per_hour=3.6, instance="m7i.xlarge")}
    job = submit()
    claim_all(make_worker(blocks=1, settings=settings.model_copy(update={"pools": pools})), "cpu")
    done = state_of(database, job.id)
    assert done.artifact_id
    with database.transaction() as session:
        cost = catalogue.manifest(session, None, done.artifact_id).report.cost
    assert cost is not None
    assert (cost.instance, cost.price_per_hour, cost.currency, cost.as_of) == (
        "m7i.xlarge",
        7.2,
        "EUR",
        date(2026, 11, 1),
    )
    assert cost.job == pytest.approx(cost.job_seconds * 7.2 / 3600)


@pytest.mark.parametrize(
    ("limit", "state", "verdict"),
    [(0.05, JobState.REJECTED, Verdict.MISSED), (0.2, JobState.SUCCEEDED, Verdict.PASSED)],
)
def test_the_gate_decides(
    database: Database, submit: Submit, make_worker: MakeWorker, limit: float, state: JobState, verdict: Verdict
) -> None:
    job = submit(budget={"max_perplexity_increase": limit})
    claim_all(make_worker(perplexity=11.0), "cpu")
    done = state_of(database, job.id)
    assert done.state is state
    assert done.artifact_id
    with database.transaction() as session:
        assert catalogue.get_artifact(session, None, done.artifact_id).verdict is verdict


def test_a_failure_with_a_name_ends_the_job_under_that_name(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings
) -> None:
    job = submit()
    claim_all(make_worker(ending="failure"), "cpu")
    done = state_of(database, job.id)
    assert done.state is JobState.FAILED
    assert done.error is not None
    assert (done.error.code, done.error.field) == ("hessian_singular", "recipe.0")
    assert list(settings.work_dir.iterdir()) == []


def test_rows_and_domains_reach_the_engine_and_a_bad_row_ends_the_job(
    database: Database, submit: Submit, make_worker: MakeWorker, model_root: Path
) -> None:
    rows, text = save_rows(model_root / "piqa.jsonl", "piqa"), model_root / "law.txt"
    text.write_text("The law is the law. " * 50)
    evaluation = {
        "samples": 2,
        "sequence_length": 64,
        "tasks": [{"name": "piqa", "source": f"file://{rows}", "limit": 3}],
        "domains": [{"name": "law", "source": f"file://{text}"}],
    }
    seen = model_root / "order.json"
    job = submit(evaluation=evaluation)
    claim_all(make_worker(keep_order=str(seen)), "cpu")
    assert state_of(database, job.id).state is JobState.SUCCEEDED
    order = WorkOrder.model_validate_json(seen.read_bytes())
    [task] = order.tasks
    assert (task.settings.name, task.settings.limit) == ("piqa", 3)
    assert len(task.rows.read_text().splitlines()) == 6
    assert [path.read_text() for path in order.domain_texts] == [text.read_text()]

    rows.write_text('{"goal": "Lift"}\n')
    job = submit(evaluation=evaluation)
    claim_all(make_worker(), "cpu")
    done = state_of(database, job.id)
    assert done.error is not None
    assert (done.error.code, done.error.field) == ("task_rows_unusable", "evaluation.tasks.0.source")
    assert "Row 1 of piqa.jsonl is no row of piqa, field sol1" in done.error.detail


@pytest.mark.parametrize(("ending", "code"), [("killed", "engine_crashed"), ("retryable", "disk_full")])
def test_a_retryable_failure_is_tried_again_until_it_was_tried_often_enough(
    database: Database, submit: Submit, make_worker: MakeWorker, ending: str, code: str
) -> None:
    job = submit()
    assert claim_all(make_worker(ending=ending), "cpu") == 3
    done = state_of(database, job.id)
    assert (done.state, done.epoch, done.failures) == (JobState.FAILED, 3, 3)
    assert done.error is not None
    assert done.error.code == code
    assert events_of(database, job.id).count("failed") == 1


def test_a_model_that_is_none_fails_with_the_source_s_own_code(
    database: Database, submit: Submit, make_worker: MakeWorker, model_root: Path
) -> None:
    job = submit(model=f"file://{model_root}/absent")
    claim_all(make_worker(), "cpu")
    done = state_of(database, job.id)
    assert done.state is JobState.FAILED
    assert done.error is not None
    assert (done.error.code, done.error.field) == ("source_not_found", "model")


def test_a_recipe_that_only_the_files_show_to_be_unfit_fails_before_the_engine_starts(
    database: Database, submit: Submit, make_worker: MakeWorker
) -> None:
    job = submit(recipe=[{"method": "rtn", "group_size": 256}])
    claim_all(make_worker(), "cpu")
    done = state_of(database, job.id)
    assert done.error is not None
    assert (done.error.code, done.phase) == ("group_size_unfit", Phase.CHECK)


def test_a_bug_of_ours_shows_a_code_and_no_traceback(
    database: Database, submit: Submit, make_worker: MakeWorker, store: ObjectStore
) -> None:
    class Broken(LocalStore):
        def put_file(self, key: str, path: Path, sha256: str) -> None:
            raise ZeroDivisionError("secret detail")

    job = submit()
    assert isinstance(store, LocalStore)
    claim_all(make_worker(store=Broken(store.root)), "cpu")
    done = state_of(database, job.id)
    assert done.error is not None
    assert done.error.code == "worker_internal"
    assert "secret" not in done.error.detail


def test_a_full_disk_has_its_name(
    database: Database, submit: Submit, make_worker: MakeWorker, store: ObjectStore
) -> None:
    class Full(LocalStore):
        def put_file(self, key: str, path: Path, sha256: str) -> None:
            raise DiskFull("The store is full.")

    job = submit()
    assert isinstance(store, LocalStore)
    claim_all(make_worker(store=Full(store.root)), "cpu")
    done = state_of(database, job.id)
    assert done.error is not None
    assert done.error.code == "disk_full"


def test_a_baseline_is_measured_once(database: Database, submit: Submit, make_worker: MakeWorker) -> None:
    submit()
    second = submit(recipe=[{"method": "rtn", "bits": 8}])
    claim_all(make_worker(), "cpu")
    done = state_of(database, second.id)
    assert done.artifact_id
    with database.transaction() as session:
        base = catalogue.manifest(session, None, done.artifact_id).report.base
    assert base is not None
    assert base.cached


# Cancel


def test_cancel_while_compressing_kills_an_engine_that_does_not_stop_by_itself(
    database: Database, project: UUID, submit: Submit, make_worker: MakeWorker, store: ObjectStore, settings: Settings
) -> None:
    job = submit()
    with working(make_worker(blocks=1000, block_seconds=0.05, drains=False)):
        wait_until(in_phase(database, job, Phase.COMPRESS))
        with database.transaction() as session:
            jobs.request_cancel(session, project, job.id)
    assert state_of(database, job.id).state is JobState.CANCELLED
    assert engines() == []
    assert list(store.list("")) == []
    assert list(settings.work_dir.iterdir()) == []


class Gate(LocalStore):
    """A store that holds one file of an artifact until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.held = "model.safetensors"
        self.reached = threading.Event()
        self.released = threading.Event()

    def put_file(self, key: str, path: Path, sha256: str) -> None:
        self._pass(key)
        super().put_file(key, path, sha256)

    def put_bytes(self, key: str, data: bytes) -> None:
        self._pass(key)
        super().put_bytes(key, data)

    def _pass(self, key: str) -> None:
        if key.startswith("artifacts/") and key.endswith(self.held):
            self.reached.set()
            assert self.released.wait(30)


@pytest.fixture
def gate(store: ObjectStore) -> Iterator[Gate]:
    assert isinstance(store, LocalStore)
    gate = Gate(store.root)
    yield gate
    gate.released.set()


def test_cancel_while_an_upload_hangs(
    database: Database, project: UUID, submit: Submit, make_worker: MakeWorker, gate: Gate
) -> None:
    job = submit()
    with working(make_worker(store=gate)):
        assert gate.reached.wait(30)
        with database.transaction() as session:
            jobs.request_cancel(session, project, job.id)
    assert state_of(database, job.id).state is JobState.CANCELLED


def test_cancel_that_comes_with_the_last_byte_still_cancels(
    database: Database, project: UUID, submit: Submit, make_worker: MakeWorker, store: ObjectStore, settings: Settings
) -> None:
    job = submit()

    class CancelsLate(LocalStore):
        def put_bytes(self, key: str, data: bytes) -> None:
            super().put_bytes(key, data)
            if key.endswith(MANIFEST_NAME):
                with database.transaction() as session:
                    jobs.request_cancel(session, project, job.id)

    assert isinstance(store, LocalStore)
    slow = settings.model_copy(update={"heartbeat_seconds": 60.0, "lease_seconds": 120.0})
    claim_all(make_worker(store=CancelsLate(store.root), settings=slow), "cpu")
    assert state_of(database, job.id).state is JobState.CANCELLED
    assert list(store.list("artifacts/")) == []


# Losing the lease


def lose(database: Database, settings: Settings, job: JobView) -> None:
    """What happens to a job whose supervisor is paused for too long, without waiting for it."""
    with database.transaction() as session:
        session.execute(
            update(JobRow)
            .where(JobRow.id == job.id)
            .values(lease_until=func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1))
        )
    with database.transaction() as session:
        assert jobs.rescue(session, settings) == [job.id]


def test_a_supervisor_that_lost_its_job_kills_the_engine_and_touches_nothing(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings
) -> None:
    job = submit()
    with working(make_worker(blocks=1000, block_seconds=0.05)) as thread:
        wait_until(in_phase(database, job, Phase.COMPRESS))
        lose(database, settings, job)
        with database.transaction() as session:
            claim = jobs.claim(session, "cpu", "worker-2", settings)
        assert claim is not None
        thread.join(20)
        assert engines() == []
        now = state_of(database, job.id)
        assert (now.state, now.epoch, now.failures) == (JobState.RUNNING, 2, 1)
        # The new holder finds what the old one had finished.
        run_job(make_worker("worker-2"), claim, claimed_at=time.monotonic())
    assert state_of(database, job.id).state is JobState.SUCCEEDED


def test_the_fence_holds_back_a_supervisor_whose_own_clock_saw_nothing(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings, gate: Gate, store: ObjectStore
) -> None:
    """A machine that was suspended: its clock stood still, it sends no heartbeat first, and its upload is complete."""
    job = submit()
    gate.held = MANIFEST_NAME
    unaware = settings.model_copy(update={"heartbeat_seconds": 600.0, "lease_seconds": 1200.0})
    with working(make_worker(store=gate, settings=unaware)):
        assert gate.reached.wait(30)
        # The phase's own heartbeat first; the next one would be minutes away.
        wait_until(in_phase(database, job, Phase.UPLOAD))
        lose(database, settings, job)
        assert claim_all(make_worker("worker-2"), "cpu") == 1
        finished = state_of(database, job.id)
        assert (finished.state, finished.epoch) == (JobState.SUCCEEDED, 2)
        gate.released.set()
    after = state_of(database, job.id)
    assert after == finished
    events = events_of(database, job.id)
    assert events.count("succeeded") == 1
    # Both uploads are whole, each in its own place; the catalogue knows one of them.
    assert {item.key.split("/")[2] for item in store.list("artifacts/")} == {"1", "2"}


def test_without_a_confirmed_heartbeat_the_engine_ends_with_the_lease(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is out of reach for heartbeats, and nobody else takes the job meanwhile."""
    job = submit()
    reached = threading.Event()

    def out_of_reach(*_: object) -> bool:
        reached.set()
        raise ConnectionResetError("no route to host")

    with working(make_worker(blocks=1000, block_seconds=0.05)) as thread:
        wait_until(in_phase(database, job, Phase.COMPRESS))
        started = time.monotonic()
        monkeypatch.setattr(jobs, "heartbeat", out_of_reach)
        assert reached.wait(10)
        assert engines() != []
        thread.join(20)
        assert settings.lease_seconds * 0.5 < time.monotonic() - started < settings.lease_seconds + 2
        assert engines() == []
    assert state_of(database, job.id).state is JobState.RUNNING


# Drain


def test_a_drain_gives_the_job_back_with_its_checkpoint(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    job = submit()
    drain = threading.Event()
    with working(make_worker(draining=drain.is_set, blocks=40, block_seconds=0.1)):
        wait_until(lambda: (progress := state_of(database, job.id).progress) is not None and (progress.block or 0) > 2)
        drain.set()
    released = state_of(database, job.id)
    assert (released.state, released.failures) == (JobState.QUEUED, 0)
    kept = {path.name: path.read_bytes() for path in (settings.work_dir / str(job.id) / "1" / "checkpoint").iterdir()}
    assert len(kept) > 2
    # Another machine: it has the store, and a disk of its own.
    elsewhere = settings.model_copy(update={"work_dir": tmp_path / "elsewhere"})
    seen: dict[str, bytes] = {}

    class Looks(LocalStore):
        def get_file(self, key: str, path: Path) -> None:
            super().get_file(key, path)
            seen[path.name] = path.read_bytes()

    assert isinstance(store, LocalStore)
    started = time.monotonic()
    claim_all(make_worker("worker-2", settings=elsewhere, store=Looks(store.root), blocks=len(kept)), "cpu")
    assert state_of(database, job.id).state is JobState.SUCCEEDED
    assert seen == kept
    assert time.monotonic() - started < 20
    assert [item.key for item in store.list("checkpoints/")] == []


def test_a_resume_on_the_same_machine_starts_from_the_finished_blocks(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings, store: ObjectStore
) -> None:
    job = submit()
    claim_all(make_worker(blocks=3, ending="killed", settings=settings.model_copy(update={"max_failures": 1})), "cpu")
    assert state_of(database, job.id).state is JobState.FAILED
    first = (settings.work_dir / str(job.id) / "1" / "checkpoint" / "block-00001.safetensors").read_bytes()
    with database.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == job.id).values(state="queued", error=None, finished_at=None))
    claim_all(make_worker(blocks=3), "cpu")
    done = state_of(database, job.id)
    assert done.artifact_id
    with database.transaction() as session:
        prefix = catalogue.storage_prefix(session, None, done.artifact_id)
    assert first in b"".join(store.read_range(f"{prefix}/deep/model.safetensors", 0, 10**6))


def test_a_checkpoint_goes_to_the_store_while_the_engine_runs(
    database: Database, project: UUID, submit: Submit, make_worker: MakeWorker, settings: Settings, store: ObjectStore
) -> None:
    job = submit()
    often = settings.model_copy(update={"checkpoint_upload_seconds": 0.2})
    with working(make_worker(blocks=1000, block_seconds=0.05, settings=often)):
        wait_until(lambda: any(item.key.endswith("index.json") for item in store.list(f"checkpoints/{job.id}/")))
        with database.transaction() as session:
            jobs.request_cancel(session, project, job.id)
    assert list(store.list("checkpoints/")) == []


def test_a_store_that_is_away_costs_a_try_and_leaves_the_job_queued(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings, store: ObjectStore
) -> None:
    class Away(LocalStore):
        def put_bytes(self, key: str, data: bytes) -> None:
            raise StorageUnavailable("The store does not answer.")

    job = submit()
    later = settings.model_copy(update={"retry_delay_seconds": 60.0})
    assert isinstance(store, LocalStore)
    assert claim_all(make_worker(store=Away(store.root), settings=later), "cpu") == 1
    now = state_of(database, job.id)
    assert (now.state, now.failures) == (JobState.QUEUED, 1)
    assert list(store.list("artifacts/")) == []


def test_an_engine_that_the_shutdown_itself_has_killed_costs_no_failure(
    database: Database, submit: Submit, make_worker: MakeWorker
) -> None:
    job = submit()
    drain = threading.Event()
    with working(make_worker(draining=drain.is_set, evaluate_seconds=1.0, ending="killed", drains=False)):
        wait_until(in_phase(database, job, Phase.EVALUATE))
        drain.set()
    released = state_of(database, job.id)
    assert (released.state, released.failures) == (JobState.QUEUED, 0)


def test_a_shutdown_lets_an_upload_come_to_its_end(
    database: Database, submit: Submit, make_worker: MakeWorker, gate: Gate
) -> None:
    job = submit()
    drain = threading.Event()
    with working(make_worker(draining=drain.is_set, store=gate)):
        assert gate.reached.wait(30)
        drain.set()
        time.sleep(0.5)
        gate.released.set()
    assert state_of(database, job.id).state is JobState.SUCCEEDED


def test_a_shutdown_before_anything_was_begun_gives_the_job_back(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings
) -> None:
    job = submit()
    with database.transaction() as session:
        claim = jobs.claim(session, "cpu", "worker-1", settings)
    assert claim is not None
    run_job(make_worker(draining=lambda: True), claim, claimed_at=time.monotonic())
    released = state_of(database, job.id)
    assert (released.state, released.failures) == (JobState.QUEUED, 0)


# Old directories


def test_directories_of_ended_jobs_are_removed_and_all_others_stay(
    database: Database, project: UUID, submit: Submit, settings: Settings
) -> None:
    ended, queued = submit(), submit()
    with database.transaction() as session:
        jobs.request_cancel(session, project, ended.id)
    stranger = uuid4()
    for name in (ended.id, queued.id, stranger, "notes"):
        (settings.work_dir / str(name) / "1").mkdir(parents=True)
    assert remove_ended_jobs(database, settings) == [ended.id]
    assert {path.name for path in settings.work_dir.iterdir()} == {str(queued.id), str(stranger), "notes"}
    long_ago = time.time() - settings.orphan_seconds - 1
    for name in (queued.id, stranger):
        os.utime(settings.work_dir / str(name), (long_ago, long_ago))
    assert remove_ended_jobs(database, settings) == [stranger]
