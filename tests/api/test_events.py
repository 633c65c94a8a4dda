"""Following a job: nothing twice, nothing lost, in order, whoever disconnects."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from paredown.api import events
from paredown.api.routes import jobs as routes
from paredown.contracts.job import JobError, JobEvent, Phase, Progress
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.errors import DatabaseUnavailable
from paredown.core.events import EventCursor
from paredown.core.settings import Settings

SECONDS = 20


class Worker:
    """Moves one job along, as a worker would."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.block = 0
        self.ended = False

    def claim(self) -> "Worker":
        with self.database.transaction() as session:
            claim = jobs.claim(session, "cpu", "w", self.settings)
        assert claim is not None
        self.job_id, self.epoch = claim.job.id, claim.epoch
        return self

    def progress(self, message: str = "") -> None:
        self.block += 1
        step = Progress(phase=Phase.COMPRESS, fraction=0.5, block=self.block, num_blocks=100_000, message=message)
        with self.database.transaction() as session:
            jobs.heartbeat(session, self.job_id, self.epoch, step, self.settings)

    def fail(self) -> None:
        self.ended = True
        with self.database.transaction() as session:
            error = JobError(code="not_a_model", detail="It is not one.")
            jobs.fail(session, self.job_id, self.epoch, error, self.settings)


@pytest.fixture
def worker(database: Database, settings: Settings, new_job: Callable[..., UUID]) -> Worker:
    """A worker that holds a new job."""
    new_job()
    return Worker(database, settings).claim()


