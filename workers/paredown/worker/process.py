"""The engine as a child process: started with nothing but its order, heard line by line, and never left behind.

The child leads its own session and process group, so that one signal ends it with all it started. It gets no
environment of ours, hence no credentials. When we die, its standard input closes and it ends by itself.
"""

import importlib.metadata
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import structlog
from pydantic import ValidationError

from paredown.contracts.work import (
    DRAIN,
    ENGINE_MESSAGE,
    TICK,
    EngineFailure,
    EngineMessage,
    EngineProgress,
    EngineRehearsed,
    EngineResult,
    EngineStarted,
    Rehearsal,
    WorkOrder,
)
from paredown.core.errors import EngineCrashed, EngineFailed

log = structlog.get_logger(__name__)

# -P keeps the working directory, where a model's files may lie, out of the module search path.
ENGINE_COMMAND = (sys.executable, "-P", "-m", "paredown.engine")
LINE_LIMIT_BYTES = 64 * 2**20
LOG_TAIL_BYTES = 64 * 2**10
ATTEND_SECONDS = 0.1
EXIT_SECONDS = 10
KILL_SECONDS = 60

# What Python and torch may need of ours: where libraries and GPUs are. Nothing that names a service or a secret.
_INHERITED = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)
# An operator who sets one of these chooses the allocator.
_ALLOCATING = ("GLIBC_TUNABLES", "LD_PRELOAD")
# Where mimalloc is not: glibc would come to take blocks of up to 32 MB from its heap, which then falls into pieces, and
# peaks were up to several times what was in use. Those from 1 MB on, as nearly all tensors are, are mapped by
# themselves: peaks are steady, and each of them is paid for in page faults.
_GLIBC = "glibc.malloc.mmap_threshold=1048576:glibc.malloc.hugetlb=1"


@dataclass(frozen=True)
class EngineRun:
    """A run that ended well, with what its order asked for: a result, or a rehearsal. Both are None when the engine
    drained: it stopped at a block boundary as asked."""

    started: EngineStarted
    result: EngineResult | None = None
    rehearsal: Rehearsal | None = None


@dataclass(frozen=True)
class _Garbage:
    """Something on standard output that is no message."""

    detail: str


class _End:
    """Standard output is closed."""


