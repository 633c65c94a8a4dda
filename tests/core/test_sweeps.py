"""Sweeps in the database: what is taken instead of a job, what a member tells, and how far the whole is."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from tests.core.builders import MODEL, claim_job, make_artifact, make_evaluation

from paredown.contracts.job import Budget, EvaluationSettings, JobState, JobView, Phase, Progress
from paredown.contracts.recipes import Rtn, recipe_labels
from paredown.contracts.report import Divergence, Verdict
from paredown.contracts.sweep import SweepDetails, SweepSpec, SweepState
from paredown.core import access, catalogue, jobs, sweeps
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database
from paredown.core.settings import Settings

REVISION = "1"

Submit = Callable[..., SweepDetails]


@pytest.fixture
def submit(database: Database, project: UUID, settings: Settings) -> Submit:
    """rtn at 3, 4 and 8 bits, of which 8 is planned to be done soonest; keywords replace fields."""

    def make(owner: UUID = project, revision: str = REVISION, **fields: Any) -> SweepDetails:
        spec = SweepSpec.model_validate(
            {"model": MODEL, "recipes": [[{"method": "rtn", "bits": bits}] for bits in (3, 4, 8)], **fields}
        )
        planned = [
            sweeps.Planned(sweeps.job_of(spec, index), "cpu", seconds=10.0 - index)
            for index in range(len(spec.variants()))
        ]
        with database.transaction() as session:
            return sweeps.submit(
                session, owner, spec, planned, revision=revision, settings=settings, idempotency_key=None
            )[0]

    return make


@pytest.fixture
def finish(database: Database, settings: Settings) -> Callable[..., UUID]:
    """The next due job brought to its end, as a worker would; keywords are make_artifact's."""

    def end(**changes: Any) -> UUID:
        claim = claim_job(database, settings)
        made = make_artifact(claim.job.id, claim.epoch, **changes)
        # As workers write it: rtn sees no calibration text.
        spec = claim.job.spec
        told = {"recipe": spec.recipe, "recipe_hash": claim.job.recipe_hash, "calibration": None, "dtype": spec.dtype}
        manifest = made.manifest.model_copy(update={**told, "evaluation": spec.evaluation})
        with database.transaction() as session:
            new = NewArtifact(manifest, made.storage_prefix, made.name)
            return jobs.finish(session, claim.job.id, claim.epoch, new).id

    return end


def reload(database: Database, project: UUID, sweep: SweepDetails) -> SweepDetails:
    with database.transaction() as session:
        return sweeps.get(session, project, sweep.id)


def test_a_member_tells_what_its_job_measured(
    database: Database, project: UUID, settings: Settings, submit: Submit, finish: Callable[..., UUID]
) -> None:
    sweep = submit()
    finish(perplexity=20.2, size_bytes=220, verdict=None)
    running = claim_job(database, settings)
    with database.transaction() as session:
        jobs.heartbeat(session, running.job.id, 1, Progress(phase=Phase.COMPRESS, fraction=0.5), settings)
    seen = reload(database, project, sweep)
    assert (seen.state, seen.counts) == (
        SweepState.RUNNING,
        {JobState.RUNNING: 1, JobState.SUCCEEDED: 1, JobState.QUEUED: 1},
    )
    assert seen.progress == pytest.approx(0.5)
    eight = seen.members[2]
    assert (eight.state, eight.perplexity, eight.size_ratio) == (JobState.SUCCEEDED, 20.2, 0.55)
    assert eight.perplexity_increase == pytest.approx(0.01)
    with database.transaction() as session:
        [listed], _ = sweeps.list_sweeps(session, project, after=None, limit=10)
    assert (listed.progress, listed.counts, listed.state) == (pytest.approx(seen.progress), seen.counts, seen.state)


def test_a_grids_members_keep_the_order_in_which_its_places_were_given(
    database: Database, submit: Submit, project: UUID
) -> None:
    values = {"0.method": ["rtn", "gptq"], "0.bits": [3, 4], "0.group_size": [32, 64]}
    sweep = submit(recipes=[], grid={"recipe": [{}], "values": values})

    read = reload(database, project, sweep)

    with database.transaction() as session:
        recipes = [jobs.get(session, project, member.job_id).spec.recipe for member in read.members if member.job_id]
    assert list(read.spec.all_recipes()) == recipes
    assert [member.label for member in read.members] == list(recipe_labels(recipes))
    assert read.members[0].label == "rtn-3 (group_size 32)"
    assert read.members[2].label == "rtn-4 (group_size 32)"


def test_the_front_is_of_the_sweep_alone(
    database: Database, project: UUID, submit: Submit, finish: Callable[..., UUID]
) -> None:
    other = submit(recipes=[[{"method": "rtn", "bits": 2}]])
    finish(perplexity=19.0, size_bytes=10)
    sweep = submit()
    made = [finish(perplexity=perplexity, size_bytes=size) for perplexity, size in ((21, 200), (30, 210), (25, 100))]
    seen = reload(database, project, sweep)
    assert seen.state is SweepState.FINISHED
    assert seen.front is not None
    points = {point.artifact_id: point.on_front for point in seen.front.points}
    assert points == {None: True, made[0]: True, made[1]: False, made[2]: True}
    assert len(reload(database, project, other).members) == 1


