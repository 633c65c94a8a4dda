"""The state machine of jobs. Nobody else writes their state; the arrows are in docs/architecture.md.

Every function takes the session of an open transaction and leaves the commit to its caller. A worker holds a job by its
epoch: the number of the claim. `_held` is the fence through which each of its writes goes. Each change of state adds
one event to the job's history. All times are the database's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from paredown.contracts.artifact import ArtifactView
from paredown.contracts.job import Canary, JobError, JobState, JobView, Progress
from paredown.contracts.report import Verdict
from paredown.core import calibrations, catalogue, history
from paredown.core.db import database_now
from paredown.core.errors import (
    CancelPending,
    DeadlineExceeded,
    LeaseLost,
    NotFound,
    StateConflict,
    WorkerLost,
)
from paredown.core.events import EventCursor, events_after, new_events, record
from paredown.core.job_queries import counts, due_pools, get, in_state, is_due, list_jobs, of_sweep, oldest_due_seconds
from paredown.core.settings import Settings
from paredown.core.storable import storable
from paredown.core.submission import Membership, replay, submit
from paredown.core.tables import JobRow

__all__ = [
    "Claim",
    "EventCursor",
    "Membership",
    "acknowledge_cancel",
    "claim",
    "counts",
    "due_pools",
    "events_after",
    "expire_deadlines",
    "fail",
    "finish",
    "get",
    "heartbeat",
    "list_jobs",
    "new_events",
    "of_sweep",
    "oldest_due_seconds",
    "rehearsed",
    "release",
    "replay",
    "request_cancel",
    "request_cancels",
    "rescue",
    "retry",
    "submit",
]

MAX_RETRY_DELAY_SECONDS = 3600

EventType = Literal[
    "queued",
    "claimed",
    "canary",
    "progress",
    "requeued",
    "cancel_requested",
    "succeeded",
    "rejected",
    "failed",
    "cancelled",
    "retried",
]


@dataclass(frozen=True)
class Claim:
    """A job that a worker now holds. `worker_seconds` is what its earlier epochs took."""

    job: JobView
    project_id: UUID
    epoch: int
    cancel_requested: bool
    worker_seconds: float


# People


def request_cancel(session: Session, project_id: UUID, job_id: UUID) -> JobView:
    """A queued job is cancelled at once; a running one as soon as its worker, or the dispatcher, heeds the flag.

    Asking again changes nothing. Raises NotFound, or StateConflict for a job that has ended.
    """
    row = _owned(session, project_id, job_id)
    state = JobState(row.state)
    if state.terminal:
        raise StateConflict(f"The job has already {_ended(state)}; only a queued or running job can be cancelled.")
    if state is JobState.QUEUED:
        _end(session, row, JobState.CANCELLED, {})
    elif not row.cancel_requested:
        _write(session, row, "cancel_requested", {}, cancel_requested=True)
    return get(session, project_id, job_id)


def request_cancels(session: Session, project_id: UUID, job_ids: Iterable[UUID]) -> None:
    """Of each that has not ended; always in the same order, so that two who cancel never wait for each other's jobs."""
    for job_id in sorted(job_ids):
        try:
            request_cancel(session, project_id, job_id)
        except StateConflict:
            continue  # it has ended since


def retry(session: Session, project_id: UUID, job_id: UUID) -> JobView:
    """Queue a failed job again; its history stays. Raises NotFound or StateConflict."""
    row = _owned(session, project_id, job_id)
    if row.state != JobState.FAILED:
        raise StateConflict(f"The job is {row.state}; only a failed job can be tried again.")
    if row.deadline_at and row.deadline_at <= database_now(session):
        raise StateConflict("The job's deadline has passed; submit it anew with a later one.", field="deadline_at")
    _write(
        session,
        row,
        "retried",
        {},
        state=JobState.QUEUED,
        failures=0,
        error=None,
        # What was refused is rehearsed anew.
        canary=row.canary if row.canary and row.canary["passed"] else None,
        phase=None,
        progress=None,
        run_at=func.now(),
        started_at=None,
        finished_at=None,
    )
    return get(session, project_id, job_id)


# Workers


