"""kill -9 of the supervisor, of its parent and of the engine, in every phase.

The short loop is part of the suite. The long one is `-m slow`; PARE_FAULT_ROUNDS says how many kills it takes (50).
"""

import os
import random
import time
from uuid import UUID

import pytest
from tests.faults.house import House

from paredown.contracts.job import JobState, Phase

pytestmark = pytest.mark.faults

PHASES = (Phase.FETCH, Phase.CHECK, Phase.COMPRESS, Phase.EVALUATE, Phase.UPLOAD)


def kill(house: House, job: UUID, victim: str) -> None:
    if victim == "engine":
        house.engine(job).kill()
    elif victim == "supervisor":
        house.supervisor(job).kill()
    else:
        # The child goes with its parent.
        house.stop("worker", 9)
        house.start("worker")


def kill_in(house: House, job: UUID, phase: Phase, victim: str) -> None:
    """Kill somebody while the job is in a phase it enters from now on."""
    epoch = house.job(job).epoch
    if phase in (Phase.COMPRESS, Phase.EVALUATE):
        house.wait_phase(job, phase, epoch=max(epoch, 1), blocks=2 if phase is Phase.COMPRESS else 0)
        kill(house, job, victim)
    else:
        with house.held_at(phase) as gate:
            assert gate.reached.wait(120), house.tail()
            kill(house, job, victim)
            house.wait(lambda: house.job(job).state is JobState.QUEUED or house.job(job).epoch > epoch, "rescue")
    house.wait(lambda: house.job(job).epoch > epoch or house.job(job).state is JobState.QUEUED, "rescue")


def torment(house: House, victims: dict[Phase, str]) -> UUID:
    """One job that loses somebody in each phase, and succeeds all the same."""
    job = house.submit()
    for phase in PHASES:
        kill_in(house, job, phase, victims[phase])
    done = house.wait_end(job)
    assert done.state is JobState.SUCCEEDED, done.error
    assert done.failures >= len(PHASES)
    return job


@pytest.mark.timeout(900)
def test_a_job_survives_a_death_in_every_phase(house: House) -> None:
    house.start()
    victims = {
        Phase.FETCH: "supervisor",
        Phase.CHECK: "parent",
        Phase.COMPRESS: "engine",
        Phase.EVALUATE: "supervisor",
        Phase.UPLOAD: "supervisor",
    }
    job = torment(house, victims)
    house.check_settled(job)
    assert "checkpoint_restored" in house.log("worker")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_deaths(house: House, request: pytest.FixtureRequest) -> None:
    house.start()
    kills = int(os.environ.get("PARE_FAULT_ROUNDS", "50"))
    chance = random.Random(0)
    started, done = time.monotonic(), []
    counted: dict[str, int] = {}
    while len(done) * len(PHASES) < kills:
        victims = {
            phase: chance.choice(
                ("supervisor", "parent", "engine")
                if phase in (Phase.COMPRESS, Phase.EVALUATE)
                else ("supervisor", "parent")
            )
            for phase in PHASES
        }
        done.append(torment(house, victims))
        house.check_settled(*done)
        for phase, victim in victims.items():
            counted[f"{victim} in {phase}"] = counted.get(f"{victim} in {phase}", 0) + 1
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    assert terminal is not None
    table = "".join(f"\n  {number:3d} {what}" for what, number in sorted(counted.items()))
    terminal.write_line(
        f"\n{sum(counted.values())} kills, {len(done)} jobs, each ended once with one whole artifact, "
        f"in {time.monotonic() - started:.0f} s:{table}"
    )
