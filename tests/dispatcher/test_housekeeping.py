"""What is swept, and above all what is not."""

import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import func, insert, select, text, update
from structlog.testing import capture_logs
from tests.support.s3 import client, moto_server

from paredown.contracts.job import JobSpec
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import LocalStore, open_store
from paredown.core.tables import ArtifactRow, IdempotencyRow, JobRow
from paredown.dispatcher.housekeeping import forget_keys, keep_house, remove_deleted_artifacts, remove_orphans

OLD_SECONDS = 3600


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"orphan_seconds": 600.0})


@pytest.fixture
def store(settings: Settings) -> LocalStore:
    store = open_store(settings)
    assert isinstance(store, LocalStore)
    return store


@pytest.fixture
def s3_server() -> Iterator[str]:
    with moto_server() as port:
        yield f"http://127.0.0.1:{port}"


def put(store: LocalStore, key: str, *, old: bool = True) -> None:
    store.put_bytes(key, b"bytes")
    if old:
        long_ago = time.time() - OLD_SECONDS
        os.utime(store.root / key, (long_ago, long_ago))


def keys(store: LocalStore) -> set[str]:
    return {item.key for item in store.list("")}


def submit(database: Database, project: UUID, key: str | None = None) -> UUID:
    with database.transaction() as session:
        spec = JobSpec.model_validate({"model": "file:///m", "recipe": [{"method": "rtn"}]})
        job, _ = jobs.submit(session, project, spec, pool="cpu", idempotency_key=key)
    return job.id


def add_artifact(database: Database, project: UUID, job: UUID, epoch: int) -> UUID:
    artifact = uuid4()
    with database.transaction() as session:
        session.execute(
            insert(ArtifactRow).values(
                id=artifact,
                project_id=project,
                job_id=job,
                epoch=epoch,
                name="a",
                model="file:///m",
                model_fingerprint="0" * 64,
                model_type="llama",
                parameters=1,
                recipe_hash="0" * 64,
                recipe_name="rtn-4",
                methods=["rtn"],
                format="safetensors",
                size_bytes=1,
                base_bytes=2,
                manifest={},
                storage_prefix=f"artifacts/{job}/{epoch}",
            )
        )
    return artifact


def sweep(database: Database, store: LocalStore, settings: Settings) -> int:
    return remove_orphans(database, store, settings, threading.Event())


def test_files_of_a_lost_epoch_go_and_those_of_the_artifact_stay(
    database: Database, project: UUID, store: LocalStore, settings: Settings
) -> None:
    job = submit(database, project)
    add_artifact(database, project, job, 12)
    for epoch in (1, 12):
        put(store, f"artifacts/{job}/{epoch}/config.json")
        put(store, f"artifacts/{job}/{epoch}/deep/model.safetensors")
    assert sweep(database, store, settings) == 1
    assert keys(store) == {f"artifacts/{job}/12/config.json", f"artifacts/{job}/12/deep/model.safetensors"}
    assert sweep(database, store, settings) == 0


def test_what_a_running_epoch_uploads_stays_however_long_it_takes(
    database: Database, project: UUID, store: LocalStore, settings: Settings
) -> None:
    job = submit(database, project)
    with database.transaction() as session:
        assert jobs.claim(session, "cpu", "w", settings)
    put(store, f"artifacts/{job}/1/config.json")
    put(store, f"checkpoints/{job}/1/index.json")
    assert sweep(database, store, settings) == 0


def test_a_lost_epoch_is_left_alone_while_files_may_still_be_on_their_way(
    database: Database, store: LocalStore, settings: Settings
) -> None:
    job = uuid4()
    put(store, f"artifacts/{job}/1/a.bin")
    put(store, f"artifacts/{job}/1/b.bin", old=False)
    assert sweep(database, store, settings) == 0


def test_a_checkpoint_goes_once_its_job_has_ended(
    database: Database, project: UUID, store: LocalStore, settings: Settings
) -> None:
    ended, queued = submit(database, project), submit(database, project)
    with database.transaction() as session:
        jobs.request_cancel(session, project, ended)
    for job in (ended, queued):
        put(store, f"checkpoints/{job}/1/index.json")
    assert sweep(database, store, settings) == 1
    assert keys(store) == {f"checkpoints/{queued}/1/index.json"}


