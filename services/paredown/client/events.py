"""A job's events as the API streams them (SSE), across lost connections."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

import httpx
from pydantic import TypeAdapter

from paredown.client.errors import PareApiError, from_response
from paredown.client.transport import Transport, parse, pause_seconds
from paredown.contracts.job import JobEvent

_EVENT = TypeAdapter(JobEvent)

# The server sends a comment at least every 15 s; silence for longer means a dead connection.
SILENCE_SECONDS = 45.0
# How long the service may be away before `follow` gives up.
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class ServerSentEvent:
    id: str | None
    event: str
    data: str


def parse_stream(lines: Iterable[str]) -> Iterator[ServerSentEvent]:
    """Server-sent events as the HTML standard cuts them; an event cut off by a lost connection is not given."""
    event_id: str | None = None
    event, data = "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield ServerSentEvent(event_id, event, "\n".join(data))
            event, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            event_id = value
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)


def follow(
    transport: Transport,
    job_id: UUID,
    last_event_id: int | None,
    is_finished: Callable[[], bool],
    patience_seconds: float = PATIENCE_SECONDS,
) -> Iterator[JobEvent]:
    """Each event once and in order, until the job is finished. Reconnects where the last connection broke.

    Raises PareApiError: at once when the API refuses, after `patience_seconds` when it stays out of reach.
    """
    last_seq = last_event_id or 0
    attempt = 0
    away_since: float | None = None
    while True:
        try:
            for event in _connection(transport, job_id, last_seq):
                attempt, away_since = 0, None
                # A server that starts over may send what we have already.
                if event.seq > last_seq:
                    last_seq = event.seq
                    yield event
            # The server ends the stream after the terminal event, and also when it shuts down.
            if is_finished():
                return
            problem = PareApiError("stream_ended", "The stream of events ended before the job did.")
        except httpx.TransportError as error:
            problem = transport.unreachable(error)
        except PareApiError as error:
            if error.status not in (429, 502, 503, 504):
                raise
            problem = error
        attempt += 1
        away_since = away_since or time.monotonic()
        if time.monotonic() - away_since > patience_seconds:
            raise problem
        transport.sleep(min(3.0, pause_seconds(attempt)))


def _connection(transport: Transport, job_id: UUID, last_seq: int) -> Iterator[JobEvent]:
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if last_seq:
        headers["Last-Event-ID"] = str(last_seq)
    timeout = httpx.Timeout(10.0, read=SILENCE_SECONDS)
    with transport.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout) as response:
        if response.is_error:
            response.read()
            raise from_response(response)
        for message in parse_stream(response.iter_lines()):
            yield parse(_EVENT, message.data)
