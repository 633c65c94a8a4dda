"""One result for each Idempotency-Key, however often the request arrives.

The key's row is written first in the transaction that makes what it stands for, so that a concurrent request with the
same key waits for that transaction to end.
"""

from uuid import UUID

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from paredown.core.db import LOCK_NOT_AVAILABLE
from paredown.core.errors import IdempotencyBusy, IdempotencyMismatch, RequestInvalid
from paredown.core.storable import check_storable
from paredown.core.tables import IdempotencyRow

MAX_KEY_LENGTH = 255


def reserve(
    session: Session,
    project_id: UUID,
    key: str,
    request_hash: str,
    *,
    job_id: UUID | None = None,
    sweep_id: UUID | None = None,
    search_id: UUID | None = None,
) -> UUID:
    """What this key stands for: the given id when the key is new. The insert waits for a concurrent one to end.

    Raises IdempotencyMismatch when the key came with another request, IdempotencyBusy when the wait took too long.
    """
    new = job_id or sweep_id or search_id
    assert new is not None, "a key stands for a job, a sweep or a search"
    _check_key(key)
    row = insert(IdempotencyRow).values(
        project_id=project_id,
        key=key,
        request_hash=request_hash,
        job_id=job_id,
        sweep_id=sweep_id,
        search_id=search_id,
    )
    row = row.on_conflict_do_nothing()
    while True:
        try:
            inserted = session.scalar(row.returning(IdempotencyRow.key))
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise IdempotencyBusy(
                "The first request with this Idempotency-Key is still under way; send it again in a moment.",
                field="Idempotency-Key",
            ) from error
        if inserted is not None:
            return new
        # None where the dispatcher has just forgotten the key: then it is new.
        if first := session.get(IdempotencyRow, (project_id, key)):
            return _same_request(first, request_hash)


def known(session: Session, project_id: UUID, key: str, request_hash: str) -> UUID | None:
    """What an earlier request with this key has made. Raises IdempotencyMismatch when that was another request."""
    _check_key(key)
    first = session.get(IdempotencyRow, (project_id, key))
    return None if first is None else _same_request(first, request_hash)


def _check_key(key: str) -> None:
    check_storable(key, "Idempotency-Key")
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise RequestInvalid(f"An Idempotency-Key has 1 to {MAX_KEY_LENGTH} characters.", field="Idempotency-Key")


def _same_request(first: IdempotencyRow, request_hash: str) -> UUID:
    made = first.job_id or first.sweep_id or first.search_id
    if first.request_hash != request_hash or made is None:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another request; use a new key for a new one.", field="Idempotency-Key"
        )
    return made
