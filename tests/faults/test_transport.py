"""Redis may lose everything, or be away: hints are lost, jobs are not."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from tests.faults.house import House

from paredown.contracts.job import JobState, Phase
from paredown.local.postgres import free_port
from paredown.local.redis import _binary

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

# A job that needs no engine to end: its recipe does not fit its model, which only the fetched files show.
UNFIT = {"recipe": [{"method": "rtn", "group_size": 256}]}


def flush_with_twenty_queued(house: House, **fields: object) -> None:
    house.start("worker")
    with house.held_at(Phase.FETCH) as gate:
        held = house.submit(**fields)
        house.start("dispatcher")
        assert gate.reached.wait(60), house.tail()
        queued = [house.submit(**fields) for _ in range(20)]
        # Hints for the twenty are in their list, and one is in the worker's hands.
        time.sleep(1)
        with redis.Redis.from_url(house.settings.redis_url) as client:
            client.flushall()
        assert [house.job(job).state for job in queued] == [JobState.QUEUED] * 20
    for job in (held, *queued):
        house.wait_end(job, 900)
    house.check_settled(held, *queued)


def test_twenty_queued_jobs_outlive_flushall(house: House) -> None:
    flush_with_twenty_queued(house, **UNFIT)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_queued_jobs_outlive_flushall_and_all_succeed(house: House) -> None:
    flush_with_twenty_queued(house)


@contextmanager
def own_redis(directory: Path, port: int) -> Iterator[None]:
    process = subprocess.Popen(
        [_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    try:
        with redis.Redis(port=port) as client:
            deadline = time.monotonic() + 20
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_jobs_queued_while_redis_is_away_run_when_it_is_back(house: House, tmp_path: Path) -> None:
    port = free_port()
    house.settings = house.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}/0"})
    with own_redis(tmp_path, port):
        house.start()
        first = house.submit(**UNFIT)
        house.wait_end(first)
    # The worker may have a hint or two in hand, and runs what they find.
    unheard = [house.submit(**UNFIT)]

    def unheeded() -> bool:
        if house.job(unheard[-1]).state.terminal:
            unheard.append(house.submit(**UNFIT))
        return "redis_unavailable" in house.log("dispatcher")

    house.wait(unheeded, "word of Redis' absence")
    with own_redis(tmp_path, port):
        jobs = [first, *unheard, house.submit(**UNFIT)]
        for job in jobs:
            house.wait_end(job)
        house.check_settled(*jobs)
    assert house.log("dispatcher").count("redis_unavailable") == 1
