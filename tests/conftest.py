"""What every test may ask for: a real PostgreSQL built by the real migrations, a real Redis, settings that name them.

The servers start with the first test that asks and stop with the session, even with one that is killed; each test has a
database of its own.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import hypothesis
import psycopg
import pytest
import redis
from sqlalchemy import make_url

from paredown.core import access, migrate
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.local import postgres
from paredown.local import redis as local_redis

MEMORY = Path("/dev/shm")
MEMORY_NEEDED = 2 * 2**30
TEMPLATE = "pare_template"
SECRET = "a secret of the tests, 32 characters or more"

# Waits until the session closes its standard input, or dies, and then leaves nothing behind.
GUARD = """
import shutil, sys
from pathlib import Path
from paredown.local import postgres, redis
directory = Path(sys.argv[1])
sys.stdin.read()
postgres.stop(directory / "postgres")
redis.stop(directory / "redis")
shutil.rmtree(directory)
"""

# A slow machine is no failure.
hypothesis.settings.register_profile("pare", deadline=None)
hypothesis.settings.load_profile("pare")

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """Not below tmp_path: as root, PostgreSQL runs as another user, who may not pass pytest's directories.

    In memory where there is room, because copying a database is all that a test waits for.
    """
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_NEEDED
    directory = Path(tempfile.mkdtemp(prefix="pare-tests-", dir=MEMORY if roomy else None))
    directory.chmod(0o711)
    with subprocess.Popen([sys.executable, "-c", GUARD, directory], stdin=subprocess.PIPE, start_new_session=True):
        yield directory


@pytest.fixture(scope="session")
def postgres_url(server_dir: Path) -> str:
    """Address of a PostgreSQL server of this session, with an empty database."""
    return postgres.start(server_dir / "postgres", durable=False).url


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """Name of a database with all migrations, which each test's own database is copied from."""
    _administer(postgres_url, f"CREATE DATABASE {TEMPLATE}")
    migrate.upgrade(Settings(database_url=_with_database(postgres_url, TEMPLATE)))
    return TEMPLATE


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A fresh database without any table."""
    yield from _database(postgres_url, "template1")


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    yield from _database(postgres_url, template)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of this test: its own database and directories. `redis_url` is for whoever asks for that fixture too."""
    return Settings(
        database_url=database_url,
        store_url=f"file://{tmp_path}/store",
        secret=SECRET,
        cache_dir=tmp_path / "cache",
        work_dir=tmp_path / "work",
        log_format="console",
    )


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


@pytest.fixture
def project(database: Database) -> UUID:
    """Id of the project `default`."""
    with database.transaction() as session:
        return access.create_project(session, "default")


@pytest.fixture(scope="session")
def redis_server_url(server_dir: Path) -> str:
    return local_redis.start(server_dir / "redis").url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """Address of an empty Redis."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushall()
    return redis_server_url


def _with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _administer(url: str, statement: str) -> None:
    plain = make_url(url).set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(statement.encode())


def _database(url: str, template: str) -> Iterator[str]:
    name = f"pare_test_{next(_numbers)}"
    _administer(url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _with_database(url, name)
    _administer(url, f"DROP DATABASE {name} WITH (FORCE)")
