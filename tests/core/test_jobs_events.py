"""The history of jobs: a reader of all events misses none and gets none twice; old months go."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from tests.core.builders import make_spec, submit_job

from paredown.contracts.job import JobEvent
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.partitions import maintain_partitions
from paredown.core.settings import Settings


def read_all(database: Database, cursor: jobs.EventCursor, limit: int) -> tuple[list[JobEvent], jobs.EventCursor]:
    found: list[JobEvent] = []
    while True:
        with database.transaction() as session:
            page, cursor = jobs.new_events(session, cursor, limit)
        found += page
        if len(page) < limit:
            return found, cursor


def start_reading(database: Database) -> jobs.EventCursor:
    with database.transaction() as session:
        found, cursor = jobs.new_events(session, None, 10)
    assert found == []
    return cursor


def test_reader_begins_at_this_moment(database: Database, project: UUID) -> None:
    submit_job(database, project)
    cursor = start_reading(database)
    later = submit_job(database, project)
    found, cursor = read_all(database, cursor, 10)
    assert [(event.job_id, event.seq, event.type) for event in found] == [(later, 1, "queued")]
    assert read_all(database, cursor, 10)[0] == []


def test_pages_cut_anywhere_lose_nothing(database: Database, project: UUID) -> None:
    cursor = start_reading(database)
    # One transaction writes seven events, so pages end within it.
    with database.transaction() as session:
        ids = {jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key=None)[0].id for _ in range(7)}
    last = submit_job(database, project)
    for limit in (1, 2, 3, 7, 8, 100):
        found, _ = read_all(database, cursor, limit)
        assert len(found) == 8
        assert {event.job_id for event in found} == {*ids, last}


def test_event_that_commits_late_is_not_skipped(database: Database, project: UUID) -> None:
    """A transaction that began first commits last; in between a reader has read on."""
    cursor = start_reading(database)
    with database.transaction() as slow:
        late, _ = jobs.submit(slow, project, make_spec(), pool="cpu", idempotency_key=None)
        early = submit_job(database, project)
        found, cursor = read_all(database, cursor, 10)
        # What an open transaction may still precede is held back.
        assert found == []
    found, cursor = read_all(database, cursor, 10)
    assert [event.job_id for event in found] == [late.id, early]
    assert read_all(database, cursor, 10)[0] == []


def test_reader_beside_many_writers_gets_every_event_once(database: Database, project: UUID) -> None:
    cursor = start_reading(database)
    writers_done = threading.Event()

    def write(_: int) -> list[UUID]:
        return [submit_job(database, project) for _ in range(25)]

    def read() -> list[JobEvent]:
        nonlocal cursor
        found: list[JobEvent] = []
        while True:
            last_round = writers_done.is_set()
            page, cursor = read_all(database, cursor, 7)
            found += page
            if last_round:
                return found

    with ThreadPoolExecutor(7) as executor:
        reading = executor.submit(read)
        written = [job_id for ids in executor.map(write, range(6)) for job_id in ids]
        writers_done.set()
        found = [event.job_id for event in reading.result()]
    assert len(found) == len(set(found))
    assert set(found) == set(written)


def partitions(database: Database) -> set[str]:
    with database.transaction() as session:
        tree = text("SELECT relid::regclass::text FROM pg_partition_tree('job_events') WHERE isleaf")
        return set(session.scalars(tree))


def month_name(moment: datetime) -> str:
    return f"job_events_y{moment:%Y}m{moment:%m}"


def test_months_are_made_ahead_and_take_over_what_the_default_holds(database: Database, project: UUID) -> None:
    job_id = submit_job(database, project)
    with database.transaction() as session:
        before = jobs.events_after(session, job_id, 0)
        assert session.scalar(text("SELECT count(*) FROM job_events_default")) == 1
    for _ in range(2):
        with database.transaction() as session:
            assert maintain_partitions(session, retention_days=90)
        names = partitions(database)
        assert len(names) == 4
        assert month_name(datetime.now(UTC)) in names
    with database.transaction() as session:
        assert session.scalar(text("SELECT count(*) FROM job_events_default")) == 0
        assert jobs.events_after(session, job_id, 0) == before
    other = submit_job(database, project)
    with database.transaction() as session:
        assert session.scalar(text("SELECT count(*) FROM job_events_default")) == 0
        assert len(jobs.events_after(session, other, 0)) == 1


def test_only_months_older_than_the_retention_go(database: Database, project: UUID) -> None:
    job_id = submit_job(database, project)
    now = datetime.now(UTC)
    kept, dropped = now - timedelta(days=80), now - timedelta(days=140)
    with database.transaction() as session:
        for seq, at in ((2, kept), (3, dropped)):
            start = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            end = (start + timedelta(days=32)).replace(day=1)
            session.execute(
                text(
                    f"CREATE TABLE {month_name(at)} PARTITION OF job_events "
                    f"FOR VALUES FROM ('{start:%Y-%m-%d}Z') TO ('{end:%Y-%m-%d}Z')"
                )
            )
            session.execute(
                text("INSERT INTO job_events (job_id, seq, at, type, data) VALUES (:job, :seq, :at, 'progress', '{}')"),
                {"job": job_id, "seq": seq, "at": at},
            )
        # And what never had a month of its own.
        session.execute(
            text("INSERT INTO job_events (job_id, seq, at, type, data) VALUES (:job, 4, :at, 'progress', '{}')"),
            {"job": job_id, "at": now - timedelta(days=400)},
        )
        assert maintain_partitions(session, retention_days=90)
        assert [event.seq for event in jobs.events_after(session, job_id, 0)] == [1, 2]
    names = partitions(database)
    assert month_name(kept) in names
    assert month_name(dropped) not in names


def test_busy_table_puts_the_maintenance_off(database: Database, project: UUID, settings: Settings) -> None:
    with database.transaction() as writer:
        jobs.submit(writer, project, make_spec(), pool="cpu", idempotency_key=None)
        with database.transaction() as session:
            assert not maintain_partitions(session, retention_days=90)
            # The transaction is still of use.
            assert jobs.due_pools(session) == {}
    assert partitions(database) == {"job_events_default"}
    with database.transaction() as session:
        assert maintain_partitions(session, retention_days=90)
