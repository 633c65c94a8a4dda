"""The monthly partitions of job_events: made ahead, dropped when older than an operator keeps them."""

import re
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from paredown.core.db import LOCK_NOT_AVAILABLE, database_now

MONTHS_AHEAD = 2
_NAME_FORMAT = "job_events_y%Ym%m"
_NAME = re.compile(r"job_events_y\d{4}m\d\d")
_LEAVES = text("SELECT relid::regclass::text FROM pg_partition_tree('job_events') WHERE isleaf")


def maintain_partitions(session: Session, retention_days: int) -> bool:
    """Make the partitions of this month and the next ones; remove history older than the retention.

    A partition goes when its last day is old enough, so most history is kept up to a month longer. Writers wait behind
    the lock that this needs once a month, so it gives up after two seconds: False says that the next call must do it.
    """
    now = database_now(session)
    oldest_kept = now - timedelta(days=retention_days)
    existing = {name for name in session.scalars(_LEAVES) if _NAME.fullmatch(name)}
    months = [_month(now)]
    for _ in range(MONTHS_AHEAD):
        months.append(_next_month(months[-1]))
    missing = [month for month in months if month.strftime(_NAME_FORMAT) not in existing]
    outdated = [name for name in sorted(existing) if _end(name) <= oldest_kept]
    try:
        with session.begin_nested():
            session.execute(text("SET LOCAL lock_timeout = '2s'"))
            if missing or outdated:
                # The parent first and then its partitions, in the order in which writers take them: no deadlock.
                session.execute(text("LOCK TABLE job_events IN ACCESS EXCLUSIVE MODE"))
            for month in missing:
                _create(session, month)
            for name in outdated:
                session.execute(text(f"DROP TABLE {name}"))
            session.execute(text("DELETE FROM job_events_default WHERE at < :oldest"), {"oldest": oldest_kept})
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        return False
    return True


def _create(session: Session, month: datetime) -> None:
    """Attach a table for one month, with whatever of that month the default partition has taken in meanwhile."""
    name, end = month.strftime(_NAME_FORMAT), _next_month(month)
    session.execute(text(f"CREATE TABLE {name} (LIKE job_events INCLUDING DEFAULTS)"))
    taken = "DELETE FROM job_events_default WHERE at >= :start AND at < :end RETURNING *"
    move = f"WITH taken AS ({taken}) INSERT INTO {name} SELECT * FROM taken"  # noqa: S608 - the name is ours
    session.execute(text(move), {"start": month, "end": end})
    bounds = f"FROM ('{month.isoformat()}') TO ('{end.isoformat()}')"
    session.execute(text(f"ALTER TABLE job_events ATTACH PARTITION {name} FOR VALUES {bounds}"))


def _month(moment: datetime) -> datetime:
    return datetime(moment.year, moment.month, 1, tzinfo=UTC)


def _next_month(month: datetime) -> datetime:
    return _month(month + timedelta(days=31))


def _end(name: str) -> datetime:
    return _next_month(datetime.strptime(name, _NAME_FORMAT).replace(tzinfo=UTC))
