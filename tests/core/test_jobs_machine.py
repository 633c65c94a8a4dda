"""The state machine against a plain model of it: random people, workers and dispatchers on a real PostgreSQL.

Workers here never forget: each claim that was ever made goes on trying to write. The model is the table of arrows in
Python; after every step each job must be what it says, and after each life so must the histories.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, text
from sqlalchemy.orm import Session
from tests.core.builders import make_artifact, make_spec, run_out, set_job

from paredown.contracts.job import JobError, JobState, Progress
from paredown.contracts.report import Verdict
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.errors import CancelPending, IdempotencyMismatch, LeaseLost, StateConflict
from paredown.core.settings import Settings

MAX_FAILURES = 3
MAX_OPEN_JOBS = 2


@dataclass
class Model:
    """What a job should be."""

    id: UUID
    priority: int
    state: JobState = JobState.QUEUED
    epoch: int = 0
    failures: int = 0
    cancel: bool = False
    late: bool = False
    error: str | None = None
    artifact: UUID | None = None
    block: int | None = None
    events: list[str] = field(default_factory=lambda: ["queued"])

    def end(self, state: JobState, error: str | None = None) -> None:
        self.state, self.error = state, error
        self.events.append(state.value)

    def requeue(self) -> None:
        self.state, self.block = JobState.QUEUED, None
        self.events.append("requeued")

    def count_failure(self, error: str) -> None:
        self.failures += 1
        if self.failures == MAX_FAILURES:
            self.end(JobState.FAILED, error)
        else:
            self.requeue()


@dataclass(frozen=True)
class Holder:
    """A worker that believes to hold a job."""

    job: Model
    epoch: int

    @property
    def holds(self) -> bool:
        return self.job.state is JobState.RUNNING and self.job.epoch == self.epoch


class Machine(RuleBasedStateMachine):
    def __init__(self, database: Database, project: UUID, settings: Settings) -> None:
        super().__init__()
        self.database, self.project, self.settings = database, project, settings
        self.models: dict[UUID, Model] = {}
        self.keys: dict[str, tuple[UUID, int]] = {}
        self.holders: list[Holder] = []
        self.read: list[tuple[UUID, int]] = []
        with database.transaction() as session:
            session.execute(text("TRUNCATE jobs, idempotency_keys, artifacts, job_events CASCADE"))
        with database.transaction() as session:
            _, self.cursor = jobs.new_events(session, None)

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        """One rule, not thirteen: hypothesis leaves rules out of whole lives, and without claims there is no life."""
        every = list(self.models.values())
        actions = [self.read_new_events]
        if sum(not job.state.terminal for job in every) < MAX_OPEN_JOBS:
            actions += [self.submit] * 2
        if every:
            actions += [self.cancel, self.retry, self.pass_the_deadline]
        if any(job.state is JobState.QUEUED for job in every):
            actions += [self.claim] * 4
        if any(job.state is JobState.RUNNING for job in every):
            actions += [self.lose_a_worker] * 2
        if self.holders:
            actions += [self.heartbeat, self.finish, self.fail, self.release, self.acknowledge_cancel]
        data.draw(st.sampled_from(actions))(data)

    # More often one to which something may happen than one whose time is over.

    def some_job(self, data: st.DataObject) -> Model:
        every = list(self.models.values())
        return data.draw(st.sampled_from(every + 4 * [job for job in every if not job.state.terminal]))

    def some_holder(self, data: st.DataObject) -> Holder:
        return data.draw(st.sampled_from(self.holders + 4 * [holder for holder in self.holders if holder.holds]))

    # People

    def submit(self, data: st.DataObject) -> None:
        priority, key = data.draw(st.integers(-1, 1)), data.draw(st.sampled_from([None, None, None, "a", "b"]))
        known = self.keys.get(key) if key else None
        if known and known[1] != priority:
            with pytest.raises(IdempotencyMismatch), self.database.transaction() as session:
                jobs.submit(session, self.project, make_spec(priority=priority), pool="cpu", idempotency_key=key)
            return
        with self.database.transaction() as session:
            job, created = jobs.submit(
                session, self.project, make_spec(priority=priority), pool="cpu", idempotency_key=key
            )
        assert created is (known is None)
        if known:
            assert job.id == known[0]
            return
        self.models[job.id] = Model(job.id, priority)
        if key:
            self.keys[key] = job.id, priority

    def cancel(self, data: st.DataObject) -> None:
        job = self.some_job(data)
        if job.state.terminal:
            with pytest.raises(StateConflict), self.database.transaction() as session:
                jobs.request_cancel(session, self.project, job.id)
            return
        with self.database.transaction() as session:
            jobs.request_cancel(session, self.project, job.id)
        if job.state is JobState.QUEUED:
            job.end(JobState.CANCELLED)
        elif not job.cancel:
            job.cancel = True
            job.events.append("cancel_requested")

    def retry(self, data: st.DataObject) -> None:
        job = self.some_job(data)
        if job.state is not JobState.FAILED or job.late:
            with pytest.raises(StateConflict), self.database.transaction() as session:
                jobs.retry(session, self.project, job.id)
            return
        with self.database.transaction() as session:
            jobs.retry(session, self.project, job.id)
        job.state, job.failures, job.error, job.block = JobState.QUEUED, 0, None, None
        job.events.append("retried")

    # Workers

    def claim(self, _: st.DataObject) -> None:
        with self.database.transaction() as session:
            claim = jobs.claim(session, "cpu", "worker", self.settings)
        queued = [job for job in self.models.values() if job.state is JobState.QUEUED]
        assert claim is not None
        job = self.models[claim.job.id]
        assert job in queued
        assert job.priority == max(other.priority for other in queued)
        job.state, job.block = JobState.RUNNING, None
        job.epoch += 1
        job.events.append("claimed")
        assert (claim.epoch, claim.cancel_requested) == (job.epoch, False)
        self.holders.append(Holder(job, job.epoch))

    def _held(self, holder: Holder, write: Callable[[Session], object]) -> bool:
        """Whether the write went through; one of a holder that lost its job must not."""
        if holder.holds:
            with self.database.transaction() as session:
                write(session)
            return True
        with pytest.raises(LeaseLost), self.database.transaction() as session:
            write(session)
        return False

    def heartbeat(self, data: st.DataObject) -> None:
        block = data.draw(st.none() | st.integers(0, 1))
        holder = self.some_holder(data)
        job = holder.job
        progress = None if block is None else Progress(phase="compress", fraction=0.5, block=block)

        def write(session: Session) -> None:
            assert jobs.heartbeat(session, job.id, holder.epoch, progress, self.settings) is job.cancel

        if self._held(holder, write) and block is not None and block != job.block:
            job.block = block
            job.events.append("progress")

    def finish(self, data: st.DataObject) -> None:
        verdict = data.draw(st.sampled_from([None, *Verdict]))
        holder = self.some_holder(data)
        job = holder.job
        artifact = make_artifact(job.id, holder.epoch, verdict=verdict)
        if holder.holds and job.cancel:
            with pytest.raises(CancelPending), self.database.transaction() as session:
                jobs.finish(session, job.id, holder.epoch, artifact)
        elif self._held(holder, lambda session: jobs.finish(session, job.id, holder.epoch, artifact)):
            job.artifact = artifact.manifest.artifact_id
            job.end(JobState.REJECTED if verdict is Verdict.MISSED else JobState.SUCCEEDED)

    def fail(self, data: st.DataObject) -> None:
        retryable = data.draw(st.booleans())
        holder = self.some_holder(data)
        job, error = holder.job, JobError(code="disk_full", detail="The disk is full.", retryable=retryable)
        if not self._held(holder, lambda session: jobs.fail(session, job.id, holder.epoch, error, self.settings)):
            return
        if job.cancel:
            job.end(JobState.CANCELLED)
        elif retryable:
            job.count_failure("disk_full")
        else:
            job.end(JobState.FAILED, "disk_full")

    def release(self, data: st.DataObject) -> None:
        holder = self.some_holder(data)
        if self._held(holder, lambda session: jobs.release(session, holder.job.id, holder.epoch)):
            if holder.job.cancel:
                holder.job.end(JobState.CANCELLED)
            else:
                holder.job.requeue()

    def acknowledge_cancel(self, data: st.DataObject) -> None:
        holder = self.some_holder(data)
        job = holder.job
        if holder.holds and not job.cancel:
            with pytest.raises(StateConflict), self.database.transaction() as session:
                jobs.acknowledge_cancel(session, job.id, holder.epoch)
        elif self._held(holder, lambda session: jobs.acknowledge_cancel(session, job.id, holder.epoch)):
            job.end(JobState.CANCELLED)

    # Time, and the dispatcher

    def lose_a_worker(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([job for job in self.models.values() if job.state is JobState.RUNNING]))
        run_out(self.database, job.id)
        with self.database.transaction() as session:
            assert jobs.rescue(session, self.settings) == [job.id]
        if job.cancel:
            job.end(JobState.CANCELLED)
        else:
            job.count_failure("worker_lost")

    def pass_the_deadline(self, data: st.DataObject) -> None:
        job = self.some_job(data)
        job.late = True
        set_job(self.database, job.id, deadline_at=func.now() - timedelta(seconds=1))
        with self.database.transaction() as session:
            assert jobs.expire_deadlines(session) == ([] if job.state.terminal else [job.id])
        if not job.state.terminal:
            if job.cancel:
                job.end(JobState.CANCELLED)
            else:
                job.end(JobState.FAILED, "deadline_exceeded")

    def read_new_events(self, data: st.DataObject) -> None:
        limit = data.draw(st.integers(1, 5))
        with self.database.transaction() as session:
            found, self.cursor = jobs.new_events(session, self.cursor, limit)
        self.read += [(event.job_id, event.seq) for event in found]

    @invariant()
    def rows_are_what_the_model_says(self) -> None:
        with self.database.transaction() as session:
            views, _ = jobs.list_jobs(session, self.project, after=None, limit=1000)
            assert {view.id for view in views} == set(self.models)
            for view in views:
                job = self.models[view.id]
                assert (view.state, view.epoch, view.failures) == (job.state, job.epoch, job.failures)
                assert view.cancel_requested is job.cancel
                assert view.artifact_id == job.artifact
                assert (view.error.code if view.error else None) == job.error
                assert (view.finished_at is not None) is job.state.terminal

    def teardown(self) -> None:
        with self.database.transaction() as session:
            assert jobs.rescue(session, self.settings) == []
            assert jobs.expire_deadlines(session) == []
            for job in self.models.values():
                history = jobs.events_after(session, job.id, 0)
                assert [event.seq for event in history] == list(range(1, len(job.events) + 1))
                assert [event.type for event in history] == job.events
        full = False
        while not full:
            with self.database.transaction() as session:
                found, self.cursor = jobs.new_events(session, self.cursor, 100)
            self.read += [(event.job_id, event.seq) for event in found]
            full = len(found) < 100
        written = [(job.id, seq + 1) for job in self.models.values() for seq in range(len(job.events))]
        assert len(self.read) == len(written)
        assert set(self.read) == set(written)


def test_random_lives_of_jobs(database: Database, project: UUID, settings: Settings) -> None:
    settings = settings.model_copy(
        update={"lease_seconds": 3600, "max_failures": MAX_FAILURES, "retry_delay_seconds": 0}
    )
    run_state_machine_as_test(
        lambda: Machine(database, project, settings),
        settings=hypothesis_settings(
            max_examples=20,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            # Shrinking takes minutes; add Phase.shrink to understand a failure.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
