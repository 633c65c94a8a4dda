"""Jobs that are stopped on purpose, and supervisors that are stopped without knowing it."""

import signal
import time
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from tests.faults.house import House

from paredown.contracts.job import JobState, Phase
from paredown.core.storage import open_store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

CANCEL_SECONDS = 30


def test_a_paused_supervisor_cannot_finish_the_job_it_lost(house: House) -> None:
    house.start()
    job = house.submit()
    house.wait_phase(job, Phase.COMPRESS, blocks=1)
    paused, engine = house.supervisor(job), house.engine(job)
    paused.suspend()
    # Nobody ticks the engine any more.
    house.wait(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, "end of its engine", 20)
    assert [left for left in house.engines() if left != engine] == []
    house.start("worker-2")
    with house.held_at(Phase.UPLOAD) as gate:
        assert gate.reached.wait(120), house.tail()
        # Both supervisors now hold what they take for their job.
        paused.resume()
        house.wait(lambda: "job_abandoned" in house.log("worker"), "word of the abandoned job", 20)
    done = house.wait_end(job)
    assert (done.state, done.epoch, done.failures) == (JobState.SUCCEEDED, 2, 1)
    # The first worker is as good as new.
    house.stop("worker-2")
    again = house.submit(recipe=[{"method": "rtn", "group_size": 256}])
    house.wait_end(again)
    house.check_settled(job, again)


def test_a_running_job_is_cancelled_within_thirty_seconds_in_every_phase(house: House) -> None:
    house.start()
    cancelled = []

    def cancel(phase: Phase) -> None:
        started = time.monotonic()
        house.cancel(cancelled[-1])
        done = house.wait_end(cancelled[-1], CANCEL_SECONDS)
        assert done.state is JobState.CANCELLED
        assert house.engines() == [], phase
        assert time.monotonic() - started < CANCEL_SECONDS

    for phase in (Phase.FETCH, Phase.CHECK, Phase.COMPRESS, Phase.EVALUATE, Phase.UPLOAD):
        cancelled.append(house.submit())
        if phase in (Phase.COMPRESS, Phase.EVALUATE):
            house.wait_phase(cancelled[-1], phase)
            cancel(phase)
        else:
            with house.held_at(phase) as gate:
                assert gate.reached.wait(60), house.tail()
                cancel(phase)
    house.check_settled(*cancelled)


def test_a_shutdown_drains_at_a_block_and_the_next_worker_goes_on_there(house: House) -> None:
    house.start()
    job = house.submit()
    house.wait_phase(job, Phase.COMPRESS, blocks=1)
    # As systemd does it, and Ctrl-C in a shell: the signal reaches parent and child alike.
    assert house.stop("worker", signal.SIGTERM, group=True) == 0
    released = house.job(job)
    assert (released.state, released.failures) == (JobState.QUEUED, 0), house.tail()
    assert house.engines() == []
    stored = [item.key for item in open_store(house.settings).list(f"checkpoints/{job}/1/")]
    assert any(key.endswith("index.json") for key in stored)
    # As on another machine: only the store has the checkpoint.
    house.settings = house.settings.model_copy(update={"work_dir": house.settings.work_dir.with_name("elsewhere")})
    house.start("worker-2")
    done = house.wait_end(job)
    assert (done.state, done.epoch, done.failures) == (JobState.SUCCEEDED, 2, 0)
    assert "checkpoint_restored" in house.log("worker-2")
    house.check_settled(job)
    # As a container does it: the parent alone is told.
    assert house.stop("worker-2", signal.SIGTERM) == 0
    assert house.stop("dispatcher", signal.SIGTERM, seconds=15) == 0


def test_a_job_past_its_deadline_fails_and_its_worker_lets_go(house: House) -> None:
    with house.held_at(Phase.FETCH) as gate:
        job = house.submit(deadline_at=(datetime.now(UTC) + timedelta(seconds=25)).isoformat())
        house.start()
        assert gate.reached.wait(25), house.tail()
        done = house.wait_end(job, 60)
        assert done.error is not None
        assert (done.state, done.error.code) == (JobState.FAILED, "deadline_exceeded")
        house.wait(lambda: "job_abandoned" in house.log("worker"), "word of the abandoned job", 20)
    house.check_settled(job)