def claim(session: Session, pool: str, worker: str, settings: Settings) -> Claim | None:
    """Take the pool's next due job, if there is one: highest priority first, then the one that has waited longest."""
    due = (
        select(JobRow.id)
        .where(JobRow.pool == pool, *is_due())
        .order_by(JobRow.priority.desc(), JobRow.run_at, JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    row = session.scalars(
        update(JobRow)
        .where(JobRow.id == due.c.id)
        .values(
            state=JobState.RUNNING,
            epoch=JobRow.epoch + 1,
            last_seq=JobRow.last_seq + 1,
            worker=worker,
            claimed_at=func.now(),
            lease_until=_lease_end(settings),
            started_at=func.coalesce(JobRow.started_at, func.now()),
            phase=None,
            progress=None,
        )
        .returning(JobRow)
        .execution_options(synchronize_session=False, populate_existing=True)
    ).one_or_none()
    if row is None:
        return None
    record(session, row.id, row.last_seq, "claimed", {"worker": worker, "epoch": row.epoch})
    job = get(session, None, row.id)
    return Claim(job, row.project_id, row.epoch, row.cancel_requested, row.worker_seconds)


def heartbeat(session: Session, job_id: UUID, epoch: int, progress: Progress | None, settings: Settings) -> bool:
    """Extend the lease and tell how far the work is; the answer is whether to cancel.

    Raises LeaseLost: the engine must be killed now.
    """
    row = _held(session, job_id, epoch)
    values: dict[str, Any] = {"lease_until": _lease_end(settings)}
    if progress is None:
        _update(session, row, values)
        return row.cancel_requested
    old, new = row.progress or {}, storable(progress.model_dump(mode="json"))
    values |= {"phase": progress.phase, "progress": new}
    if (old.get("phase"), old.get("block")) == (new["phase"], new["block"]):
        _update(session, row, values)
    else:
        _write(session, row, "progress", new, **values)
    return row.cancel_requested


def rehearsed(session: Session, job_id: UUID, epoch: int, canary: Canary) -> None:
    """Keep what a rehearsal made of the plan, in the job and in its history. Raises LeaseLost."""
    found = storable(canary.model_dump(mode="json"))
    _write(session, _held(session, job_id, epoch), "canary", found, canary=found)


def finish(session: Session, job_id: UUID, epoch: int, artifact: catalogue.NewArtifact) -> ArtifactView:
    """End a job with its artifact, in one transaction: `rejected` when the gate says that the budget is missed.

    Safe to call again when the first commit's answer was lost. Raises LeaseLost, or CancelPending where a person has
    asked for a cancel.
    """
    assert artifact.manifest.job_id == job_id, "the manifest names another job"
    try:
        row = _held(session, job_id, epoch)
    except LeaseLost:
        if catalogue.is_artifact_of(session, artifact.manifest.artifact_id, job_id, epoch):
            return catalogue.get_artifact(session, None, artifact.manifest.artifact_id)
        raise
    if row.cancel_requested:
        raise CancelPending("A cancel was asked for before the job was finished.")
    catalogue.add_artifact(session, row, artifact)
    if artifact.calibration is not None:
        calibrations.add(session, row, artifact.calibration)
    if artifact.took is not None:
        history.record(session, row, artifact.manifest.recipe, artifact.took, artifact.manifest.report)
    state = JobState.REJECTED if artifact.verdict is Verdict.MISSED else JobState.SUCCEEDED
    _end(session, row, state, {"artifact_id": str(artifact.manifest.artifact_id), "verdict": artifact.verdict})
    return catalogue.get_artifact(session, None, artifact.manifest.artifact_id)


def fail(session: Session, job_id: UUID, epoch: int, error: JobError, settings: Settings) -> JobState:
    """End a job with an error, or queue it for a later try when the error is retryable and tries are left.

    A job that was to be cancelled is cancelled. Raises LeaseLost.
    """
    row = _held(session, job_id, epoch)
    if row.cancel_requested:
        return _end(session, row, JobState.CANCELLED, {})
    if not error.retryable:
        return _fail(session, row, error)
    delay = min(settings.retry_delay_seconds * 2**row.failures, MAX_RETRY_DELAY_SECONDS)
    run_at = func.now() + timedelta(seconds=delay)
    return _count_failure(session, row, error, settings, reason="error", last_error=error, run_at=run_at)


def release(session: Session, job_id: UUID, epoch: int) -> None:
    """Give a job back because the worker stops: it is queued now, and no failure is counted. Raises LeaseLost."""
    row = _held(session, job_id, epoch)
    if row.cancel_requested:
        _end(session, row, JobState.CANCELLED, {})
    else:
        _requeue(session, row, {"reason": "drained"})


def acknowledge_cancel(session: Session, job_id: UUID, epoch: int) -> None:
    """The worker has stopped a job that was to be cancelled. Raises LeaseLost, or StateConflict if nobody asked."""
    row = _held(session, job_id, epoch)
    if not row.cancel_requested:
        raise StateConflict("Nobody has asked for a cancel of this job.")
    _end(session, row, JobState.CANCELLED, {})


# The dispatcher


def rescue(session: Session, settings: Settings, limit: int = 100) -> list[UUID]:
    """Take jobs from workers whose lease has run out: queued again, failed after too many times, or cancelled."""
    expired = _locked(session, [in_state(JobState.RUNNING), JobRow.lease_until < func.now()], limit)
    for row in expired:
        # The worker may have died at any moment of its lease; no more than that is counted as work.
        until = func.least(func.now(), JobRow.lease_until)
        if row.cancel_requested:
            _end(session, row, JobState.CANCELLED, {}, until=until)
        else:
            error = WorkerLost(
                f"The worker stopped answering; that was failure {row.failures + 1} of {settings.max_failures}. See "
                "its log, and whether memory ran out."
            )
            _count_failure(session, row, error.as_job_error(), settings, reason="lease_lost", until=until)
    return [row.id for row in expired]


def expire_deadlines(session: Session, limit: int = 100) -> list[UUID]:
    """End jobs that are past their deadline: failed, or cancelled where that was asked for."""
    late = _locked(session, [in_state(JobState.QUEUED, JobState.RUNNING), JobRow.deadline_at <= func.now()], limit)
    for row in late:
        if row.cancel_requested:
            _end(session, row, JobState.CANCELLED, {})
        else:
            error = DeadlineExceeded("The job was not finished by its deadline.", field="deadline_at")
            _fail(session, row, error.as_job_error())
    return [row.id for row in late]


# What they share


def _lease_end(settings: Settings) -> ColumnElement[datetime]:
    return func.now() + timedelta(seconds=settings.lease_seconds)


def _ended(state: JobState) -> str:
    return "been cancelled" if state is JobState.CANCELLED else "been rejected" if state is JobState.REJECTED else state


def _held(session: Session, job_id: UUID, epoch: int) -> JobRow:
    """The fence: the row, locked, of a job that this epoch still holds. Raises LeaseLost."""
    query = select(JobRow).where(JobRow.id == job_id, JobRow.epoch == epoch, JobRow.state == JobState.RUNNING)
    row = session.scalars(query.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if row is None:
        raise LeaseLost(f"Claim {epoch} of job {job_id} does not hold it any more.")
    return row


def _owned(session: Session, project_id: UUID, job_id: UUID) -> JobRow:
    """The row, locked, of a job of this project. Raises NotFound."""
    query = select(JobRow).where(JobRow.id == job_id, JobRow.project_id == project_id)
    row = session.scalars(query.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id}.")
    return row


def _locked(session: Session, conditions: list[ColumnElement[bool]], limit: int) -> list[JobRow]:
    """Rows that nobody else holds at this moment, locked."""
    query = select(JobRow).where(*conditions).limit(limit).with_for_update(skip_locked=True)
    return list(session.scalars(query.execution_options(populate_existing=True)))


def _update(session: Session, row: JobRow, values: dict[str, Any]) -> int:
    """Write a locked row; returns its last_seq. The guard repeats what the lock promises."""
    same = (JobRow.id == row.id, JobRow.epoch == row.epoch, JobRow.state == row.state)
    written = update(JobRow).where(*same).values(**values).returning(JobRow.last_seq)
    return session.execute(written.execution_options(synchronize_session=False)).scalar_one()


def _write(session: Session, row: JobRow, event: EventType, data: dict[str, Any], **values: Any) -> None:
    """Change a locked row and tell its history."""
    seq = _update(session, row, {**values, "last_seq": JobRow.last_seq + 1})
    record(session, row.id, seq, event, data)


def _leave_worker(row: JobRow, until: ColumnElement[datetime] | None) -> dict[str, Any]:
    """The columns of a lease, given up; the time it took is added up."""
    if row.state != JobState.RUNNING:
        return {}
    seconds = func.extract("epoch", (func.now() if until is None else until) - JobRow.claimed_at)
    return {"lease_until": None, "claimed_at": None, "worker_seconds": JobRow.worker_seconds + seconds}


def _end(
    session: Session,
    row: JobRow,
    state: JobState,
    data: dict[str, Any],
    until: ColumnElement[datetime] | None = None,
    **values: Any,
) -> JobState:
    # Each state in which a job ends is also the name of the event that tells so.
    event: Any = state.value
    leaving = _leave_worker(row, until)
    _write(session, row, event, data, state=state, finished_at=func.now(), **leaving, **values)
    return state


def _fail(session: Session, row: JobRow, error: JobError, **values: Any) -> JobState:
    problem = storable(error.model_dump(mode="json"))
    return _end(session, row, JobState.FAILED, {"error": problem}, error=problem, **values)


def _requeue(
    session: Session,
    row: JobRow,
    data: dict[str, Any],
    until: ColumnElement[datetime] | None = None,
    **values: Any,
) -> JobState:
    leaving = _leave_worker(row, until)
    _write(session, row, "requeued", data, state=JobState.QUEUED, phase=None, progress=None, **leaving, **values)
    return JobState.QUEUED


def _count_failure(
    session: Session,
    row: JobRow,
    error: JobError,
    settings: Settings,
    *,
    reason: Literal["error", "lease_lost"],
    last_error: JobError | None = None,
    until: ColumnElement[datetime] | None = None,
    **values: Any,
) -> JobState:
    """One more failure: the last that is allowed ends the job with `error`, any before queues it again."""
    failures = row.failures + 1
    if failures >= settings.max_failures:
        return _fail(session, row, error, until=until, failures=failures)
    data: dict[str, Any] = {"reason": reason, "failures": failures}
    if last_error:
        data["error"] = last_error.model_dump(mode="json")
    return _requeue(session, row, data, until=until, failures=failures, **values)
