"""The history of jobs: written with each change of state, read by streams that must miss nothing.

`seq` counts from 1 within a job. It is taken from the job's row under that row's lock, so it has no gaps and lies in
the order of the commits. Across jobs there is no such order: a transaction that began early may commit late. Each event
therefore carries its transaction's id, and a reader of all events goes no further than the oldest transaction that is
still open; whatever commits later has a larger id, or is that one.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Integer, Uuid, cast, func, insert, literal, select, text, tuple_
from sqlalchemy.orm import Session

from paredown.contracts.job import JobEvent
from paredown.core.storable import storable
from paredown.core.tables import JobEventRow

# A reader is never further behind than this; it lets the database leave old partitions alone.
_RECENT = timedelta(days=1)
_BEFORE_ALL = UUID(int=0)


@dataclass(frozen=True)
class EventCursor:
    """How far the events of all jobs have been read: up to and including this one."""

    position: int
    job_id: UUID = _BEFORE_ALL
    seq: int = 0


def record(session: Session, job_id: UUID, seq: int, type_: str, data: dict[str, Any]) -> None:
    """Write one event. Only core/jobs.py calls this, holding the lock of the job's row."""
    session.execute(insert(JobEventRow).values(job_id=job_id, seq=seq, type=type_, data=storable(data)))


def events_after(session: Session, job_id: UUID, seq: int, limit: int = 500) -> list[JobEvent]:
    """A job's events behind `seq`, oldest first. Whoever calls has checked that the job may be read."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.seq > seq)
    return [_event(row) for row in session.scalars(query.order_by(JobEventRow.seq).limit(limit))]


def new_events(session: Session, cursor: EventCursor | None, limit: int = 500) -> tuple[list[JobEvent], EventCursor]:
    """Events of all jobs behind the cursor, and the cursor for the next call; None begins at this moment.

    In the order of each job's seq. No event is skipped and none comes twice, however late its transaction commits. An
    event shows once no transaction older than its own is open.
    """
    # Asked first and alone: what is below this has ended, so the next statement sees all of it.
    oldest_open = session.scalar(select(cast(text("pg_snapshot_xmin(pg_current_snapshot())::text"), BigInteger)))
    assert oldest_open is not None
    if cursor is None:
        return [], EventCursor(oldest_open)
    behind = tuple_(literal(cursor.position, BigInteger), literal(cursor.job_id, Uuid), literal(cursor.seq, Integer))
    query = (
        select(JobEventRow)
        .where(
            tuple_(JobEventRow.position, JobEventRow.job_id, JobEventRow.seq) > behind,
            JobEventRow.position < oldest_open,
            JobEventRow.at > func.now() - _RECENT,
        )
        .order_by(JobEventRow.position, JobEventRow.job_id, JobEventRow.seq)
        .limit(limit)
    )
    rows = session.scalars(query).all()
    if len(rows) < limit:
        return [_event(row) for row in rows], EventCursor(oldest_open)
    last = rows[-1]
    return [_event(row) for row in rows], EventCursor(last.position, last.job_id, last.seq)


def _event(row: JobEventRow) -> JobEvent:
    return JobEvent.model_validate(
        {"job_id": row.job_id, "seq": row.seq, "at": row.at, "type": row.type, "data": row.data}
    )