def follow(api: httpx.Client, job_id: UUID, last: int | None = None, **parameters: Any) -> Iterator[tuple[int, str]]:
    """(seq, type) of each event, until the server ends the stream."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(last)} if last is not None else {})
    with api.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, params=parameters, timeout=SECONDS) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                event = json.loads(fields["data"])
                assert (event["job_id"], event["type"]) == (str(job_id), fields["event"])
                assert event["seq"] == int(fields["id"])
                yield event["seq"], event["type"]
                fields = {}
            else:
                fields = {}


def test_a_stream_gives_the_past_then_the_present_and_ends(api: httpx.Client, worker: Worker) -> None:
    worker.progress()
    stream = follow(api, worker.job_id)
    assert [next(stream) for _ in range(3)] == [(1, "queued"), (2, "claimed"), (3, "progress")]
    worker.progress()
    assert next(stream) == (4, "progress")
    worker.fail()
    assert list(stream) == [(5, "failed")]


def test_a_finished_jobs_stream_is_its_past_and_ends(api: httpx.Client, worker: Worker) -> None:
    worker.fail()
    assert list(follow(api, worker.job_id)) == [(1, "queued"), (2, "claimed"), (3, "failed")]
    assert list(follow(api, worker.job_id, last=2)) == [(3, "failed")]
    assert list(follow(api, worker.job_id, last=3)) == []
    assert list(follow(api, worker.job_id, after=2)) == [(3, "failed")]
    # An id that was never given: nothing is missed.
    assert list(follow(api, worker.job_id, last=99)) == []


def test_a_retried_jobs_stream_goes_past_its_earlier_end(api: httpx.Client, worker: Worker) -> None:
    worker.fail()
    api.post(f"/v1/jobs/{worker.job_id}/retry")
    stream = follow(api, worker.job_id)
    assert [next(stream)[1] for _ in range(4)] == ["queued", "claimed", "failed", "retried"]
    worker.claim().fail()
    assert list(stream) == [(5, "claimed"), (6, "failed")]


def test_a_long_past_comes_in_several_reads(api: httpx.Client, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BACKLOG_EVENTS", 3)
    for _ in range(10):
        worker.progress()
    worker.fail()
    assert [seq for seq, _ in follow(api, worker.job_id)] == list(range(1, 14))
    assert [seq for seq, _ in follow(api, worker.job_id, last=6)] == list(range(7, 14))


def test_many_streams_that_break_and_resume_see_every_event_once(api: httpx.Client, worker: Worker) -> None:
    """Readers reconnect with Last-Event-ID at every third event while a writer writes as fast as it can."""
    seen: list[list[int]] = [[] for _ in range(6)]

    def read(mine: list[int]) -> None:
        finished = False
        while not finished:
            stream = follow(api, worker.job_id, last=mine[-1] if mine else None)
            for number, (seq, kind) in enumerate(stream, start=1):
                mine.append(seq)
                finished = kind == "failed"
                if number == 3 and not finished:
                    stream.close()
                    break

    readers = [threading.Thread(target=read, args=(mine,)) for mine in seen]
    for reader in readers:
        reader.start()
    for _ in range(60):
        worker.progress()
    worker.fail()
    for reader in readers:
        reader.join(SECONDS)
        assert not reader.is_alive()
    assert seen == [list(range(1, 64))] * 6


def test_streams_of_two_jobs_do_not_mix(
    api: httpx.Client, database: Database, settings: Settings, new_job: Callable[..., UUID]
) -> None:
    workers = []
    for _ in range(2):
        new_job()
        workers.append(Worker(database, settings).claim())
    streams = [follow(api, worker.job_id) for worker in workers]
    for stream in streams:
        assert [next(stream) for _ in range(2)] == [(1, "queued"), (2, "claimed")]
    workers[0].progress()
    workers[1].fail()
    workers[0].fail()
    assert list(streams[1]) == [(3, "failed")]
    assert list(streams[0]) == [(3, "progress"), (4, "failed")]


def test_an_event_that_commits_late_is_not_lost(
    api: httpx.Client, database: Database, settings: Settings, new_job: Callable[..., UUID]
) -> None:
    """Two jobs; the transaction that began first commits last."""
    first, second = new_job(), new_job()
    with database.transaction() as early:
        jobs.request_cancel(early, jobs.claim(early, "cpu", "w", settings).project_id, first)  # type: ignore[union-attr]
        with database.transaction() as late:
            claim = jobs.claim(late, "cpu", "w", settings)
            assert claim is not None
            assert claim.job.id == second
        stream = follow(api, first)
        assert next(stream) == (1, "queued")
        time.sleep(0.3)
    assert [next(stream), next(stream)] == [(2, "claimed"), (3, "cancel_requested")]
    stream.close()


def test_a_reader_that_is_too_slow_is_ended_and_resumes_without_loss(
    api: httpx.Client, server: Any, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUEUE_EVENTS", 4)
    port = int(server.url.rsplit(":", 1)[1])
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port))
        slow.sendall(
            f"GET /v1/jobs/{worker.job_id}/events HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: {api.headers['authorization']}\r\n\r\n".encode()
        )
        # Large enough that neither the kernel's buffers nor uvicorn's hold them all.
        deadline = time.monotonic() + SECONDS
        while _figure(api, "pare_event_streams_dropped_total") < 1:
            assert time.monotonic() < deadline
            worker.progress("x" * 200_000)
        slow.settimeout(SECONDS)
        received = b""
        while chunk := slow.recv(1 << 20):
            received += chunk
            if b"reconnect with Last-Event-ID" in received:
                break
    got = [int(line[4:]) for line in received.decode().splitlines() if line.startswith("id: ")]
    assert got == list(range(1, len(got) + 1))
    worker.fail()
    rest = [seq for seq, _ in follow(api, worker.job_id, last=got[-1])]
    assert got + rest == list(range(1, worker.block + 4))


def test_a_reader_that_takes_nothing_is_cut_off(
    api: httpx.Client,
    server: Any,
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(routes, "SEND_TIMEOUT_SECONDS", 0.5)
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        stuck.sendall(
            f"GET /v1/jobs/{worker.job_id}/events HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: {api.headers['authorization']}\r\n\r\n".encode()
        )
        _wait(lambda: _figure(api, "pare_event_streams") == 1)
        for _ in range(30):
            worker.progress("x" * 200_000)
        _wait(lambda: _figure(api, "pare_event_streams") == 0)
    assert "Traceback" not in capfd.readouterr().err


def test_a_stream_ends_in_time_for_its_key_to_be_looked_at_again(
    api: httpx.Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STREAM_SECONDS", 0.3)
    assert list(follow(api, worker.job_id)) == [(1, "queued"), (2, "claimed")]
    worker.fail()
    assert list(follow(api, worker.job_id, last=2)) == [(3, "failed")]


def test_an_open_stream_holds_no_connection_of_the_database(api: httpx.Client, server: Any, worker: Worker) -> None:
    pool = server.app.state.service.database.engine.pool
    streams = [follow(api, worker.job_id) for _ in range(30)]
    for stream in streams:
        assert next(stream) == (1, "queued")
    assert _figure(api, "pare_event_streams") == 30
    assert pool.checkedout() <= 1  # the poller's, for a moment
    worker.fail()
    for stream in streams:
        assert list(stream)[-1] == (3, "failed")
    _wait(lambda: _figure(api, "pare_event_streams") == 0)


def test_events_that_commit_in_another_order_than_they_began_come_in_order(
    api: httpx.Client, database: Database, settings: Settings, worker: Worker
) -> None:
    stream = follow(api, worker.job_id)
    assert [next(stream), next(stream)] == [(1, "queued"), (2, "claimed")]
    with database.transaction() as early:
        early.execute(text("SELECT pg_current_xact_id()"))
        worker.progress()
        step = Progress(phase=Phase.UPLOAD, fraction=0.9)
        jobs.heartbeat(early, worker.job_id, worker.epoch, step, settings)
    worker.fail()
    assert list(stream) == [(3, "progress"), (4, "progress"), (5, "failed")]


def test_nothing_falls_between_the_past_and_the_present(
    api: httpx.Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends after the stream was opened and before the poller knows where it stands."""
    opened, read = threading.Event(), jobs.new_events

    def late(session: Session, cursor: EventCursor | None, limit: int) -> tuple[list[JobEvent], EventCursor]:
        if cursor is None:
            assert opened.wait(SECONDS)
        return read(session, cursor, limit)

    monkeypatch.setattr(jobs, "new_events", late)
    received: list[tuple[int, str]] = []
    reader = threading.Thread(target=lambda: received.extend(follow(api, worker.job_id)))
    reader.start()
    _wait(lambda: _figure(api, "pare_event_streams") == 1)
    time.sleep(0.3)
    worker.fail()
    opened.set()
    reader.join(SECONDS)
    assert received == [(1, "queued"), (2, "claimed"), (3, "failed")]


