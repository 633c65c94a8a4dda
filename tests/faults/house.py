"""A whole house of real processes whose parts may be killed: PostgreSQL, Redis, S3, dispatcher, Celery worker, engine.

Leases last seconds; `hold` stops a job in the middle of a fetch or an upload for as long as a test likes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from sqlalchemy import select
from tests.support.s3 import Gate, GatedProxy

from paredown.contracts.artifact import MANIFEST_NAME, Manifest, verify_files
from paredown.contracts.job import JobEvent, JobSpec, JobState, JobView, Phase
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store
from paredown.core.tables import ArtifactRow

MODEL = "s3://models/tiny"
ENDINGS = ("succeeded", "rejected", "failed", "cancelled")


class House:
    """One project's queue and the processes that serve it."""

    def __init__(self, settings: Settings, database: Database, project: UUID, proxy: GatedProxy, logs: Path) -> None:
        self.settings = settings
        self.database = database
        self.project = project
        self.proxy = proxy
        self._logs = logs
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    # Processes

    def start(self, *parts: str) -> None:
        for part in parts or ("dispatcher", "worker"):
            name, _, _ = part.partition("-")
            pool = ["--pool", "cpu"] if name == "worker" else []
            with (self._logs / f"{part}.log").open("ab") as log:
                self._parts[part] = subprocess.Popen(
                    [sys.executable, "-m", f"paredown.{name}", *pool],
                    env=self._environment(),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def stop(self, part: str, number: int = signal.SIGTERM, seconds: float = 60, *, group: bool = False) -> int:
        """Send a signal, to the whole process group if asked, and wait; the exit status."""
        process = self._parts.pop(part)
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        return process.wait(seconds)

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for process in self._parts.values():
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                child.kill()
            process.kill()
            process.wait()
        self._parts.clear()
        for engine in self.engines():
            engine.kill()

    def parent(self, part: str = "worker") -> psutil.Process:
        return psutil.Process(self._parts[part].pid)

    def supervisor(self, job_id: UUID) -> psutil.Process:
        """The process that holds the job: the one named in its last claim."""
        claimed = [event for event in self.events(job_id) if event.type == "claimed"][-1]
        return psutil.Process(int(claimed.data["worker"].rpartition(":")[2]))

    def engine(self, job_id: UUID) -> psutil.Process:
        """The engine that works on the job; its children are not meant."""
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = [process for process in self.engines() if str(job_id) in " ".join(cmdline(process))]
            return bool(found)

        self.wait(there, "an engine of the job")
        return found[0]

    def engines(self) -> list[psutil.Process]:
        """Every engine, and every child of one, that works below this house's work directory."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                line = " ".join(process.cmdline())
                if "paredown.engine" in line and str(self.settings.work_dir) in f"{line} {process.cwd()}":
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    # Jobs

    def submit(self, **fields: Any) -> UUID:
        spec = {
            "model": MODEL,
            # Slow enough that a test can catch it between two blocks.
            "recipe": [{"method": "gptq"}],
            "calibration": {"samples": 16, "sequence_length": 128},
            "evaluation": {"samples": 4, "sequence_length": 64, "speed": False},
            **fields,
        }
        with self.database.transaction() as session:
            job, _ = jobs.submit(session, self.project, JobSpec.model_validate(spec), pool="cpu", idempotency_key=None)
        return job.id

    def job(self, job_id: UUID) -> JobView:
        with self.database.transaction() as session:
            return jobs.get(session, None, job_id)

    def events(self, job_id: UUID) -> list[JobEvent]:
        with self.database.transaction() as session:
            return jobs.events_after(session, job_id, 0)

    def held_at(self, phase: Phase) -> AbstractContextManager[Gate]:
        """Holds whatever job comes to one of the phases that talk to S3."""
        return self.proxy.hold(
            {
                Phase.FETCH: r"(GET|HEAD) /models",
                Phase.CHECK: r"GET /store\?.*checkpoints",
                # All files but the last are in the store then.
                Phase.UPLOAD: r"PUT /store/.*artifacts/.*manifest\.json",
            }[phase]
        )

    def cancel(self, job_id: UUID) -> None:
        with self.database.transaction() as session:
            jobs.request_cancel(session, self.project, job_id)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {seconds} s\n{self.tail()}"
            time.sleep(0.02)

    def wait_end(self, job_id: UUID, seconds: float = 180) -> JobView:
        self.wait(lambda: self.job(job_id).state.terminal, f"end of job {job_id}", seconds)
        return self.job(job_id)

    def wait_phase(self, job_id: UUID, phase: Phase, *, epoch: int = 1, blocks: int = 0) -> None:
        """Until this epoch or a later one is in the phase, with so many finished blocks on its disk."""

        def there() -> bool:
            job = self.job(job_id)
            assert not job.state.terminal, f"the job has {job.state} before {phase}: {job.error}\n{self.tail()}"
            checkpoint = self.settings.work_dir / str(job_id) / str(job.epoch) / "checkpoint"
            finished = len(list(checkpoint.glob("block-*.safetensors")))
            return job.epoch >= epoch and job.phase is phase and finished >= blocks

        self.wait(there, f"phase {phase} of job {job_id}")

    # What must hold, whatever was killed

    def check_settled(self, *job_ids: UUID) -> None:
        """Every job has ended once, every success has one whole artifact, and nothing was left behind."""
        store = open_store(self.settings)
        for job_id in job_ids:
            job = self.job(job_id)
            assert job.state.terminal, f"{job_id} is {job.state}"
            events = self.events(job_id)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            endings = [event.type for event in events if event.type in ENDINGS]
            assert endings == [job.state], endings
            assert events[-1].type == job.state
            with self.database.transaction() as session:
                rows = session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job_id)).all()
            assert len(rows) == (1 if job.state in (JobState.SUCCEEDED, JobState.REJECTED) else 0)
            for row in rows:
                assert row.storage_prefix == f"artifacts/{job_id}/{job.epoch}"
                copy = self._logs / "copies" / str(job_id)
                manifest = Manifest.model_validate(row.manifest)
                for path in (MANIFEST_NAME, *(file.path for file in manifest.files)):
                    store.get_file(f"{row.storage_prefix}/{path}", copy / path)
                assert list(verify_files(manifest, copy)) == []
                assert Manifest.model_validate_json((copy / MANIFEST_NAME).read_bytes()) == manifest
        with self.database.transaction() as session:
            running = [key for key, number in jobs.counts(session).items() if key[1] is JobState.RUNNING and number]
        assert running == []
        # An engine whose supervisor was killed notices at once; what it had started goes with it.
        self.wait(lambda: not self.engines(), "machine without engines", 15)

    def tail(self) -> str:
        logs = sorted(self._logs.glob("*.log"))
        return "\n".join(f"── {log.name}\n" + "\n".join(self.log(log.stem).splitlines()[-25:]) for log in logs)

    def log(self, part: str) -> str:
        return (self._logs / f"{part}.log").read_text(errors="replace")

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PARE_")}
        for name, value in self.settings.model_dump(mode="json").items():
            if value is None:
                continue
            secret = getattr(getattr(self.settings, name), "get_secret_value", None)
            plain = secret() if secret else value
            environment[f"PARE_{name.upper()}"] = plain if isinstance(plain, str) else json.dumps(plain)
        return environment


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
