"""Submitting a job, once for each Idempotency-Key. core/jobs.py has the other arrows, and offers this one too."""

from uuid import UUID, uuid4

from sqlalchemy import insert
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from paredown.contracts.job import JobSpec, JobView, content_hash
from paredown.contracts.recipes import recipe_hash, recipe_name
from paredown.core.db import LOCK_NOT_AVAILABLE, database_now
from paredown.core.errors import IdempotencyBusy, IdempotencyMismatch, RequestInvalid
from paredown.core.events import record
from paredown.core.job_queries import get
from paredown.core.storable import check_storable, check_time
from paredown.core.tables import IdempotencyRow, JobRow

MAX_KEY_LENGTH = 255


def submit(
    session: Session, project_id: UUID, spec: JobSpec, *, pool: str, idempotency_key: str | None
) -> tuple[JobView, bool]:
    """Queue a job; the second value tells whether it is new. With a key that was used before, the first job comes back.

    A concurrent create with the same key is waited for. Raises IdempotencyMismatch when the key came with another spec,
    IdempotencyBusy when the wait took longer than the lock timeout.
    """
    body = spec.model_dump(mode="json")
    check_storable(body, "spec")
    job_id = uuid4()
    if idempotency_key is not None:
        first = _reserve_key(session, project_id, idempotency_key, content_hash(body), job_id)
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
            spec=body,
            model=spec.model,
            recipe_hash=recipe_hash(spec.recipe),
            recipe_name=recipe_name(spec.recipe),
            pool=pool,
            priority=spec.priority,
            # No earlier than now: a time in the past is no way to the front of the queue.
            run_at=max(spec.run_at or now, now),
            deadline_at=spec.deadline_at,
            last_seq=1,
        )
    )
    record(session, job_id, 1, "queued", {"pool": pool})
    return get(session, project_id, job_id), True


def replay(session: Session, project_id: UUID, spec: JobSpec, idempotency_key: str) -> JobView | None:
    """The job that was made with this key before, if one was: for a caller who wants to check nothing anew.

    Raises IdempotencyMismatch when the key came with another spec.
    """
    _check_key(idempotency_key)
    first = session.get(IdempotencyRow, (project_id, idempotency_key))
    if first is None:
        return None
    return get(session, project_id, _same_request(first, content_hash(spec.model_dump(mode="json"))))


def _reserve_key(session: Session, project_id: UUID, key: str, request_hash: str, job_id: UUID) -> UUID:
    """The job that this key stands for: `job_id` when the key is new. The insert waits for a concurrent one to end."""
    _check_key(key)
    reserve = postgresql_insert(IdempotencyRow).values(
        project_id=project_id, key=key, request_hash=request_hash, job_id=job_id
    )
    reserve = reserve.on_conflict_do_nothing()
    while True:
        try:
            inserted = session.scalar(reserve.returning(IdempotencyRow.job_id))
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise IdempotencyBusy(
                "The first request with this Idempotency-Key is still under way; send it again in a moment.",
                field="Idempotency-Key",
            ) from error
        if inserted is not None:
            return job_id
        # None where the dispatcher has just forgotten the key: then it is new.
        if first := session.get(IdempotencyRow, (project_id, key)):
            return _same_request(first, request_hash)


def _check_key(key: str) -> None:
    check_storable(key, "Idempotency-Key")
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise RequestInvalid(f"An Idempotency-Key has 1 to {MAX_KEY_LENGTH} characters.", field="Idempotency-Key")


def _same_request(first: IdempotencyRow, request_hash: str) -> UUID:
    if first.request_hash != request_hash:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another job; use a new key for a new job.", field="Idempotency-Key"
        )
    return first.job_id
