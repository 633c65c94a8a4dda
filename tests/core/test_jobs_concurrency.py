"""Many at once: claims, submits and rescues that race on a real PostgreSQL."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar
from uuid import UUID

import pytest
from sqlalchemy import func, select
from tests.core.builders import claim_job, event_types, make_artifact, make_spec, run_out, set_job, submit_job

from paredown.contracts.job import JobState, Phase, Progress
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.errors import CancelPending, IdempotencyBusy, IdempotencyMismatch, LeaseLost, StateConflict
from paredown.core.settings import Settings
from paredown.core.tables import JobRow

T = TypeVar("T")
THREADS = 8


@contextmanager
def opened(settings: Settings, pool_size: int = THREADS) -> Iterator[Database]:
    database = Database(settings, pool_size=pool_size)
    yield database
    database.close()


def together(*calls: Callable[[], T]) -> list[T]:
    """Run the calls in threads that start at the same moment; their results, in order."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as executor:
        return [future.result() for future in [executor.submit(run, call) for call in calls]]


def test_each_job_is_claimed_exactly_once(database: Database, project: UUID, settings: Settings) -> None:
    submitted = {submit_job(database, project, priority=number % 3) for number in range(40)}

    def work_until_empty(worker: str) -> list[UUID]:
        claimed = []
        while True:
            with racing.transaction() as session:
                claim = jobs.claim(session, "cpu", worker, settings)
            if claim is None:
                return claimed
            claimed.append(claim.job.id)

    with opened(settings) as racing:
        shares = together(*(lambda name=f"worker-{number}": work_until_empty(name) for number in range(THREADS)))
    claimed = [job_id for share in shares for job_id in share]
    assert len(claimed) == len(submitted)
    assert set(claimed) == submitted
    for job_id in submitted:
        assert event_types(database, job_id) == ["queued", "claimed"]


def test_claim_passes_by_a_job_that_another_is_just_claiming(
    database: Database, project: UUID, settings: Settings
) -> None:
    first, second = submit_job(database, project), submit_job(database, project)
    with database.transaction() as slow:
        claim = jobs.claim(slow, "cpu", "slow", settings)
        assert claim is not None
        assert claim.job.id == first
        assert claim_job(database, settings, worker="fast").job.id == second


def test_concurrent_submits_with_one_key_make_one_job(database: Database, project: UUID, settings: Settings) -> None:
    def submit() -> tuple[UUID, bool]:
        with racing.transaction() as session:
            job, created = jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key="key")
        return job.id, created

    with opened(settings) as racing:
        results = together(*[submit] * THREADS)
    assert len({job_id for job_id, _ in results}) == 1
    assert [created for _, created in results].count(True) == 1
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(JobRow)) == 1


def test_second_submit_waits_for_the_first_ones_end(database: Database, project: UUID) -> None:
    started = threading.Event()

    def second(expected: type[Exception] | None = None, **changes: object) -> tuple[UUID, bool]:
        with database.transaction() as session:
            started.set()
            job, created = jobs.submit(session, project, make_spec(**changes), pool="cpu", idempotency_key="key")
        return job.id, created

    with ThreadPoolExecutor(2) as executor:
        with database.transaction() as session:
            first, _ = jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key="key")
            same = executor.submit(second)
            other = executor.submit(second, priority=1)
            started.wait()
            with pytest.raises(TimeoutError):
                same.result(timeout=0.3)
        assert same.result() == (first.id, False)
        with pytest.raises(IdempotencyMismatch):
            other.result()


def test_second_submit_makes_the_job_when_the_first_is_rolled_back(database: Database, project: UUID) -> None:
    def submit() -> tuple[UUID, bool]:
        with database.transaction() as session:
            job, created = jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key="key")
        return job.id, created

    with ThreadPoolExecutor(1) as executor:
        with database.transaction() as session:
            gone, _ = jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key="key")
            waiting = executor.submit(submit)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
            session.rollback()
        job_id, created = waiting.result()
    assert created
    assert job_id != gone.id


