"""A job's events, live: one poller for the process feeds a bounded queue for each open stream.

A stream first registers, then reads the backlog with one short query, then follows its queue. Whatever comes twice is
known by its `seq` and passed over; a gap in `seq` is filled from the database. So nothing is lost and nothing doubled,
whichever of the two sees an event first. No stream holds a database session while it waits.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from uuid import UUID

import structlog
from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError
from sse_starlette import ServerSentEvent

from paredown.api.metrics import Metrics
from paredown.contracts.job import JobEvent
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.errors import DatabaseUnavailable
from paredown.core.jobs import EventCursor

QUEUE_EVENTS = 256
POLL_EVENTS = 1000
BACKLOG_EVENTS = 500
# How long a new stream waits for the poller's first word before it asks its reader to come back.
FIRST_POLL_SECONDS = 10.0
PING_SECONDS = 15
# A stream ends after so long, and its reader comes back: a revoked key reads no longer than this.
STREAM_SECONDS = 3600.0
# A reader that takes no byte for so long is cut off.
SEND_TIMEOUT_SECONDS = 30.0

_log = structlog.get_logger("pare.api.events")


class _Stream:
    """The queue of one open stream. None on it means: end now, the reader is to come back."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[JobEvent | None] = asyncio.Queue(QUEUE_EVENTS)
        self.timer = asyncio.get_running_loop().call_later(STREAM_SECONDS, self.end)

    def offer(self, event: JobEvent) -> bool:
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.end()
            return False
        return True

    def end(self) -> None:
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


class EventHub:
    """Reads new events for all streams of this process. Reads nothing while no stream is open."""

    def __init__(self, database: Database, poll_seconds: float, metrics: Metrics) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._metrics = metrics
        self._streams: dict[UUID, set[_Stream]] = defaultdict(set)
        self._cursor: EventCursor | None = None
        self._wanted = asyncio.Event()
        # Set while the cursor stands: every event committed from now on will be offered.
        self._ready = asyncio.Event()
        # A thread of its own, so that slow requests in the common pool do not hold up every stream.
        self._poller_thread = CapacityLimiter(1)

    async def run(self) -> None:
        """Polls until cancelled. An error ends no stream: the next poll goes on from the same cursor."""
        while True:
            if not self._streams:
                self._cursor = None
                self._ready.clear()
                self._wanted.clear()
                await self._wanted.wait()
            try:
                more = await self._poll()
            except Exception as error:  # noqa: BLE001 - streams outlive whatever the database does
                _log.warning("event_poll_failed", reason=str(error), exc_info=True)
                more = False
            if not more:
                await asyncio.sleep(self._poll_seconds)

    def close(self) -> None:
        """Asks every reader to come back, to another process."""
        for streams in self._streams.values():
            for stream in streams:
                stream.end()

    async def follow(self, job_id: UUID, last_seq: int, *, finished: bool) -> AsyncIterator[ServerSentEvent]:
        """The job's events after `last_seq`, to the terminal one. `finished`: the job was terminal a moment ago."""
        stream = self._open(job_id)
        try:
            yield ServerSentEvent(comment=f"events of job {job_id}", retry=1000, sep="\n")
            async with asyncio.timeout(FIRST_POLL_SECONDS):
                await self._ready.wait()
            while True:
                # From the event that the reader has last, so that a finished job is known even when nothing is new.
                seq, newest = max(0, last_seq - 1), None
                while events := await to_thread.run_sync(self._read_backlog, job_id, seq):
                    newest = events[-1]
                    seq = newest.seq
                    for event in events:
                        if event.seq > last_seq:
                            last_seq = event.seq
                            yield _message(event)
                    if len(events) < BACKLOG_EVENTS:
                        break
                # A retried job has terminal events in its past; only the newest counts.
                if newest.terminal if newest else finished:
                    return
                if newest is None:
                    # A Last-Event-ID that this job never had.
                    last_seq = 0
                while True:
                    live = await stream.queue.get()
                    if live is None:
                        yield _comment("reconnect with Last-Event-ID")
                        return
                    if live.seq > last_seq + 1:
                        break  # a gap, for the backlog to fill
                    if live.seq == last_seq + 1:
                        last_seq = live.seq
                        yield _message(live)
                        if live.terminal:
                            return
        except (TimeoutError, DatabaseUnavailable, SQLAlchemyError) as error:
            _log.warning("event_stream_broken", job_id=str(job_id), reason=str(error))
            yield _comment("no events can be read now; reconnect with Last-Event-ID")
        finally:
            self._close(job_id, stream)

    def _read_backlog(self, job_id: UUID, seq: int) -> list[JobEvent]:
        with self._database.transaction() as session:
            return jobs.events_after(session, job_id, seq, BACKLOG_EVENTS)

    async def _poll(self) -> bool:
        """Whether there may be more at once."""
        events, self._cursor = await to_thread.run_sync(self._read_new, self._cursor, limiter=self._poller_thread)
        self._ready.set()
        for event in events:
            for stream in tuple(self._streams.get(event.job_id, ())):
                if not stream.offer(event):
                    self._metrics.dropped_streams.inc()
                    self._forget(event.job_id, stream)
        return len(events) >= POLL_EVENTS

    def _read_new(self, cursor: EventCursor | None) -> tuple[list[JobEvent], EventCursor]:
        with self._database.transaction() as session:
            return jobs.new_events(session, cursor, POLL_EVENTS)

    def _open(self, job_id: UUID) -> _Stream:
        stream = _Stream()
        self._streams[job_id].add(stream)
        self._wanted.set()
        self._metrics.streams.inc()
        return stream

    def _close(self, job_id: UUID, stream: _Stream) -> None:
        self._metrics.streams.dec()
        stream.timer.cancel()
        self._forget(job_id, stream)

    def _forget(self, job_id: UUID, stream: _Stream) -> None:
        streams = self._streams.get(job_id)
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._streams[job_id]


def _message(event: JobEvent) -> ServerSentEvent:
    return ServerSentEvent(data=event.model_dump_json(), event=event.type, id=str(event.seq), sep="\n")


def _comment(text: str) -> ServerSentEvent:
    return ServerSentEvent(comment=text, sep="\n")
