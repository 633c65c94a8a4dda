"""Background processes that outlive the command which started them, and that are known again later.

A process is known by its id and its start time: an id alone may belong to somebody else after a crash or a reboot.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from paredown.client.errors import CommandFailed
from paredown.local.postgres import HOST

TAIL_LINES = 12
# psutil reads start times from the kernel in clock ticks since boot; the boot time it adds may move by a tick or two.
START_TIME_SLACK_SECONDS = 2.0


class Running(BaseModel):
    """A process that we started."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started_at: float
    port: int | None = None
    # Hash of its command and settings: a part that was started with others is started again.
    configuration: str = ""

    def process(self) -> psutil.Process | None:
        """The process if it is still the one that was started."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < START_TIME_SLACK_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    @property
    def alive(self) -> bool:
        return self.process() is not None


def note(pid: int, port: int | None = None, configuration: str = "") -> Running:
    """What there is to know of a process that was started just now; one that has ended already is never alive."""
    try:
        started_at = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        started_at = 0.0
    return Running(pid=pid, started_at=started_at, port=port, configuration=configuration)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> int:
    """Start a daemon in a session of its own, its words going to `log`; its process id."""
    _rotate(log)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            command,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
        )
    _children[process.pid] = process
    return process.pid


# Kept so that a child which ends while this command runs is reaped, and is not taken for alive.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


def reap(pid: int) -> None:
    if (child := _children.get(pid)) is not None:
        child.poll()


def await_ready(name: str, running: Running, is_ready: Callable[[], bool], log: Path, seconds: float) -> None:
    """Raises CommandFailed with the end of the log when the process ends or is not ready in time."""
    give_up_at = time.monotonic() + seconds
    while True:
        if is_ready():
            return
        reap(running.pid)
        ended = not running.alive
        if ended or time.monotonic() > give_up_at:
            trouble = "ended at once" if ended else f"was not ready within {seconds:.0f} s"
            raise CommandFailed(f"The {name} {trouble}. {tail_of(log)}", code="stack_part_failed")
        time.sleep(0.1)


def stop(running: Running, seconds: float) -> bool:
    """SIGTERM to the process, and SIGKILL to it and all its descendants when it has not ended in time.

    Whether it had to be killed.
    """
    process = running.process()
    if process is None:
        return False
    descendants = _descendants(process)
    _signal(process, signal.SIGTERM)
    if _await_end(running, seconds):
        # What a process that ended in order leaves behind is a leftover all the same.
        for left in psutil.wait_procs(descendants, timeout=2)[1]:
            _signal(left, signal.SIGKILL)
        return False
    for doomed in [process, *_descendants(process), *descendants]:
        _signal(doomed, signal.SIGKILL)
    _await_end(running, 10)
    return True


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    # psutil compares the start time itself before it sends: never to a stranger with the same id.
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _await_end(running: Running, seconds: float) -> bool:
    give_up_at = time.monotonic() + seconds
    while True:
        reap(running.pid)
        if not running.alive:
            return True
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.05)


def tail_of(log: Path) -> str:
    """The end of a log as part of a sentence for the user."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 8192))
            lines = stream.read().decode("utf-8", errors="replace").strip().splitlines()[-TAIL_LINES:]
    except OSError:
        lines = []
    return f"The end of {log}:\n" + "\n".join(f"  {line}" for line in lines) if lines else f"Its log {log} is empty."


def listens(running: Running) -> bool:
    """Whether the process itself, not a stranger, serves its port."""
    process = running.process()
    if process is None:
        return False
    try:
        connections = process.net_connections(kind="tcp")
    except psutil.NoSuchProcess:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == running.port for one in connections)


def choose_port(preferred: int) -> int:
    """The preferred port where it is free, else any that is."""
    for port in (preferred, 0):
        with socket.socket() as listener:
            # As servers do, so that connections of an earlier run that linger do not count as taken.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise CommandFailed("No TCP port is free on this machine.", code="no_port")


def _rotate(log: Path, limit_bytes: int = 20 * 2**20) -> None:
    if log.exists() and log.stat().st_size > limit_bytes:
        log.replace(log.with_suffix(".log.1"))
