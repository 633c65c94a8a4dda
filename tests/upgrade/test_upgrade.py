"""What an earlier release left behind still works: its database is migrated, its artifacts are whole."""

import shutil
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url
from tests.upgrade.make_release import KEY_FILE, SECRET

from paredown.contracts.artifact import verify_files
from paredown.contracts.job import JobState
from paredown.core import access, catalogue, jobs, migrate
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store

RELEASES = sorted(path for path in Path(__file__).parent.glob("release-*") if path.is_dir())


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def settings(release: Path, empty_database_url: str, tmp_path: Path) -> Settings:
    """The release's database, restored and migrated, and its store."""
    shutil.copytree(release / "store", tmp_path / "store")
    plain = make_url(empty_database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        connection.execute((release / "database.sql").read_bytes())
    settings = Settings(database_url=empty_database_url, store_url=f"file://{tmp_path}/store", secret=SECRET)
    migrate.upgrade(settings)
    return settings


def test_keys_jobs_and_artifacts_are_as_they_were(settings: Settings, database: Database, release: Path) -> None:
    with database.transaction() as session:
        assert migrate.is_migrated(session)
        principal = access.authenticate(session, (release / KEY_FILE).read_text(), settings)
        found, _ = jobs.list_jobs(session, principal.project_id, after=None, limit=50)
        assert {job.state for job in found} == set(JobState) - {JobState.RUNNING}
        for job in found:
            events = jobs.events_after(session, job.id, 0)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
        artifacts, _ = catalogue.list_artifacts(session, principal.project_id, after=None, limit=50)
        assert len(artifacts) == 2
        assert {artifact.lineage for artifact in artifacts} == {()}
        model = artifacts[0].model_fingerprint
        front = catalogue.front(session, principal.project_id, model, None, "size_bytes")
        assert {point.artifact_id for point in front.points} == {None, *(artifact.id for artifact in artifacts)}


def test_artifacts_are_whole(settings: Settings, database: Database, release: Path, tmp_path: Path) -> None:
    store = open_store(settings)
    with database.transaction() as session:
        principal = access.authenticate(session, (release / KEY_FILE).read_text(), settings)
        artifacts, _ = catalogue.list_artifacts(session, principal.project_id, after=None, limit=50)
        manifests = [catalogue.manifest(session, principal.project_id, artifact.id) for artifact in artifacts]
    for manifest in manifests:
        copy = tmp_path / str(manifest.artifact_id)
        prefix = next(item.key.rsplit("/", 1)[0] for item in store.list(f"artifacts/{manifest.job_id}/"))
        for file in manifest.files:
            store.get_file(f"{prefix}/{file.path}", copy / file.path)
        assert list(verify_files(manifest, copy)) == []


def test_the_queue_goes_on(settings: Settings, database: Database, release: Path) -> None:
    with database.transaction() as session:
        principal = access.authenticate(session, (release / KEY_FILE).read_text(), settings)
        failed, _ = jobs.list_jobs(session, principal.project_id, states=(JobState.FAILED,), after=None, limit=5)
        jobs.retry(session, principal.project_id, failed[0].id)
    with database.transaction() as session:
        claim = jobs.claim(session, "cpu", "worker", settings)
    assert claim is not None
    assert claim.job.id == failed[0].id
    assert claim.epoch == failed[0].epoch + 1
