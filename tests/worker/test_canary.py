"""A job that asks for a canary is rehearsed on its worker first: it goes on, or is refused before hours are spent."""

from datetime import timedelta
from uuid import UUID

from tests.worker.conftest import MakeWorker, Submit
from tests.worker.test_supervisor import events_of, state_of

from paredown.contracts.job import JobState, Phase
from paredown.core import jobs
from paredown.core.db import Database, database_now
from paredown.core.errors import StorageUnavailable
from paredown.core.settings import Pool, Settings
from paredown.core.storage import LocalStore, ObjectStore
from paredown.worker.supervisor import claim_all


def in_an_hour(database: Database) -> str:
    with database.transaction() as session:
        return (database_now(session) + timedelta(hours=1)).isoformat()


def progress_events(database: Database, job_id: UUID) -> list[int | None]:
    """Blocks that the job's history tells of."""
    with database.transaction() as session:
        events = jobs.events_after(session, job_id, 0)
    return [event.data["block"] for event in events if event.type == "progress" and event.data["phase"] == "compress"]


def test_a_passed_canary_lies_beside_the_plan_and_is_not_part_of_what_the_plan_is_compared_with(
    database: Database, submit: Submit, make_worker: MakeWorker, store: ObjectStore, settings: Settings
) -> None:
    job = submit(canary=True, deadline_at=in_an_hour(database))
    assert claim_all(make_worker(), "cpu") == 1
    done = state_of(database, job.id)
    assert (done.state, events_of(database, job.id).count("canary")) == (JobState.SUCCEEDED, 1)
    found = done.canary
    assert found is not None
    assert (found.passed, found.refusal, found.block, found.num_blocks) == (True, None, 0, 2)
    assert found.seconds.planned > 0
    # Two blocks as measured, and the start and the reload that the formulas know.
    assert found.seconds.expected > 2 * 0.1
    assert (found.memory_bytes.expected, found.rehearsal_memory_bytes) == (600 * 2**20, 600 * 2**20)
    assert found.device_memory_bytes is None
    assert all("canary" not in item.key for item in store.list("artifacts/"))
    assert list(settings.work_dir.iterdir()) == []


def test_a_job_without_one_is_not_rehearsed_and_stored_as_before(
    database: Database, submit: Submit, make_worker: MakeWorker
) -> None:
    job = submit()
    claim_all(make_worker(rehearsal={"block_seconds": "no number"}), "cpu")
    done = state_of(database, job.id)
    assert (done.state, done.canary) == (JobState.SUCCEEDED, None)
    assert "canary" not in done.spec.model_dump(mode="json")
    assert "canary" not in done.model_dump(mode="json")


def test_an_epoch_that_goes_on_does_not_repeat_it(database: Database, submit: Submit, make_worker: MakeWorker) -> None:
    job = submit(canary=True)
    assert claim_all(make_worker(ending="retryable", blocks=1), "cpu") == 3
    assert events_of(database, job.id).count("canary") == 1


def test_a_refused_one_is_rehearsed_again_when_a_person_asks_for_a_retry(
    database: Database, submit: Submit, make_worker: MakeWorker, project: UUID
) -> None:
    job = submit(canary=True)
    claim_all(make_worker(rehearsal={"checkpoint_bytes": 2**60}), "cpu")
    done = state_of(database, job.id)
    assert done.error is not None
    assert (done.error.code, done.error.retryable) == ("canary_refused", False)
    assert "of disk" in done.error.detail
    assert done.canary is not None
    assert (done.canary.passed, done.canary.refusal) == (False, done.error.detail)
    with database.transaction() as session:
        assert jobs.retry(session, project, job.id).canary is None
    claim_all(make_worker(), "cpu")
    assert state_of(database, job.id).state is JobState.SUCCEEDED


def test_a_deadline_that_the_blocks_will_not_meet_ends_the_job_at_once(
    database: Database, submit: Submit, make_worker: MakeWorker
) -> None:
    job = submit(canary=True, deadline_at=in_an_hour(database))
    claim_all(make_worker(rehearsal={"block_seconds": 2000}), "cpu")
    done = state_of(database, job.id)
    assert done.error is not None
    assert done.error.code == "canary_refused"
    assert "after its deadline" in done.error.detail
    assert progress_events(database, job.id) == []


def test_a_store_that_takes_nothing_is_seen_before_any_block(
    database: Database, submit: Submit, make_worker: MakeWorker, store: ObjectStore
) -> None:
    class Shut(LocalStore):
        def put_bytes(self, key: str, data: bytes) -> None:
            raise StorageUnavailable("The store answered AccessDenied.")

    job = submit(canary=True)
    assert isinstance(store, LocalStore)
    assert claim_all(make_worker(store=Shut(store.root)), "cpu") == 3
    done = state_of(database, job.id)
    assert done.error is not None
    assert (done.error.code, done.phase) == ("storage_unavailable", Phase.CHECK)
    assert progress_events(database, job.id) == []


def test_more_memory_than_the_worker_may_use_ends_the_job_before_any_block(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings
) -> None:
    job = submit(canary=True)
    limited = settings.model_copy(update={"pools": {"cpu": Pool(memory_bytes=2**30)}})
    claim_all(make_worker(settings=limited, rehearsal={"memory_bytes": 3 * 2**30}), "cpu")
    done = state_of(database, job.id)
    assert done.error is not None
    assert (done.error.code, done.phase) == ("canary_refused", Phase.CHECK)
    assert "needs 3,072 MiB of memory" in done.error.detail
    assert "may use 1,024 MiB" in done.error.detail
    assert progress_events(database, job.id) == []
    assert events_of(database, job.id)[-2:] == ["canary", "failed"]
