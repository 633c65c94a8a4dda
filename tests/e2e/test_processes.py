"""Background processes: known again by their start time, stopped with their families; a stranger never."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from paredown.client.errors import CommandFailed
from paredown.local import processes
from paredown.local.home import Home
from paredown.local.processes import Running

SLEEP = "import time; time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('set', flush=True); {SLEEP}"
WITH_CHILD = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True)
{SLEEP}
"""


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", SLEEP])
    yield process
    process.kill()
    process.wait()


def started(code: str, tmp_path: Path) -> Running:
    pid = processes.start([sys.executable, "-c", code], os.environ, tmp_path / "log", tmp_path)
    return processes.note(pid)


def test_a_process_is_started_known_and_stopped(tmp_path: Path) -> None:
    running = started(SLEEP, tmp_path)
    assert running.alive
    assert Running.model_validate_json(running.model_dump_json()).alive
    assert processes.stop(running, 10) is False
    assert not running.alive
    assert processes.stop(running, 10) is False


def test_a_reused_process_id_is_a_stranger(stranger: "subprocess.Popen[bytes]") -> None:
    stale = Running(pid=stranger.pid, started_at=psutil.Process(stranger.pid).create_time() - 60)
    assert not stale.alive
    processes.stop(stale, 1)
    assert stranger.poll() is None


def test_one_that_will_not_end_is_killed_with_its_family(tmp_path: Path) -> None:
    running = started(WITH_CHILD, tmp_path)
    family = wait_for_children(running.pid)
    wait_for(lambda: b"set" in (tmp_path / "log").read_bytes())
    # The parent ends at SIGTERM; its child, in a session of its own, ignores it.
    processes.stop(running, 5)
    assert psutil.wait_procs(family, timeout=5)[1] == []
    stubborn = started(STUBBORN, tmp_path)
    wait_for(lambda: (tmp_path / "log").read_bytes().count(b"set") == 2)
    assert processes.stop(stubborn, 0.3) is True
    assert not stubborn.alive


def test_one_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    running = started("raise SystemExit('no such setting')", tmp_path)
    with pytest.raises(CommandFailed) as caught:
        processes.await_ready("API", running, lambda: False, tmp_path / "log", 20)
    assert "The API ended at once" in caught.value.detail
    assert "no such setting" in caught.value.detail


def test_one_that_is_never_ready_is_told(tmp_path: Path) -> None:
    running = started(SLEEP, tmp_path)
    try:
        with pytest.raises(CommandFailed, match=r"was not ready within 0 s"):
            processes.await_ready("API", running, lambda: False, tmp_path / "log", 0.2)
    finally:
        processes.stop(running, 5)


def test_a_taken_port_is_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert processes.choose_port(port) not in (0, port)
    assert processes.choose_port(port) == port


def test_only_its_own_port_counts_as_served(tmp_path: Path, stranger: "subprocess.Popen[bytes]") -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert processes.listens(processes.note(os.getpid(), port))
        assert not processes.listens(processes.note(stranger.pid, port))


def test_a_home_keeps_its_secret_and_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARE_HOME", str(tmp_path / "home"))
    home = Home.open()
    assert home.secret() == Home.open().secret()
    assert len(home.secret()) >= 32
    assert (home.path / "secret").stat().st_mode & 0o777 == 0o600
    with home.locked(), pytest.raises(CommandFailed, match="Another `pare up`"), Home.open().locked():
        pass
    with home.locked():
        pass


def test_a_home_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PARE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(CommandFailed, match="set PARE_HOME"):
        Home.open()


def wait_for_children(pid: int) -> list[psutil.Process]:
    wait_for(lambda: bool(psutil.Process(pid).children()))
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
