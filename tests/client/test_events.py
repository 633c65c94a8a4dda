"""A job's events through the SDK: each once and in order, whatever the network does."""

import threading
import time

import pytest
from tests.client.conftest import ApiServer, BreakingProxy, House

from paredown.client.client import PareClient
from paredown.client.errors import PareApiError
from paredown.client.events import parse_stream
from paredown.contracts.job import JobError, JobEvent, JobState, Phase, Progress
from paredown.contracts.report import Verdict
from paredown.core import jobs

pytestmark = pytest.mark.usefixtures("no_pauses")


def progress(block: int) -> Progress:
    return Progress(phase=Phase.COMPRESS, fraction=block / 20, block=block, num_blocks=20)


def work(house: House, blocks: int, pause_seconds: float, verdict: Verdict | None = None) -> threading.Thread:
    """A worker's writes, from a thread of its own."""

    def run() -> None:
        claim = house.claim()
        for block in range(1, blocks + 1):
            time.sleep(pause_seconds)
            house.call(jobs.heartbeat, claim.job.id, claim.epoch, progress(block), house.settings)
        house.finish_claim(claim, verdict)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def seqs(events: list[JobEvent]) -> list[int]:
    return [event.seq for event in events]


def test_a_finished_jobs_whole_history_is_told(client: PareClient, house: House) -> None:
    job = house.queue()
    work(house, 3, 0).join()
    events = list(client.events(job.id))
    assert [event.type for event in events] == ["queued", "claimed", *["progress"] * 3, "succeeded"]
    assert seqs(events) == list(range(1, 7))


def test_live_events_come_once_and_in_order_over_connections_that_break(
    shaky: PareClient, proxy: BreakingProxy, house: House
) -> None:
    job = house.queue()
    # Each of the first connections breaks within an answer, some in the middle of an event.
    proxy.cuts = [350, 0, 700, 901, 1300, 450, 0, 800]
    worker = work(house, 15, 0.05)
    events = list(shaky.events(job.id))
    worker.join()
    assert seqs(events) == list(range(1, 19))
    assert events[-1].type == "succeeded"
    assert proxy.connections > 8


def test_a_restart_of_the_service_is_waited_out(server: ApiServer, client: PareClient, house: House) -> None:
    job = house.queue()
    worker = work(house, 10, 0.15)
    seen: list[JobEvent] = []
    restarted = False
    for event in client.events(job.id):
        seen.append(event)
        if event.seq == 4 and not restarted:
            restarted = True
            threading.Thread(target=lambda: (server.stop(), time.sleep(0.3), server.start())).start()
    worker.join()
    assert seqs(seen) == list(range(1, 14))


def test_events_after_the_last_one_known(client: PareClient, house: House) -> None:
    job = house.queue()
    work(house, 3, 0).join()
    assert seqs(list(client.events(job.id, last_event_id=4))) == [5, 6]
    assert list(client.events(job.id, last_event_id=6)) == []


def test_a_retried_job_is_followed_past_its_failure(client: PareClient, house: House) -> None:
    job = house.queue()
    claim = house.claim()
    house.call(jobs.fail, job.id, claim.epoch, JobError(code="x", detail="broke"), house.settings)
    house.call(jobs.retry, house.project, job.id)
    worker = work(house, 1, 0.2)
    types = [event.type for event in client.events(job.id)]
    worker.join()
    assert types == ["queued", "claimed", "failed", "retried", "claimed", "progress", "succeeded"]


@pytest.mark.parametrize(
    ("verdict", "state"), [(Verdict.PASSED, JobState.SUCCEEDED), (Verdict.MISSED, JobState.REJECTED)]
)
def test_wait_gives_the_job_as_it_ended(client: PareClient, house: House, verdict: Verdict, state: JobState) -> None:
    job = house.queue()
    worker = work(house, 2, 0.05, verdict)
    heard: list[JobEvent] = []
    final = client.wait(job.id, heard.append)
    worker.join()
    assert final.state is state
    assert final.artifact_id
    assert heard[-1].terminal


def test_a_service_that_stays_away_is_given_up(server: ApiServer, client: PareClient, house: House) -> None:
    job = house.queue()
    events = client.events(job.id, patience_seconds=0.5)
    assert next(events).type == "queued"
    server.stop()
    try:
        with pytest.raises(PareApiError) as caught:
            list(events)
        assert caught.value.code in ("service_unreachable", "stream_ended")
    finally:
        server.start()


def test_an_unknown_job_is_not_waited_for(client: PareClient) -> None:
    with pytest.raises(PareApiError) as caught:
        list(client.events("00000000-0000-0000-0000-000000000000"))
    assert caught.value.code == "not_found"


def test_a_stream_is_cut_into_events_as_the_standard_says() -> None:
    lines = [
        ": hello",
        "",
        "id: 1",
        "event: progress",
        'data: {"a":',
        "data: 1}",
        "",
        "data:x",
        "",
        "id: 3",
        "data: cut",
    ]
    assert [(event.id, event.event, event.data) for event in parse_stream(lines)] == [
        ("1", "progress", '{"a":\n1}'),
        ("1", "message", "x"),
    ]