def test_what_is_not_understood_is_not_removed(database: Database, store: LocalStore, settings: Settings) -> None:
    for key in ("artifacts/readme.txt", "artifacts/not-a-job/1/x", "other/x", f"artifacts/{uuid4()}/one/x"):
        put(store, key)
    before = keys(store)
    assert sweep(database, store, settings) == 0
    assert keys(store) == before


def test_the_files_of_a_deleted_artifact_go_and_their_neighbours_stay(
    database: Database, project: UUID, store: LocalStore
) -> None:
    job = submit(database, project)
    artifact = add_artifact(database, project, job, 1)
    put(store, f"artifacts/{job}/1/config.json", old=False)
    put(store, f"artifacts/{job}/11/config.json", old=False)
    assert remove_deleted_artifacts(database, store) == 0
    with database.transaction() as session:
        session.execute(update(ArtifactRow).where(ArtifactRow.id == artifact).values(deleted_at=func.now()))
    assert remove_deleted_artifacts(database, store) == 1
    assert keys(store) == {f"artifacts/{job}/11/config.json"}
    assert remove_deleted_artifacts(database, store) == 0


def test_uploads_that_broke_off_are_removed_once_they_are_old(store: LocalStore) -> None:
    put(store, "other/finished")
    staging = store.root / ".staging"
    for name, age in (("abandoned", OLD_SECONDS), ("under-way", 0)):
        (staging / name).write_bytes(b"half")
        os.utime(staging / name, (time.time() - age, time.time() - age))
    assert store.remove_unfinished(datetime.now(UTC) - timedelta(seconds=600)) == 1
    assert {path.name for path in staging.iterdir()} == {"under-way"}
    assert keys(store) == {"other/finished"}


def test_multipart_uploads_that_broke_off_are_removed_once_they_are_old(s3_server: str, settings: Settings) -> None:
    s3 = client(s3_server)
    s3.create_bucket(Bucket="unfinished")
    for key in ("mine/artifacts/a", "other/artifacts/b"):
        s3.create_multipart_upload(Bucket="unfinished", Key=key)
    store = open_store(
        settings.model_copy(
            update={
                "store_url": "s3://unfinished/mine",
                "s3_endpoint": s3_server,
                "s3_access_key": SecretStr("key"),
                "s3_secret_key": SecretStr("secret"),
            }
        )
    )
    # moto gives every such upload the same date, long ago.
    assert store.remove_unfinished(datetime(2000, 1, 1, tzinfo=UTC)) == 0
    assert store.remove_unfinished(datetime.now(UTC)) == 1
    left = s3.list_multipart_uploads(Bucket="unfinished")["Uploads"]
    assert [upload["Key"] for upload in left] == ["other/artifacts/b"]


def test_idempotency_keys_are_kept_for_a_day(database: Database, project: UUID) -> None:
    submit(database, project, "old")
    submit(database, project, "new")
    with database.transaction() as session:
        old = update(IdempotencyRow).where(IdempotencyRow.key == "old")
        session.execute(old.values(created_at=func.now() - timedelta(hours=25)))
    assert forget_keys(database) == 1
    with database.transaction() as session:
        assert session.scalars(select(IdempotencyRow.key)).all() == ["new"]
        assert session.scalar(select(func.count()).select_from(JobRow)) == 2


def test_every_chore_has_its_turn_though_one_fails(
    database: Database, project: UUID, store: LocalStore, settings: Settings
) -> None:
    submit(database, project, "old")
    with database.transaction() as session:
        session.execute(update(IdempotencyRow).values(created_at=func.now() - timedelta(hours=25)))

    class Broken(LocalStore):
        def delete_prefix(self, prefix: str) -> None:
            raise ZeroDivisionError

    orphan = f"artifacts/{uuid4()}/1/x"
    put(store, orphan)
    with capture_logs() as logs:
        keep_house(database, Broken(store.root), settings, threading.Event())
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(IdempotencyRow)) == 0
        months = session.scalars(text("SELECT relid::regclass::text FROM pg_partition_tree('job_events')")).all()
    assert sum(name.startswith("job_events_y") for name in months) == 3
    assert "housekeeping_failed" in [entry["event"] for entry in logs]