def test_a_job_that_ends_while_its_past_is_read_ends_the_stream(
    api: httpx.Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = jobs.events_after

    def after_the_end(session: Session, job_id: UUID, seq: int, limit: int) -> list[JobEvent]:
        if not worker.ended:
            worker.fail()
        return read(session, job_id, seq, limit)

    monkeypatch.setattr(jobs, "events_after", after_the_end)
    assert list(follow(api, worker.job_id)) == [(1, "queued"), (2, "claimed"), (3, "failed")]


def test_streams_outlive_a_database_that_goes_away_for_a_moment(
    api: httpx.Client,
    worker: Worker,
    postgres_url: str,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = follow(api, worker.job_id)
    assert [next(stream), next(stream)] == [(1, "queued"), (2, "claimed")]
    read, failures = jobs.new_events, itertools.count()

    def away(*_: Any) -> Any:
        next(failures)
        raise DatabaseUnavailable("Not now.")

    monkeypatch.setattr(jobs, "new_events", away)
    plain = postgres_url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(plain, autocommit=True) as admin:
        name = database.engine.url.database
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    worker.progress()
    _wait(lambda: next(failures) > 2)
    monkeypatch.setattr(jobs, "new_events", read)
    worker.fail()
    assert list(stream) == [(3, "progress"), (4, "failed")]


def test_a_silent_stream_is_kept_alive(api: httpx.Client, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "PING_SECONDS", 0.1)
    with api.stream("GET", f"/v1/jobs/{worker.job_id}/events", timeout=SECONDS) as answer:
        lines = answer.iter_lines()
        assert any(line.startswith(": ping") for line in lines)


def test_events_also_come_in_pages(api: httpx.Client, worker: Worker) -> None:
    worker.fail()
    address = f"/v1/jobs/{worker.job_id}/events"
    page = api.get(address, headers={"Accept": "application/json"}, params={"limit": 2}).json()
    assert [event["type"] for event in page["items"]] == ["queued", "claimed"]
    assert (page["has_more"], page["after"]) == (True, "2")
    rest = api.get(address, params={"format": "json", "after": page["after"]}).json()
    assert [event["type"] for event in rest["items"]] == ["failed"]
    assert (rest["has_more"], rest["after"]) == (False, None)


def test_a_foreign_jobs_events_are_not_found(stranger: httpx.Client, worker: Worker) -> None:
    answer = stranger.get(f"/v1/jobs/{worker.job_id}/events")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def _figure(api: httpx.Client, name: str) -> float:
    lines = api.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
