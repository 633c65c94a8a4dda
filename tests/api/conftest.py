"""A real API process in all but name: uvicorn in a thread, on a real PostgreSQL and a store on disk."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from paredown.api.app import create_app
from paredown.contracts.access import Scope
from paredown.contracts.artifact import MANIFEST_NAME, BaseModelRecord, Isolation, Manifest, ManifestFile
from paredown.contracts.gate import judge
from paredown.contracts.job import JobSpec
from paredown.contracts.recipes import recipe_hash
from paredown.contracts.report import Evaluation, Gate, Protocol, Report
from paredown.core import access, jobs
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@pytest.fixture
def model_uri(tmp_path: Path) -> str:
    """A model as far as its description goes: nothing here reads weights."""
    directory = tmp_path / "models" / "tiny"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(LLAMA))
    (directory / "model.safetensors").write_bytes(b"\0" * 1000)
    return f"file://{directory}"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(
        update={
            "event_poll_seconds": 0.05,
            "file_roots": [tmp_path / "models"],
            "log_level": "WARNING",
            "upload_limit_bytes": 2 * 2**20,
        }
    )


@dataclass(frozen=True)
class Server:
    url: str
    app: FastAPI


@pytest.fixture
def serve() -> Iterator[Callable[[Settings], Server]]:
    """Starts applications that end with the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(settings: Settings) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        app = create_app(settings.model_copy(update={"public_url": url}))
        config = uvicorn.Config(
            app, host="127.0.0.1", port=port, log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return Server(url, app)

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture
def server(serve: Callable[[Settings], Server], settings: Settings) -> Server:
    return serve(settings)


@pytest.fixture
def new_key(database: Database, settings: Settings, project: UUID) -> Callable[..., str]:
    """Makes keys: all scopes of the default project unless told otherwise."""

    def make(*scopes: Scope, project_name: str = "default") -> str:
        with database.transaction() as session:
            owner = access.create_project(session, project_name)
            return access.create_key(session, owner, "test", scopes or tuple(Scope), None, settings)[1]

    return make


@pytest.fixture
def api(server: Server, new_key: Callable[..., str]) -> Iterator[httpx.Client]:
    """A caller with every scope of the default project."""
    headers = {"Authorization": f"Bearer {new_key()}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=20) as client:
        yield client


@pytest.fixture
def anyone(server: Server) -> Iterator[httpx.Client]:
    """A caller without a key."""
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def stranger(server: Server, new_key: Callable[..., str]) -> Iterator[httpx.Client]:
    """A caller with every scope of another project."""
    headers = {"Authorization": f"Bearer {new_key(project_name='other')}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=20) as client:
        yield client


@pytest.fixture
def body(model_uri: str) -> dict[str, Any]:
    """A job that can be submitted."""
    return {"model": model_uri, "recipe": [{"method": "rtn", "bits": 4, "group_size": 32}]}


@pytest.fixture
def new_job(database: Database, project: UUID, model_uri: str) -> Callable[..., UUID]:
    """Queues jobs without the API."""

    def make(owner: UUID = project, **fields: Any) -> UUID:
        spec = JobSpec.model_validate({"model": model_uri, "recipe": [{"method": "rtn", "group_size": 32}], **fields})
        with database.transaction() as session:
            return jobs.submit(session, owner, spec, pool="cpu", idempotency_key=None)[0].id

    return make


@pytest.fixture
def new_artifact(
    database: Database, settings: Settings, project: UUID, new_job: Callable[..., UUID]
) -> Callable[..., UUID]:
    """Artifacts of finished jobs, with their files in the store."""

    def make(
        owner: UUID = project,
        *,
        files: dict[str, bytes] | None = None,
        perplexity: float = 21.0,
        **fields: Any,
    ) -> UUID:
        new_job(owner, **fields)
        with database.transaction() as session:
            claim = jobs.claim(session, "cpu", "a worker", settings)
        assert claim is not None
        contents = files or {"model.safetensors": bytes(range(256)) * 40, "sub/config.json": b"{}"}
        prefix = f"artifacts/{claim.job.id}/{claim.epoch}"
        manifest = manifest_of(claim.job.id, claim.job.spec, contents, perplexity)
        store = open_store(settings)
        for path, content in contents.items():
            store.put_bytes(f"{prefix}/{path}", content)
        store.put_bytes(f"{prefix}/{MANIFEST_NAME}", manifest.model_dump_json().encode())
        new = NewArtifact(manifest, prefix, claim.job.spec.name or claim.job.recipe_name, claim.job.spec.tags)
        with database.transaction() as session:
            return jobs.finish(session, claim.job.id, claim.epoch, new).id

    return make


def manifest_of(job_id: UUID, spec: JobSpec, contents: dict[str, bytes], perplexity: float) -> Manifest:
    protocol = Protocol(
        source="builtin://python-docs", tokens_sha256="a" * 64, samples=2, sequence_length=16, dtype="float32"
    )
    base = Evaluation(
        protocol=protocol, protocol_hash="b" * 64, perplexity=20.0, predicted_tokens=30, device="cpu", seconds=1.0
    )
    report = Report(
        base=base,
        artifact=base.model_copy(update={"perplexity": perplexity}),
        size_bytes=sum(map(len, contents.values())),
        base_bytes=40_000,
        sparsity=0.0,
        average_bits=4.5,
    )
    gate: Gate | None = judge(spec.budget, report) if spec.budget else None
    return Manifest(
        artifact_id=uuid4(),
        job_id=job_id,
        created_at=datetime.now(UTC),
        base=BaseModelRecord(
            uri=spec.model,
            revision="r",
            fingerprint="c" * 64,
            model_type="llama",
            parameters=20_000,
            base_bytes=40_000,
        ),
        recipe=spec.recipe,
        recipe_hash=recipe_hash(spec.recipe),
        format=spec.resolved_format,
        calibration=None,
        calibration_tokens_sha256=None,
        evaluation=spec.evaluation,
        dtype="float32",
        files=tuple(
            ManifestFile(path=path, size_bytes=len(content), sha256=sha256(content).hexdigest())
            for path, content in contents.items()
        ),
        isolation=Isolation(),
        tools={"paredown": "0"},
        report=report.model_copy(update={"gate": gate}),
    )
