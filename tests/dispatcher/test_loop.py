"""One turn of the dispatcher, and what it does without PostgreSQL or Redis."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from sqlalchemy import func, update
from structlog.testing import capture_logs

from paredown.contracts.job import JobSpec, JobState
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store
from paredown.core.tables import JobRow
from paredown.core.transport import MAX_HINTS, create_celery, queue_name, send_hint
from paredown.dispatcher.loop import Dispatcher
from paredown.local.postgres import free_port

SPEC = {"model": "file:///models/tiny", "recipe": [{"method": "rtn"}]}


@pytest.fixture
def settings(settings: Settings, redis_url: str) -> Settings:
    return settings.model_copy(update={"redis_url": redis_url, "dispatch_seconds": 0.05})


@pytest.fixture
def dispatcher(settings: Settings, database: Database) -> Dispatcher:
    return Dispatcher(settings, database, open_store(settings), create_celery(settings))


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def submit(database: Database, project: UUID, pool: str = "cpu", **fields: Any) -> UUID:
    with database.transaction() as session:
        spec = JobSpec.model_validate({**SPEC, **fields})
        job, _ = jobs.submit(session, project, spec, pool=pool, idempotency_key=None)
    return job.id


def state_of(database: Database, job_id: UUID) -> JobState:
    with database.transaction() as session:
        return jobs.get(session, None, job_id).state


def test_a_pool_with_due_work_gets_at_most_two_hints(
    dispatcher: Dispatcher, database: Database, project: UUID, broker: redis.Redis
) -> None:
    for _ in range(5):
        submit(database, project)
    submit(database, project, pool="gpu", run_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    for _ in range(5):
        dispatcher.turn()
    assert broker.llen(queue_name("cpu")) == MAX_HINTS
    assert broker.llen(queue_name("gpu")) == 0


def test_a_hint_names_a_pool_and_no_job(
    dispatcher: Dispatcher, database: Database, project: UUID, broker: redis.Redis
) -> None:
    job = submit(database, project)
    dispatcher.turn()
    [hint] = broker.lrange(queue_name("cpu"), 0, -1)
    assert str(job).encode() not in hint
    assert b"pare.work" in hint


def test_hints_arrive_again_after_flushall(
    dispatcher: Dispatcher, database: Database, project: UUID, broker: redis.Redis
) -> None:
    submit(database, project)
    dispatcher.turn()
    broker.flushall()
    dispatcher.turn()
    assert broker.llen(queue_name("cpu")) == 1


def test_a_lost_lease_is_rescued_and_hinted_in_one_turn(
    dispatcher: Dispatcher, database: Database, project: UUID, settings: Settings, broker: redis.Redis
) -> None:
    job = submit(database, project)
    with database.transaction() as session:
        assert jobs.claim(session, "cpu", "lost", settings)
        session.execute(update(JobRow).values(lease_until=func.now() - timedelta(seconds=1)))
    dispatcher.turn()
    assert state_of(database, job) is JobState.QUEUED
    assert broker.llen(queue_name("cpu")) == 1


def test_a_deadline_ends_a_job(dispatcher: Dispatcher, database: Database, project: UUID) -> None:
    job = submit(database, project)
    with database.transaction() as session:
        session.execute(update(JobRow).values(deadline_at=func.now() - timedelta(seconds=1)))
    dispatcher.turn()
    assert state_of(database, job) is JobState.FAILED


def test_without_redis_leases_are_rescued_all_the_same(database: Database, project: UUID, settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"})
    dispatcher = Dispatcher(away, database, open_store(settings), create_celery(away))
    job = submit(database, project)
    with database.transaction() as session:
        assert jobs.claim(session, "cpu", "lost", settings)
        session.execute(update(JobRow).values(lease_until=func.now() - timedelta(seconds=1)))
    started = time.monotonic()
    with capture_logs() as logs:
        dispatcher.turn()
        dispatcher.turn()
    assert state_of(database, job) is JobState.QUEUED
    assert time.monotonic() - started < 10
    assert [entry["event"] for entry in logs].count("redis_unavailable") == 1


def test_several_dispatchers_at_once_rescue_each_job_once(
    database: Database, project: UUID, settings: Settings
) -> None:
    lost = [submit(database, project) for _ in range(12)]
    with database.transaction() as session:
        while jobs.claim(session, "cpu", "lost", settings):
            pass
        session.execute(update(JobRow).values(lease_until=func.now() - timedelta(seconds=1)))
    stop = threading.Event()
    dispatchers = [Dispatcher(settings, database, open_store(settings), create_celery(settings)) for _ in range(3)]
    threads = [threading.Thread(target=dispatcher.run, args=(stop,)) for dispatcher in dispatchers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while any(state_of(database, job) is not JobState.QUEUED for job in lost):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    for job in lost:
        with database.transaction() as session:
            assert [event.type for event in jobs.events_after(session, job, 0)] == ["queued", "claimed", "requeued"]


def test_without_a_database_it_waits_and_stops_when_told(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": f"postgresql+psycopg://pare@127.0.0.1:{free_port()}/pare"})
    dispatcher = Dispatcher(away, Database(away), open_store(settings), create_celery(settings))
    stop = threading.Event()
    thread = threading.Thread(target=dispatcher.run, args=(stop,))
    with capture_logs() as logs:
        thread.start()
        time.sleep(1)
        assert thread.is_alive()
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert [entry["event"] for entry in logs].count("database_unavailable") == 1


def test_send_hint_says_whether_one_was_sent(settings: Settings, broker: redis.Redis) -> None:
    celery = create_celery(settings)
    assert [send_hint(celery, "cpu") for _ in range(3)] == [True, True, False]