class EngineProcess:
    """One engine. A context manager: whatever happens inside, the whole process group is gone afterwards."""

    def __init__(self, order: WorkOrder, directory: Path, *, command: Sequence[str] = ENGINE_COMMAND) -> None:
        """`directory` is the child's working and home directory; the order and the log are left there."""
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / "tmp"
        temporary.mkdir(exist_ok=True)
        order_file = directory / "order.json"
        order_file.write_text(order.model_dump_json(), encoding="utf-8")
        self._log_file = directory / "engine.log"
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*command, str(order_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=-1,
            cwd=directory,
            env=engine_environment(directory, temporary, order.threads),
            start_new_session=True,
            close_fds=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdin: int | None = self._process.stdin.fileno()
        self._stdin_lock = threading.Lock()
        # A tick must never block us, even if the engine has stopped reading.
        os.set_blocking(self._stdin, False)
        _prefer_for_oom(self.pid)
        self._messages: queue.SimpleQueue[EngineMessage | _Garbage | _End] = queue.SimpleQueue()
        self._tail = bytearray()
        self._kill_lock = threading.Lock()
        self._threads = (
            threading.Thread(target=self._read_messages, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_log, args=(self._process.stderr,), daemon=True),
        )
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tick(self) -> None:
        """Tell the engine that its supervisor lives and holds the job. Callable from any thread."""
        self._write(TICK)

    def drain(self) -> None:
        """Ask the engine to stop at the next block boundary."""
        self._write(DRAIN)

    def kill(self) -> None:
        """End the engine and all that it started, now. Callable from any thread, any number of times."""
        with self._kill_lock:
            if self._process.returncode is None:
                # The leader is not reaped yet, so the group's number cannot belong to anyone else.
                _kill_group(self.pid)
                self._process.wait(KILL_SECONDS)

    def receive(self, timeout_seconds: float) -> EngineMessage | None:
        """The next message, or None when none came in time. Raises EngineCrashed when there will be no other."""
        try:
            item = self._messages.get(timeout=timeout_seconds)
        except queue.Empty:
            if not self._leader_exited():
                return None
            # A process that the engine left behind may hold its output open; without it, the reader comes to an end.
            _kill_group(self.pid)
            try:
                item = self._messages.get(timeout=EXIT_SECONDS)
            except queue.Empty:
                item = _End()
        if isinstance(item, _Garbage):
            self.kill()
            raise EngineCrashed(item.detail)
        if isinstance(item, _End):
            self._await_exit(EXIT_SECONDS)
            self.kill()
            raise EngineCrashed(_epitaph(self._process.returncode))
        return item

    def finish(self) -> None:
        """After the last message: let the engine leave by itself, for a moment."""
        self._await_exit(EXIT_SECONDS)
        self.kill()

    def log_tail(self) -> str:
        """The end of what the engine wrote on standard error."""
        return bytes(self._tail).decode("utf-8", errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for thread in self._threads:
            thread.join(EXIT_SECONDS)
        with self._stdin_lock:
            self._stdin = None
        _close(self._process.stdin)
        for thread, stream in zip(self._threads, (self._process.stdout, self._process.stderr), strict=True):
            if thread.is_alive():
                # Something escaped the process group and holds the other end; closing would wait for it.
                log.warning("engine_output_held_open", pid=self.pid)
            else:
                _close(stream)
        try:
            self._log_file.write_bytes(self._tail)
        except OSError as failure:
            log.warning("engine_log_not_kept", error=str(failure))
        if isinstance(error, EngineCrashed):
            log.error("engine_crashed", detail=error.detail, returncode=self._process.returncode, log=self.log_tail())

    def _write(self, word: str) -> None:
        # A short write to a pipe is atomic. An engine that has gone, or no longer reads, is found by its output's end.
        with self._stdin_lock:
            if self._stdin is None:
                return
            try:
                os.write(self._stdin, f"{word}\n".encode())
            except (BrokenPipeError, BlockingIOError) as error:
                log.debug("engine_not_listening", word=word, error=str(error))

    def _read_messages(self, stream: IO[bytes]) -> None:
        while line := stream.readline(LINE_LIMIT_BYTES + 1):
            if len(line) > LINE_LIMIT_BYTES:
                self._messages.put(_Garbage("The engine wrote a line longer than any message."))
                return
            try:
                self._messages.put(ENGINE_MESSAGE.validate_json(line))
            except ValidationError:
                log.exception("engine_garbage", line=line[:500].decode("utf-8", errors="replace"))
                self._messages.put(_Garbage("The engine wrote something that is no message; its log says more."))
                return
        self._messages.put(_End())

    def _read_log(self, stream: IO[bytes]) -> None:
        while part := os.read(stream.fileno(), 65536):
            self._tail += part
            del self._tail[:-LOG_TAIL_BYTES]

    def _leader_exited(self) -> bool:
        """Without reaping it: until then its group's number stays taken."""
        if self._process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _await_exit(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._leader_exited() and time.monotonic() < deadline:
            time.sleep(0.02)


def run_engine(
    order: WorkOrder,
    directory: Path,
    *,
    on_message: Callable[[EngineStarted | EngineProgress], None],
    attend: Callable[[EngineProcess], None] = lambda _engine: None,
    command: Sequence[str] = ENGINE_COMMAND,
) -> EngineRun:
    """Run one order to its end.

    `attend` is called about ten times a second; what it raises ends the engine and passes through.
    Raises EngineFailed with the engine's own error, or EngineCrashed when it ended without a word.
    """
    started: EngineStarted | None = None
    with EngineProcess(order, directory, command=command) as engine:
        while True:
            message = engine.receive(ATTEND_SECONDS)
            attend(engine)
            if message is None:
                continue
            if isinstance(message, EngineStarted):
                started = message
                on_message(message)
            elif isinstance(message, EngineFailure):
                engine.finish()
                raise EngineFailed(message.error)
            elif started is None:
                raise EngineCrashed("The engine spoke before it said that it had started.")
            elif isinstance(message, EngineProgress):
                on_message(message)
            else:
                engine.finish()
                if isinstance(message, EngineRehearsed):
                    return EngineRun(started, rehearsal=message.rehearsal)
                return EngineRun(started, message if isinstance(message, EngineResult) else None)


def engine_environment(home: Path, temporary: Path, threads: int | None) -> dict[str, str]:
    """All that the child is told of the world."""
    environment = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith("MIMALLOC_")
    }
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }
    if not any(name in environment for name in _ALLOCATING):
        environment |= allocator()
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


@cache
def allocator() -> dict[str, str]:
    """What makes a child take its memory from mimalloc, whose wheel comes with the worker on Linux: tensors come and
    go, and it hands out the pages of the last ones again. Without it, settings for glibc (docs/performance.md)."""
    if sys.platform != "linux":
        return {}
    try:
        files = importlib.metadata.files("cmeel-mimalloc") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    libraries = [str(file.locate()) for file in files if file.name == "libmimalloc.so"]
    # The loader takes both for the end of a name.
    if not libraries or any(sign in libraries[0] for sign in " :"):
        log.warning("mimalloc_not_usable", found=libraries, instead=_GLIBC)
        return {"GLIBC_TUNABLES": _GLIBC}
    return {"LD_PRELOAD": libraries[0]}


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _prefer_for_oom(pid: int) -> None:
    """Where memory runs out, let the kernel end the engine and not its supervisor. Linux only; elsewhere no matter."""
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text("800", encoding="ascii")
    except OSError as error:
        log.debug("oom_preference_not_set", error=str(error))


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        try:
            stream.close()
        except BrokenPipeError:
            return


def _epitaph(returncode: int) -> str:
    if returncode == -signal.SIGKILL:
        return "The engine was killed; the usual reason is that the machine ran out of memory."
    if returncode < 0:
        return f"The engine was ended by {signal.Signals(-returncode).name}."
    return f"The engine ended with status {returncode} and without a result."


__all__ = ["ENGINE_COMMAND", "EngineProcess", "EngineRun", "run_engine"]
