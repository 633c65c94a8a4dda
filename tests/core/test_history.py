"""Plans learn from finished jobs: the median corrects them, the spread is their interval."""

from dataclasses import replace
from uuid import UUID

import pytest
from tests.core.builders import make_artifact, make_spec

from paredown.contracts.job import Format, Plan
from paredown.contracts.recipes import Gptq, Rtn
from paredown.core import access, history, jobs
from paredown.core.db import Database
from paredown.core.settings import Settings

DOWNLOAD_SECONDS = 2.0


def make_plan(seconds: float = 100.0) -> Plan:
    return Plan(
        model="pkg://a/b",
        model_type="llama",
        parameters=1000,
        base_bytes=2000,
        recipe_name="rtn-4",
        recipe_hash="0" * 64,
        format=Format.COMPRESSED_TENSORS,
        pool="cpu",
        memory_bytes=1000,
        disk_bytes=1,
        download_bytes=int(DOWNLOAD_SECONDS * 50e6),
        output_bytes=100,
        size_ratio=0.05,
        seconds=DOWNLOAD_SECONDS + seconds,
        cost=2 * (DOWNLOAD_SECONDS + seconds),
        currency="EUR",
        pausing=True,
    )


def finish(
    database: Database, settings: Settings, project: UUID, seconds: float, *, method: str = "rtn", release: bool = False
) -> None:
    """A job of which the formulas said 100 seconds."""
    recipe = (Rtn(),) if method == "rtn" else (Gptq(),)
    with database.transaction() as session:
        job, _ = jobs.submit(session, project, make_spec(recipe=recipe), pool="cpu", idempotency_key=None)
    with database.transaction() as session:
        claim = jobs.claim(session, "cpu", "a worker", settings)
        assert claim is not None
    if release:
        with database.transaction() as session:
            jobs.release(session, job.id, claim.epoch)
        with database.transaction() as session:
            claim = jobs.claim(session, "cpu", "another", settings)
            assert claim is not None
    artifact = make_artifact(job.id, claim.epoch)
    report = artifact.manifest.report.model_copy(update={"peak_memory_bytes": 900, "size_bytes": 101})
    manifest = artifact.manifest.model_copy(update={"report": report, "recipe": recipe})
    with database.transaction() as session:
        took = history.Took(make_plan(), seconds)
        jobs.finish(session, job.id, claim.epoch, replace(artifact, manifest=manifest, took=took))


def corrected(database: Database, method: str = "rtn") -> Plan:
    recipe = (Rtn(),) if method == "rtn" else (Gptq(),)
    with database.transaction() as session:
        return history.corrected(make_plan(), history.ratios(session, make_plan(), recipe))


def test_without_history_a_plan_is_the_formulas_with_wide_intervals(database: Database) -> None:
    plan = corrected(database)

    assert (plan.seconds, plan.memory_bytes, plan.history_jobs) == (102, 1000, 0)
    assert plan.seconds_interval is not None
    assert (plan.seconds_interval.low, plan.seconds_interval.high) == (52, 352)
    assert plan.cost == pytest.approx(2 * plan.seconds)


def test_three_jobs_with_the_same_methods_correct_the_next(
    database: Database, settings: Settings, project: UUID
) -> None:
    for seconds in (150, 200, 400):
        assert corrected(database).history_jobs == 0
        finish(database, settings, project, seconds)

    plan = corrected(database)

    assert plan.history_jobs == 3
    # The median; the download is not what a worker's speed decides.
    assert plan.seconds == pytest.approx(DOWNLOAD_SECONDS + 200)
    assert plan.cost == pytest.approx(2 * plan.seconds)
    assert plan.memory_bytes == 900
    assert (plan.output_bytes, plan.size_ratio) == (101, pytest.approx(101 / 2000))
    assert plan.seconds_interval is not None
    assert plan.memory_interval is not None
    assert DOWNLOAD_SECONDS + 150 < plan.seconds_interval.low < plan.seconds < plan.seconds_interval.high < 402
    assert plan.memory_interval.low < 900 < plan.memory_interval.high, "one peak does not make the next exact"


def test_other_methods_tell_of_the_machine_only_where_the_same_are_too_few(
    database: Database, settings: Settings, project: UUID
) -> None:
    for _ in range(3):
        finish(database, settings, project, 300, method="gptq")
    assert corrected(database, "rtn").seconds == pytest.approx(DOWNLOAD_SECONDS + 300)
    for _ in range(3):
        finish(database, settings, project, 50)
    assert corrected(database, "rtn").seconds == pytest.approx(DOWNLOAD_SECONDS + 50)
    assert corrected(database, "gptq").seconds == pytest.approx(DOWNLOAD_SECONDS + 300)


def test_a_job_that_went_through_two_workers_tells_nothing(
    database: Database, settings: Settings, project: UUID
) -> None:
    for _ in range(3):
        finish(database, settings, project, 999, release=True)
    assert corrected(database).history_jobs == 0


def test_outcomes_are_the_project_s_own_newest_first(database: Database, settings: Settings, project: UUID) -> None:
    with database.transaction() as session:
        other = access.create_project(session, "another")
    for seconds in (10, 20):
        finish(database, settings, project, seconds)
    finish(database, settings, other, 30)

    with database.transaction() as session:
        found = history.latest(session, project, 20).items

    assert [item.seconds for item in found] == [20, 10]
    assert found[0].planned_seconds == pytest.approx(100)
    assert (found[0].planned_output_bytes, found[0].output_bytes) == (100, 101)


def test_on_a_gpu_the_gpu_s_part_of_the_memory_is_corrected(
    database: Database, settings: Settings, project: UUID
) -> None:
    plan = make_plan().model_copy(update={"memory_bytes": 1500, "device_memory_bytes": 1000})
    unlearned, learned = (
        history.corrected(plan, history.Ratios(seconds=(1,) * 3, memory_bytes=(0.9,) * count)) for count in (0, 3)
    )
    assert (unlearned.memory_bytes, unlearned.device_memory_bytes) == (1500, 1000)
    assert (learned.memory_bytes, learned.device_memory_bytes) == (1400, 900)
    assert learned.device_memory_interval is not None
    assert learned.memory_interval is not None
    assert learned.memory_interval.low == pytest.approx(500 + learned.device_memory_interval.low)
    # Peaks of hosts say nothing of a GPU.
    for _ in range(3):
        finish(database, settings, project, 100)
    with database.transaction() as session:
        assert history.ratios(session, plan, (Rtn(),)) == history.Ratios()