def test_submit_that_waits_too_long_says_busy(database: Database, project: UUID, settings: Settings) -> None:
    hasty = settings.model_copy(update={"lock_timeout_seconds": 0.1})
    with opened(hasty) as impatient, database.transaction() as session:
        jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key="key")
        with pytest.raises(IdempotencyBusy), impatient.transaction() as other:
            jobs.submit(other, project, make_spec(), pool="cpu", idempotency_key="key")


def test_rescuers_share_the_lost_jobs(database: Database, project: UUID, settings: Settings) -> None:
    lost = set()
    for _ in range(20):
        job_id = submit_job(database, project)
        claim_job(database, settings)
        run_out(database, job_id)
        lost.add(job_id)

    def rescue() -> list[UUID]:
        with racing.transaction() as session:
            return jobs.rescue(session, settings)

    with opened(settings) as racing:
        rescued = [job_id for share in together(*[rescue] * 4) for job_id in share]
    # SKIP LOCKED: a rescuer may find fewer than there are, none twice.
    assert len(rescued) == len(set(rescued))
    assert set(rescued) <= lost
    with database.transaction() as session:
        rescued += jobs.rescue(session, settings)
    assert set(rescued) == lost
    for job_id in lost:
        assert event_types(database, job_id) == ["queued", "claimed", "requeued"]


@pytest.mark.parametrize("round_", range(10))
def test_finish_and_cancel_have_one_winner(database: Database, project: UUID, settings: Settings, round_: int) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)

    def finish() -> str:
        try:
            with database.transaction() as session:
                jobs.finish(session, job_id, claim.epoch, make_artifact(job_id))
        except CancelPending:
            return "cancel pending"
        return "finished"

    def cancel() -> str:
        try:
            with database.transaction() as session:
                jobs.request_cancel(session, project, job_id)
        except StateConflict:
            return "too late"
        return "asked"

    assert together(finish, cancel) in (["finished", "too late"], ["cancel pending", "asked"])
    with database.transaction() as session:
        job = jobs.get(session, project, job_id)
    assert (job.state is JobState.SUCCEEDED) == (job.artifact_id is not None)
    assert (job.state is JobState.RUNNING) == job.cancel_requested


@pytest.mark.parametrize("round_", range(10))
def test_finish_and_rescue_have_one_winner(database: Database, project: UUID, settings: Settings, round_: int) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    run_out(database, job_id)

    def finish() -> bool:
        try:
            with database.transaction() as session:
                jobs.finish(session, job_id, claim.epoch, make_artifact(job_id))
        except LeaseLost:
            return False
        return True

    def rescue() -> bool:
        with database.transaction() as session:
            return jobs.rescue(session, settings) == [job_id]

    finished, rescued = together(finish, rescue)
    assert finished is not rescued
    ending = "succeeded" if finished else "requeued"
    assert event_types(database, job_id) == ["queued", "claimed", ending]


def test_no_event_is_lost_between_writers(database: Database, project: UUID, settings: Settings) -> None:
    """The worker, a person and the dispatcher write the history of one job at once: seq has neither gap nor double."""
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    set_job(database, job_id, lease_until=func.now() + func.make_interval(0, 0, 0, 1))

    def beat(start: int) -> None:
        for block in range(start, start + 10):
            with racing.transaction() as session:
                progress = Progress(phase=Phase.COMPRESS, fraction=0.5, block=block, num_blocks=1000)
                jobs.heartbeat(session, job_id, claim.epoch, progress, settings)

    def cancel(_: int) -> None:
        for _ in range(10):
            with racing.transaction() as session:
                jobs.request_cancel(session, project, job_id)

    with opened(settings) as racing:
        together(lambda: beat(0), lambda: beat(100), lambda: beat(200), lambda: cancel(0), lambda: cancel(0))
    types = event_types(database, job_id)
    assert types.count("cancel_requested") == 1
    assert types.count("progress") == 30
