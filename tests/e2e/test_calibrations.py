"""A job's calibration tokens, taken by another: through PostgreSQL, S3 and the real engine, byte for byte the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from tests.support.models import random_llama
from tests.support.s3 import s3_client, serve_s3

from paredown.contracts.artifact import Manifest
from paredown.contracts.job import JobSpec, JobState, JobView
from paredown.core import calibrations, catalogue, jobs
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store
from paredown.worker.attempt import Worker
from paredown.worker.supervisor import claim_all


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    with serve_s3() as endpoint:
        s3_client(endpoint).create_bucket(Bucket="pare")
        yield settings.model_copy(
            update={
                "file_roots": [tmp_path],
                "engine_threads": 1,
                "store_url": "s3://pare/store",
                "s3_endpoint": endpoint,
                "s3_access_key": SecretStr("key"),
                "s3_secret_key": SecretStr("secret"),
            }
        )


def run_job(database: Database, project: UUID, settings: Settings, **fields: Any) -> tuple[JobView, Manifest | None]:
    """One job from submit to its end, in this process but for its engine."""
    worker = Worker(database, open_store(settings), settings, "worker-1", lambda: False)
    spec = {
        "recipe": [{"method": "wanda"}],
        "evaluation": {"samples": 2, "sequence_length": 64, "speed": False},
        **fields,
    }
    with database.transaction() as session:
        job, _ = jobs.submit(session, project, JobSpec.model_validate(spec), pool="cpu", idempotency_key=None)
    assert claim_all(worker, "cpu") == 1
    with database.transaction() as session:
        ended = jobs.get(session, None, job.id)
        made = catalogue.manifest(session, None, ended.artifact_id) if ended.artifact_id else None
    return ended, made


@pytest.mark.slow
def test_a_job_that_takes_a_calibration_makes_the_same_bytes(
    database: Database, project: UUID, settings: Settings, tmp_path: Path
) -> None:
    model = f"file://{random_llama(tmp_path / 'tiny')}"
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number * 7919 % 10007} follows {number}" for number in range(800)))
    drawn = {"source": f"file://{text}", "samples": 4, "sequence_length": 64, "seed": 5}
    # It misses its budget, and leaves its tokens all the same.
    first, made = run_job(database, project, settings, model=model, calibration=drawn, budget={"max_size_ratio": 0.001})
    assert first.state is JobState.REJECTED, first.error
    with database.transaction() as session:
        [kept], _ = calibrations.list_calibrations(session, project, after=None, limit=10)
    assert made is not None
    assert (kept.job_id, kept.tokens_sha256) == (first.id, made.calibration_tokens_sha256)

    # The text is not needed any more.
    text.unlink()
    taken = {"source": kept.uri, "samples": 4, "sequence_length": 64, "seed": 5}
    second, again = run_job(database, project, settings, model=model, calibration=taken)
    assert second.state is JobState.SUCCEEDED, second.error
    assert again is not None
    assert again.files == made.files
    assert again.calibration_tokens_sha256 == made.calibration_tokens_sha256
    with database.transaction() as session:
        assert calibrations.list_calibrations(session, project, after=None, limit=10) == ([kept], None)
