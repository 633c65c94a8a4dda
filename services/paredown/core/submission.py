"""Submitting a job, once for each Idempotency-Key. core/jobs.py has the other arrows, and offers this one too."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import insert
from sqlalchemy.orm import Session

from paredown.contracts.job import JobSpec, JobView, content_hash
from paredown.contracts.recipes import recipe_hash, recipe_name
from paredown.core import idempotency
from paredown.core.db import database_now
from paredown.core.errors import RequestInvalid
from paredown.core.events import record
from paredown.core.job_queries import get
from paredown.core.storable import check_storable, check_time
from paredown.core.tables import JobRow


@dataclass(frozen=True)
class Membership:
    """A job's place in a sweep. It is not due before `after_id`, another job of the sweep, has ended."""

    sweep_id: UUID
    position: int
    after_id: UUID | None = None


def submit(
    session: Session,
    project_id: UUID,
    spec: JobSpec,
    *,
    pool: str,
    idempotency_key: str | None,
    membership: Membership | None = None,
    asked: JobSpec | None = None,
) -> tuple[JobView, bool]:
    """Queue a job; the second value tells whether it is new. With a key that was used before, the first job comes back.

    A concurrent create with the same key is waited for. `asked` is the spec as it was sent, where an alias in it was
    resolved: the key stands for that. Raises IdempotencyMismatch when the key came with another spec,
    IdempotencyBusy when the wait took longer than the lock timeout.
    """
    body = spec.model_dump(mode="json")
    check_storable(body, "spec")
    job_id = uuid4()
    if idempotency_key is not None:
        request_hash = _request_hash(asked or spec)
        first = idempotency.reserve(session, project_id, idempotency_key, request_hash, job_id=job_id)
        if first != job_id:
            return get(session, project_id, first), False
    now = database_now(session)
    check_time(spec.run_at, "run_at")
    check_time(spec.deadline_at, "deadline_at")
    if spec.deadline_at and spec.deadline_at <= now:
        raise RequestInvalid("deadline_at lies in the past.", field="deadline_at")
    session.execute(
        insert(JobRow).values(
            id=job_id,
            project_id=project_id,
            sweep_id=membership.sweep_id if membership else None,
            sweep_position=membership.position if membership else None,
            after_id=membership.after_id if membership else None,
            spec=body,
            model=spec.model,
            recipe_hash=recipe_hash(spec.recipe),
            recipe_name=recipe_name(spec.recipe),
            pool=pool,
            priority=spec.priority,
            run_at=_first_turn(spec, now, membership),
            deadline_at=spec.deadline_at,
            last_seq=1,
        )
    )
    record(session, job_id, 1, "queued", {"pool": pool})
    return get(session, project_id, job_id), True


def _first_turn(spec: JobSpec, now: datetime, membership: Membership | None) -> datetime:
    """No earlier than now: a time in the past is no way to the front of the queue. Jobs of a sweep take turns in the
    order of their recipes, though all are made at one moment."""
    position = membership.position if membership else 0
    return max(spec.run_at or now, now) + timedelta(microseconds=position)


def replay(session: Session, project_id: UUID, spec: JobSpec, idempotency_key: str) -> JobView | None:
    """The job that was made with this key before, if one was: for a caller who wants to check nothing anew.

    Raises IdempotencyMismatch when the key came with another spec.
    """
    first = idempotency.known(session, project_id, idempotency_key, _request_hash(spec))
    return None if first is None else get(session, project_id, first)


def _request_hash(spec: JobSpec) -> str:
    return content_hash(spec.model_dump(mode="json"))