def test_what_is_there_already_takes_the_jobs_place(
    database: Database, project: UUID, submit: Submit, finish: Callable[..., UUID]
) -> None:
    submit()
    made = [finish(perplexity=perplexity) for perplexity in (20.2, 21.0, 30.0)]
    again = submit(budget=Budget(max_perplexity_increase=0.02))
    assert (again.state, again.reused, again.progress) == (SweepState.FINISHED, 3, 1)
    assert [member.job_id for member in again.members] == [None, None, None]
    # The soonest done, 8 bits, was first; the verdicts are of the new sweep's budget.
    assert [member.artifact_id for member in again.members] == [made[1], made[2], made[0]]
    assert [member.verdict for member in again.members] == [Verdict.MISSED, Verdict.MISSED, Verdict.PASSED]
    assert again.counts == {JobState.REJECTED: 2, JobState.SUCCEEDED: 1}
    with database.transaction() as session:
        [newest, _], _ = sweeps.list_sweeps(session, project, after=None, limit=10)
        assert (newest.reused, newest.counts, newest.state) == (3, again.counts, again.state)
        catalogue.delete_artifact(session, project, made[0])
    assert [member.artifact_id for member in reload(database, project, again).members][2] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"reuse": False},
        {"revision": "2"},
        {"dtype": "bfloat16"},
        {"format": "gguf"},
        {"evaluation": EvaluationSettings(samples=5)},
    ],
    ids=str,
)
def test_what_would_come_out_differently_is_made(
    submit: Submit, finish: Callable[..., UUID], changes: dict[str, Any]
) -> None:
    submit()
    for _ in range(3):
        finish()
    assert submit(**changes).reused == 0


def test_a_text_that_may_have_changed_is_no_proof(submit: Submit, finish: Callable[..., UUID]) -> None:
    evaluation = EvaluationSettings(source="https://example.org/text.txt")
    submit(evaluation=evaluation)
    for _ in range(3):
        finish()
    assert submit(evaluation=evaluation).reused == 0


def test_another_projects_artifacts_are_taken_where_they_are_shown(
    database: Database, project: UUID, submit: Submit, finish: Callable[..., UUID]
) -> None:
    submit()
    made = [finish() for _ in range(3)]
    with database.transaction() as session:
        other = access.create_project(session, "other")
    assert submit(other).reused == 0
    with database.transaction() as session:
        catalogue.update_artifact(session, project, made[0], visibility="everyone")
    assert submit(other).reused == 1


def test_nobody_waits_where_the_base_is_measured(
    database: Database, project: UUID, settings: Settings, submit: Submit, finish: Callable[..., UUID]
) -> None:
    submit()
    finish()
    with database.transaction() as session:
        artifact = catalogue.list_artifacts(session, project, after=None, limit=1)[0][0]
        manifest = catalogue.manifest(session, project, artifact.id)
        catalogue.record_model(session, project, manifest.base, {})
        catalogue.save_baseline(session, manifest.base.fingerprint, make_evaluation(20.0), "cpu")
    for _ in range(2):
        finish()
    submit(recipes=[[{"method": "rtn", "bits": bits}] for bits in (2, 5, 6)])
    assert {claim_job(database, settings).job.spec.recipe[0] for _ in range(3)} == {
        Rtn(bits=2),
        Rtn(bits=5),
        Rtn(bits=6),
    }


def test_a_sweep_over_calibrations_tells_how_far_its_figures_lie_apart(
    database: Database, project: UUID, settings: Settings, submit: Submit
) -> None:
    drawn = [{"source": "file:///text", "samples": 4, "seed": seed} for seed in (1, 2, 3)]
    sweep = submit(recipes=[[{"method": "wanda"}]], calibrations=drawn)
    assert [member.label for member in sweep.members] == ["seed 1", "seed 2", "seed 3"]
    for perplexity, divergence in ((20.4, 0.02), (20.2, None), (21.0, 0.05)):
        claim = claim_job(database, settings)
        made = make_artifact(claim.job.id, claim.epoch, perplexity=perplexity)
        report = made.manifest.report
        if divergence is not None:
            far = dict.fromkeys(("median", "p90", "p99", "maximum", "answers_lost", "answers_won"), 0.0)
            report = report.model_copy(
                update={
                    "divergence": Divergence(
                        protocol_hash="a" * 64, predicted_tokens=1, mean=divergence, top1_agreement=0.9, **far
                    )
                }
            )
        manifest = made.manifest.model_copy(update={"report": report})
        with database.transaction() as session:
            jobs.finish(session, claim.job.id, claim.epoch, NewArtifact(manifest, made.storage_prefix, made.name))
    seen = reload(database, project, sweep)
    seeds = {position: job.spec.calibration.seed for position, job in _jobs_of(database, sweep).items()}
    assert seeds == {0: 1, 1: 2, 2: 3}
    assert {
        figure.figure: (figure.members, figure.minimum, figure.median, figure.maximum) for figure in seen.spread
    } == {
        "perplexity": (3, 20.2, 20.4, 21.0),
        "perplexity_increase": (3, pytest.approx(0.01), pytest.approx(0.02), pytest.approx(0.05)),
        "mean_divergence": (2, 0.02, 0.035, 0.05),
        "top1_agreement": (2, 0.9, 0.9, 0.9),
    }
    assert seen.spread[0].range == pytest.approx(0.8)


def _jobs_of(database: Database, sweep: SweepDetails) -> dict[int, JobView]:
    with database.transaction() as session:
        return jobs.of_sweep(session, sweep.id)
