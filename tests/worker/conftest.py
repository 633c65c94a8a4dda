"""A queue with one small model in it, and a worker whose engine is scripted."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.support.models import random_llama

from paredown.contracts.job import JobSpec, JobView
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.settings import Pool, Settings
from paredown.core.storage import ObjectStore, open_store
from paredown.worker.attempt import Worker

SCRIPTED = Path(__file__).parents[1] / "support" / "scripted_engine.py"


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    random_llama(root / "tiny")
    return root


@pytest.fixture
def settings(settings: Settings, model_root: Path) -> Settings:
    """Seconds instead of minutes."""
    return settings.model_copy(
        update={
            "file_roots": [model_root],
            "lease_seconds": 3.0,
            "heartbeat_seconds": 0.3,
            "retry_delay_seconds": 0.0,
            "cancel_grace_seconds": 0.5,
            "drain_grace_seconds": 2.0,
            "pools": {"cpu": Pool(price_per_hour=3.6)},
        }
    )


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return open_store(settings)


Submit = Callable[..., JobView]


@pytest.fixture
def submit(database: Database, project: UUID, model_root: Path) -> Submit:
    """Queue a job on the small model; keywords replace fields of its spec."""

    def submit_job(**fields: Any) -> JobView:
        spec = {
            "model": f"file://{model_root}/tiny",
            "recipe": [{"method": "rtn"}],
            "evaluation": {"samples": 2, "sequence_length": 64, "speed": False},
            **fields,
        }
        with database.transaction() as session:
            job, _ = jobs.submit(session, project, JobSpec.model_validate(spec), pool="cpu", idempotency_key=None)
        return job

    return submit_job


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(database: Database, settings: Settings, store: ObjectStore) -> MakeWorker:
    """A worker; keywords that are its fields replace them, all others are the engine's script."""

    def make(
        name: str = "worker-1",
        draining: Callable[[], bool] = lambda: False,
        settings: Settings = settings,
        store: ObjectStore = store,
        **script: Any,
    ) -> Worker:
        return Worker(
            database=database,
            store=store,
            settings=settings,
            name=name,
            draining=draining,
            command=(sys.executable, "-P", str(SCRIPTED), json.dumps(script)),
        )

    return make
