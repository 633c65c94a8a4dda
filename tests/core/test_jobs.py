"""The state machine, arrow by arrow: what each call promises, and what it refuses."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select
from tests.core.builders import (
    claim_job,
    event_types,
    finish_job,
    make_artifact,
    make_spec,
    run_out,
    set_job,
    submit_job,
)

from paredown.contracts.job import JobError, JobState, Phase, Progress
from paredown.contracts.recipes import Rtn, Wanda
from paredown.contracts.report import Verdict
from paredown.core import access, catalogue, jobs
from paredown.core.db import Database
from paredown.core.errors import (
    CancelPending,
    IdempotencyMismatch,
    LeaseLost,
    NotFound,
    RequestInvalid,
    StateConflict,
)
from paredown.core.settings import Settings
from paredown.core.tables import ArtifactRow, JobRow

RETRYABLE = JobError(code="disk_full", detail="The disk is full.", retryable=True)
PERMANENT = JobError(code="not_a_model", detail="There is no config.json.", field="model")


def state_of(database: Database, job_id: UUID) -> JobState:
    with database.transaction() as session:
        return jobs.get(session, None, job_id).state


def worker_seconds(database: Database, job_id: UUID) -> float:
    with database.transaction() as session:
        return session.scalars(select(JobRow.worker_seconds).where(JobRow.id == job_id)).one()


# Submit


def test_submitted_job_waits_in_its_pool(database: Database, project: UUID) -> None:
    spec = make_spec(priority=5, name="small", tags=("a/b",))
    with database.transaction() as session:
        job, created = jobs.submit(session, project, spec, pool="gpu", idempotency_key=None)
        assert jobs.due_pools(session) == {"gpu": 1}
    assert created
    assert (job.state, job.pool, job.priority, job.epoch, job.project) == (JobState.QUEUED, "gpu", 5, 0, "default")
    assert job.spec == spec
    assert job.recipe_name == "rtn-4"
    assert event_types(database, job.id) == ["queued"]


def test_same_key_gives_the_same_job_whatever_became_of_it(database: Database, project: UUID) -> None:
    with database.transaction() as session:
        first, created = jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key="key")
    assert created
    with database.transaction() as session:
        jobs.request_cancel(session, project, first.id)
    with database.transaction() as session:
        # The plan may choose another pool by now; the first answer holds.
        again, created = jobs.submit(session, project, make_spec(), pool="gpu", idempotency_key="key")
        assert jobs.replay(session, project, make_spec(), "key") == again
        assert jobs.replay(session, project, make_spec(), "unused") is None
    assert not created
    assert (again.id, again.pool, again.state) == (first.id, "cpu", JobState.CANCELLED)


def test_same_key_with_another_body_is_refused(database: Database, project: UUID) -> None:
    with database.transaction() as session:
        jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key="key")
    with pytest.raises(IdempotencyMismatch), database.transaction() as session:
        jobs.submit(session, project, make_spec(priority=1), pool="cpu", idempotency_key="key")
    with pytest.raises(IdempotencyMismatch), database.transaction() as session:
        jobs.replay(session, project, make_spec(priority=1), "key")


def test_keys_of_two_projects_do_not_meet(database: Database, project: UUID) -> None:
    with database.transaction() as session:
        other = access.create_project(session, "other")
        first, _ = jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key="key")
        second, created = jobs.submit(session, other, make_spec(), pool="cpu", idempotency_key="key")
    assert created
    assert first.id != second.id


def test_deadline_in_the_past_is_refused(database: Database, project: UUID) -> None:
    spec = make_spec(deadline_at=datetime.now(UTC) - timedelta(minutes=1))
    with pytest.raises(RequestInvalid) as caught, database.transaction() as session:
        jobs.submit(session, project, spec, pool="cpu", idempotency_key=None)
    assert caught.value.field == "deadline_at"


@pytest.mark.parametrize("field", ["run_at", "deadline_at"])
def test_time_beyond_the_calendar_is_refused(database: Database, project: UUID, field: str) -> None:
    last_second_in_the_west = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-14)))
    with pytest.raises(RequestInvalid) as caught:
        submit_job(database, project, **{field: last_second_in_the_west})
    assert caught.value.field == field
    submit_job(database, project, **{field: datetime.max.replace(tzinfo=UTC)})


def test_time_in_the_past_is_no_way_to_the_front(database: Database, project: UUID, settings: Settings) -> None:
    first = submit_job(database, project)
    submit_job(database, project, run_at=datetime.min.replace(tzinfo=timezone(timedelta(hours=-1))))
    assert claim_job(database, settings).job.id == first


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "a\0b"}, "spec.name"),
        ({"model": "pkg://a\0b"}, "spec.model"),
        ({"recipe": (Rtn(skip=("*", "\0")),)}, "spec.recipe.0.skip.1"),
    ],
)
def test_nul_in_a_spec_is_the_users_problem(
    database: Database, project: UUID, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(RequestInvalid) as caught:
        submit_job(database, project, **changes)
    assert caught.value.field == field


@pytest.mark.parametrize("key", ["", "k" * 256, "a\0b", "\ud800"])
def test_idempotency_keys_have_bounds(database: Database, project: UUID, key: str) -> None:
    with pytest.raises(RequestInvalid), database.transaction() as session:
        jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key=key)


# Get and list


def test_foreign_jobs_do_not_exist(database: Database, project: UUID) -> None:
    job_id = submit_job(database, project)
    with database.transaction() as session:
        other = access.create_project(session, "other")
        for call in (jobs.get, jobs.request_cancel, jobs.retry):
            with pytest.raises(NotFound):
                call(session, other, job_id)
            with pytest.raises(NotFound):
                call(session, project, uuid4())
        assert jobs.list_jobs(session, other, after=None, limit=10) == ([], None)
        assert jobs.get(session, None, job_id).id == job_id


def test_pages_hold_every_job_once_newest_first(database: Database, project: UUID) -> None:
    # All in one transaction, so that all have the same created_at and only the id tells them apart.
    with database.transaction() as session:
        for _ in range(7):
            jobs.submit(session, project, make_spec(), pool="cpu", idempotency_key=None)
    newest = submit_job(database, project)
    seen: list[UUID] = []
    after = None
    with database.transaction() as session:
        for size in (3, 3, 2):
            views, after = jobs.list_jobs(session, project, after=after, limit=3)
            assert len(views) == size
            seen += [view.id for view in views]
    assert after is None
    assert seen[0] == newest
    assert len(set(seen)) == 8


def test_filters(database: Database, project: UUID) -> None:
    plain = submit_job(database, project)
    chained = submit_job(database, project, pool="gpu", recipe=(Wanda(), Rtn()), model="hf://a/b@main")
    with database.transaction() as session:
        jobs.request_cancel(session, project, plain)

    def found(**filters: object) -> set[UUID]:
        with database.transaction() as session:
            return {job.id for job in jobs.list_jobs(session, project, after=None, limit=10, **filters)[0]}

    assert found() == {plain, chained}
    assert found(states=[JobState.CANCELLED, JobState.FAILED]) == {plain}
    assert found(model="hf://a/b@main") == {chained}
    assert found(pool="gpu") == {chained}
    assert found(method="wanda") == {chained}
    assert found(method="rtn") == {plain, chained}
    assert found(method="gptq") == set()
    for name in ("model", "pool", "method"):
        with pytest.raises(RequestInvalid):
            found(**{name: "\0"})


@pytest.mark.parametrize("cursor", ["", "x", "é", "bm8", "WzEsMl0", "eyJhIjoxfQ", "W10", "W251bGwsIm5vIl0", "=" * 8])
def test_cursor_that_no_list_gave_is_refused(database: Database, project: UUID, cursor: str) -> None:
    with pytest.raises(RequestInvalid) as caught, database.transaction() as session:
        jobs.list_jobs(session, project, after=cursor, limit=3)
    assert caught.value.field == "after"


# Claim


def test_claims_go_by_priority_then_by_waiting_time(database: Database, project: UUID, settings: Settings) -> None:
    first = submit_job(database, project)
    second = submit_job(database, project)
    urgent = submit_job(database, project, priority=10)
    submit_job(database, project, pool="gpu", priority=100)
    assert [claim_job(database, settings).job.id for _ in range(3)] == [urgent, first, second]
    with database.transaction() as session:
        assert jobs.claim(session, "cpu", "worker", settings) is None


def test_job_is_not_claimed_before_its_time(database: Database, project: UUID, settings: Settings) -> None:
    later = submit_job(database, project, run_at=datetime.now(UTC) + timedelta(hours=1), priority=100)
    with database.transaction() as session:
        assert jobs.claim(session, "cpu", "worker", settings) is None
        assert jobs.due_pools(session) == {}
    set_job(database, later, run_at=func.now() - timedelta(seconds=30))
    with database.transaction() as session:
        assert jobs.due_pools(session) == {"cpu": 1}
        assert jobs.oldest_due_seconds(session)["cpu"] == pytest.approx(30, abs=5)
    claim = claim_job(database, settings)
    assert (claim.job.id, claim.epoch, claim.worker_seconds, claim.cancel_requested) == (later, 1, 0, False)
    assert claim.job.state is JobState.RUNNING
    assert claim.job.started_at is not None
    assert event_types(database, later) == ["queued", "claimed"]
    with database.transaction() as session:
        assert jobs.counts(session) == {("cpu", JobState.RUNNING): 1}


def test_job_past_its_deadline_is_not_claimed(database: Database, project: UUID, settings: Settings) -> None:
    job_id = submit_job(database, project)
    set_job(database, job_id, deadline_at=func.now() - timedelta(seconds=1))
    with database.transaction() as session:
        assert jobs.due_pools(session) == {}
        assert jobs.claim(session, "cpu", "worker", settings) is None


# Heartbeat


def test_heartbeat_extends_the_lease_and_tells_of_progress(
    database: Database, project: UUID, settings: Settings
) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)

    def beat(progress: Progress | None) -> None:
        with database.transaction() as session:
            assert jobs.heartbeat(session, job_id, claim.epoch, progress, settings) is False

    run_out(database, job_id)
    beat(Progress(phase=Phase.FETCH, fraction=0.01, message="a\0b"))
    with database.transaction() as session:
        assert jobs.rescue(session, settings) == []
    beat(None)
    beat(Progress(phase=Phase.FETCH, fraction=0.02))
    beat(Progress(phase=Phase.COMPRESS, fraction=0.1, block=0, num_blocks=30))
    beat(Progress(phase=Phase.COMPRESS, fraction=0.2, block=1, num_blocks=30))
    beat(Progress(phase=Phase.COMPRESS, fraction=0.21, block=1, num_blocks=30))
    # Only a new phase or block is news.
    assert event_types(database, job_id) == ["queued", "claimed", "progress", "progress", "progress"]
    with database.transaction() as session:
        job = jobs.get(session, project, job_id)
        first = jobs.events_after(session, job_id, 2)[0]
    assert job.progress is not None
    assert (job.phase, job.progress.fraction) == (Phase.COMPRESS, 0.21)
    assert first.data["message"] == "ab"


# The ends


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        (None, JobState.SUCCEEDED),
        (Verdict.PASSED, JobState.SUCCEEDED),
        (Verdict.MISSED, JobState.REJECTED),
        (Verdict.OVERRIDDEN, JobState.SUCCEEDED),
    ],
)
def test_finished_job_has_its_artifact(
    database: Database, project: UUID, settings: Settings, verdict: Verdict | None, state: JobState
) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    with database.transaction() as session:
        view = jobs.finish(session, job_id, claim.epoch, make_artifact(job_id, verdict=verdict))
        job = jobs.get(session, project, job_id)
    assert (job.state, job.artifact_id, view.verdict, view.job_id) == (state, view.id, verdict, job_id)
    assert job.finished_at is not None
    assert event_types(database, job_id) == ["queued", "claimed", state.value]


def test_finish_told_again_gives_the_same_artifact(database: Database, project: UUID, settings: Settings) -> None:
    """A worker whose commit went through, but never heard so."""
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    artifact = make_artifact(job_id)
    with database.transaction() as session:
        first = jobs.finish(session, job_id, claim.epoch, artifact)
    with database.transaction() as session:
        assert jobs.finish(session, job_id, claim.epoch, artifact) == first
    with pytest.raises(LeaseLost), database.transaction() as session:
        jobs.finish(session, job_id, claim.epoch, make_artifact(job_id))
    assert event_types(database, job_id) == ["queued", "claimed", "succeeded"]


def test_broken_models_figures_are_kept(database: Database, project: UUID, settings: Settings) -> None:
    """An infinite perplexity is evidence; so is what the model said, though PostgreSQL cannot hold every character."""
    artifact_id = finish_job(database, project, settings, perplexity=float("inf"), name="a\0b", verdict=Verdict.MISSED)
    with database.transaction() as session:
        view = catalogue.get_artifact(session, project, artifact_id)
        manifest = catalogue.manifest(session, project, artifact_id)
    assert (view.perplexity, view.name) == (float("inf"), "ab")
    assert manifest.report.artifact is not None
    assert manifest.report.artifact.perplexity == float("inf")


def test_permanent_error_fails_at_once(database: Database, project: UUID, settings: Settings) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    with database.transaction() as session:
        assert jobs.fail(session, job_id, claim.epoch, PERMANENT, settings) is JobState.FAILED
        job = jobs.get(session, project, job_id)
    assert (job.state, job.error, job.failures) == (JobState.FAILED, PERMANENT, 0)
    assert event_types(database, job_id) == ["queued", "claimed", "failed"]


def test_retryable_error_waits_longer_each_time_then_fails(
    database: Database, project: UUID, settings: Settings
) -> None:
    job_id = submit_job(database, project)
    for failures, wait in ((1, 10), (2, 20)):
        claim = claim_job(database, settings)
        with database.transaction() as session:
            assert jobs.fail(session, job_id, claim.epoch, RETRYABLE, settings) is JobState.QUEUED
            job = jobs.get(session, project, job_id)
            now = session.execute(select(func.now())).scalar_one()
        assert job.failures == failures
        assert job.run_at - now == timedelta(seconds=wait)
        assert job.error is None
        set_job(database, job_id, run_at=func.now())
    claim = claim_job(database, settings)
    assert claim.epoch == 3
    with database.transaction() as session:
        assert jobs.fail(session, job_id, claim.epoch, RETRYABLE, settings) is JobState.FAILED
        job = jobs.get(session, project, job_id)
    assert (job.error, job.failures) == (RETRYABLE, 3)
    assert event_types(database, job_id) == ["queued", *["claimed", "requeued"] * 2, "claimed", "failed"]


def test_drained_job_is_queued_again_and_no_failure_is_counted(
    database: Database, project: UUID, settings: Settings
) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    with database.transaction() as session:
        jobs.heartbeat(session, job_id, claim.epoch, Progress(phase=Phase.FETCH, fraction=0.1), settings)
        jobs.release(session, job_id, claim.epoch)
        job = jobs.get(session, project, job_id)
    assert (job.state, job.failures, job.phase, job.progress) == (JobState.QUEUED, 0, None, None)
    assert claim_job(database, settings).epoch == 2
    assert event_types(database, job_id) == ["queued", "claimed", "progress", "requeued", "claimed"]


def test_worker_time_is_added_up_over_all_epochs(database: Database, project: UUID, settings: Settings) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    set_job(database, job_id, claimed_at=func.now() - timedelta(seconds=100))
    with database.transaction() as session:
        jobs.release(session, job_id, claim.epoch)
    assert worker_seconds(database, job_id) == pytest.approx(100, abs=5)

    claim = claim_job(database, settings)
    assert claim.worker_seconds == pytest.approx(100, abs=5)
    # A lost worker is charged for no longer than its lease, however late the rescue comes.
    set_job(
        database,
        job_id,
        claimed_at=func.now() - timedelta(seconds=1000),
        lease_until=func.now() - timedelta(seconds=950),
    )
    with database.transaction() as session:
        jobs.rescue(session, settings)
    assert worker_seconds(database, job_id) == pytest.approx(150, abs=5)

    claim = claim_job(database, settings)
    set_job(database, job_id, claimed_at=func.now() - timedelta(seconds=10))
    with database.transaction() as session:
        jobs.finish(session, job_id, claim.epoch, make_artifact(job_id, claim.epoch))
    assert worker_seconds(database, job_id) == pytest.approx(160, abs=5)


# Cancel


def test_queued_job_is_cancelled_at_once(database: Database, project: UUID, settings: Settings) -> None:
    job_id = submit_job(database, project)
    with database.transaction() as session:
        assert jobs.request_cancel(session, project, job_id).state is JobState.CANCELLED
    with database.transaction() as session:
        assert jobs.claim(session, "cpu", "worker", settings) is None
    assert event_types(database, job_id) == ["queued", "cancelled"]


def test_running_job_is_cancelled_by_its_worker(database: Database, project: UUID, settings: Settings) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    with pytest.raises(StateConflict), database.transaction() as session:
        jobs.acknowledge_cancel(session, job_id, claim.epoch)
    for _ in range(2):
        with database.transaction() as session:
            job = jobs.request_cancel(session, project, job_id)
        assert (job.state, job.cancel_requested) == (JobState.RUNNING, True)
    with database.transaction() as session:
        assert jobs.heartbeat(session, job_id, claim.epoch, None, settings) is True
    with database.transaction() as session:
        jobs.acknowledge_cancel(session, job_id, claim.epoch)
    assert state_of(database, job_id) is JobState.CANCELLED
    # Asked twice, told once.
    assert event_types(database, job_id) == ["queued", "claimed", "cancel_requested", "cancelled"]


def test_no_artifact_once_a_cancel_was_asked_for(database: Database, project: UUID, settings: Settings) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    with database.transaction() as session:
        jobs.request_cancel(session, project, job_id)
    with pytest.raises(CancelPending), database.transaction() as session:
        jobs.finish(session, job_id, claim.epoch, make_artifact(job_id))
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(ArtifactRow)) == 0
    assert state_of(database, job_id) is JobState.RUNNING


@pytest.mark.parametrize("way", ["fail", "fail for good", "release", "rescue", "deadline"])
def test_every_way_out_of_a_job_to_be_cancelled_is_cancelled(
    database: Database, project: UUID, settings: Settings, way: str
) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    with database.transaction() as session:
        jobs.request_cancel(session, project, job_id)
    past = func.now() - timedelta(seconds=1)
    if way == "rescue":
        set_job(database, job_id, lease_until=past)
    if way == "deadline":
        set_job(database, job_id, deadline_at=past)
    with database.transaction() as session:
        match way:
            case "fail":
                assert jobs.fail(session, job_id, claim.epoch, RETRYABLE, settings) is JobState.CANCELLED
            case "fail for good":
                assert jobs.fail(session, job_id, claim.epoch, PERMANENT, settings) is JobState.CANCELLED
            case "release":
                jobs.release(session, job_id, claim.epoch)
            case "rescue":
                assert jobs.rescue(session, settings) == [job_id]
            case "deadline":
                assert jobs.expire_deadlines(session) == [job_id]
    assert state_of(database, job_id) is JobState.CANCELLED
    assert event_types(database, job_id) == ["queued", "claimed", "cancel_requested", "cancelled"]


def test_ended_job_cannot_be_cancelled(database: Database, project: UUID, settings: Settings) -> None:
    finish_job(database, project, settings)
    with database.transaction() as session:
        job = jobs.list_jobs(session, project, after=None, limit=1)[0][0]
        with pytest.raises(StateConflict):
            jobs.request_cancel(session, project, job.id)


# Retry


def test_failed_job_is_tried_again_when_a_person_asks(database: Database, project: UUID, settings: Settings) -> None:
    job_id = submit_job(database, project)
    claim = claim_job(database, settings)
    with pytest.raises(StateConflict), database.transaction() as session:
        jobs.retry(session, project, job_id)
    with database.transaction() as session:
        jobs.fail(session, job_id, claim.epoch, PERMANENT, settings)
    with database.transaction() as session:
        job = jobs.retry(session, project, job_id)
    assert (job.state, job.failures, job.error, job.finished_at) == (JobState.QUEUED, 0, None, None)
    # The epoch counts on, so that the holder of before stays fenced off.
    assert claim_job(database, settings).epoch == 2
    with pytest.raises(LeaseLost), database.transaction() as session:
        jobs.heartbeat(session, job_id, claim.epoch, None, settings)
    assert event_types(database, job_id) == ["queued", "claimed", "failed", "retried", "claimed"]


def test_job_past_its_deadline_is_not_tried_again(database: Database, project: UUID) -> None:
    job_id = submit_job(database, project)
    set_job(database, job_id, deadline_at=func.now() - timedelta(seconds=1))
    with database.transaction() as session:
        assert jobs.expire_deadlines(session) == [job_id]
    with pytest.raises(StateConflict), database.transaction() as session:
        jobs.retry(session, project, job_id)


# The dispatcher's part


def test_lost_workers_job_is_rescued_and_fails_the_third_time(
    database: Database, project: UUID, settings: Settings
) -> None:
    job_id = submit_job(database, project)
    for failures in (1, 2, 3):
        assert claim_job(database, settings).epoch == failures
        with database.transaction() as session:
            assert jobs.rescue(session, settings) == []
        run_out(database, job_id)
        with database.transaction() as session:
            assert jobs.rescue(session, settings) == [job_id]
            job = jobs.get(session, project, job_id)
        assert job.failures == failures
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert event_types(database, job_id) == ["queued", *["claimed", "requeued"] * 2, "claimed", "failed"]


def test_lease_runs_by_the_databases_clock(database: Database, project: UUID, settings: Settings) -> None:
    job_id = submit_job(database, project)
    claim_job(database, settings.model_copy(update={"lease_seconds": 0.01}))
    with database.transaction() as session:
        session.execute(select(func.pg_sleep(0.02)))
    with database.transaction() as session:
        assert jobs.rescue(session, settings) == [job_id]


@pytest.mark.parametrize("running", [False, True])
def test_deadline_ends_queued_and_running_jobs(
    database: Database, project: UUID, settings: Settings, running: bool
) -> None:
    job_id = submit_job(database, project, deadline_at=datetime.now(UTC) + timedelta(hours=1))
    claim = claim_job(database, settings) if running else None
    with database.transaction() as session:
        assert jobs.expire_deadlines(session) == []
    set_job(database, job_id, deadline_at=func.now() - timedelta(seconds=1))
    with database.transaction() as session:
        assert jobs.expire_deadlines(session) == [job_id]
        job = jobs.get(session, project, job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "deadline_exceeded"
    if claim:
        with pytest.raises(LeaseLost), database.transaction() as session:
            jobs.heartbeat(session, job_id, claim.epoch, None, settings)


# The fence


def test_paused_holder_of_a_rescued_job_can_do_nothing(database: Database, project: UUID, settings: Settings) -> None:
    """It was stopped, its lease ran out, another worker has the job; now it wakes up. Only `_held` is in its way."""
    job_id = submit_job(database, project)
    paused = claim_job(database, settings, worker="paused")
    run_out(database, job_id)
    with database.transaction() as session:
        assert jobs.rescue(session, settings) == [job_id]
    holder = claim_job(database, settings, worker="holder")
    assert holder.epoch == paused.epoch + 1

    progress = Progress(phase=Phase.UPLOAD, fraction=1)
    with pytest.raises(LeaseLost), database.transaction() as session:
        jobs.heartbeat(session, job_id, paused.epoch, progress, settings)
    with pytest.raises(LeaseLost), database.transaction() as session:
        jobs.finish(session, job_id, paused.epoch, make_artifact(job_id))
    with pytest.raises(LeaseLost), database.transaction() as session:
        jobs.fail(session, job_id, paused.epoch, PERMANENT, settings)
    with pytest.raises(LeaseLost), database.transaction() as session:
        jobs.release(session, job_id, paused.epoch)
    with database.transaction() as session:
        jobs.request_cancel(session, project, job_id)
    with pytest.raises(LeaseLost), database.transaction() as session:
        jobs.acknowledge_cancel(session, job_id, paused.epoch)

    with database.transaction() as session:
        job = jobs.get(session, project, job_id)
        assert (job.state, job.epoch, job.artifact_id, job.phase) == (JobState.RUNNING, holder.epoch, None, None)
        jobs.acknowledge_cancel(session, job_id, holder.epoch)
    assert event_types(database, job_id) == [
        "queued",
        "claimed",
        "requeued",
        "claimed",
        "cancel_requested",
        "cancelled",
    ]


def test_paused_holder_is_fenced_off_before_anybody_claims(
    database: Database, project: UUID, settings: Settings
) -> None:
    """Its epoch is still the latest, but the job is not running."""
    job_id = submit_job(database, project)
    paused = claim_job(database, settings)
    run_out(database, job_id)
    with database.transaction() as session:
        jobs.rescue(session, settings)
    with pytest.raises(LeaseLost), database.transaction() as session:
        jobs.finish(session, job_id, paused.epoch, make_artifact(job_id))
    assert state_of(database, job_id) is JobState.QUEUED
