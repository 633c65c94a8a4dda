"""The engine's process: `python -m paredown.engine ORDER.json`, speaking the protocol of contracts/work.py.

Standard output carries messages and nothing else: what libraries print is turned to standard error. Standard input
carries the supervisor's ticks; when it ends, or is silent for too long, this process and its children end at once, in
the middle of whatever they compute. Exit status: 0 after a result or a drain, 1 after a failure with a name, 2 after
one without.
"""

import faulthandler
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from paredown.contracts.job import JobError
from paredown.contracts.work import (
    DRAIN,
    EngineDrained,
    EngineFailure,
    EngineMessage,
    EngineProgress,
    EngineRehearsed,
    EngineResult,
    EngineStarted,
    WorkOrder,
)
from paredown.engine import isolation
from paredown.engine.errors import DiskFull, Drained, EngineError, OrderInvalid, OutOfMemory, is_disk_full


class Channel:
    """Standard output, kept for messages alone."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, message: EngineMessage) -> None:
        try:
            self._stream.write(message.model_dump_json() + "\n")
            self._stream.flush()
        except BrokenPipeError:
            end_at_once("nobody reads the engine's messages any more")


class Supervisor:
    """Listens to standard input in a thread of its own."""

    def __init__(self, tick_timeout_seconds: float | None) -> None:
        self._timeout = tick_timeout_seconds
        self._drain = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._listen, name="supervisor", daemon=True).start()

    def should_drain(self) -> bool:
        return self._drain.is_set()

    def _listen(self) -> None:
        pending = b""
        while True:
            if self._timeout is not None:
                # A thread without Python's lock, for the case that a library holds the lock for too long.
                faulthandler.dump_traceback_later(self._timeout + 5, exit=True)
            readable, _, _ = select.select([0], [], [], self._timeout)
            received = os.read(0, 4096) if readable else b""
            if not received:
                end_at_once("the supervisor is gone" if readable else f"no tick came for {self._timeout:g} s")
            *lines, pending = (pending + received).split(b"\n")
            if DRAIN.encode() in lines:
                self._drain.set()


def end_at_once(reason: str) -> None:
    """End this process and every child of it, without unwinding: the order is another's now, or nobody's."""
    os.write(2, f"engine: {reason}; ending\n".encode())
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    # Not the leader of a group (isolation could not make one): children see the end of their input instead.
    os._exit(70)


def main(arguments: list[str]) -> int:
    channel = Channel()
    try:
        with tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True) as scratch:
            channel.send(_carry_out(_read_order(arguments), Path(scratch), channel))
    except Drained:
        channel.send(EngineDrained())
    except Exception as error:  # noqa: BLE001  # whatever it is, the supervisor hears of it
        named = as_engine_error(error)
        traceback.print_exc()
        channel.send(EngineFailure(error=named.as_job_error() if named else _unnamed(error)))
        return 1 if named else 2
    return 0


def _carry_out(order: WorkOrder, scratch: Path, channel: Channel) -> EngineResult | EngineRehearsed:
    applied = isolation.apply(
        required=order.require_isolation,
        readable=[order.model_dir, *order.model_dir.iterdir(), *_texts(order), *_vllm(order)],
        writable=[order.work_dir, order.output_dir, scratch, *([order.statistics_dir] if order.statistics_dir else [])],
    )
    # From here on a lost supervisor is noticed; a thread may only start once no namespace is to be entered.
    supervisor = Supervisor(order.tick_timeout_seconds)
    supervisor.start()
    _settle(order, scratch)

    # Not before: importing torch starts threads, and reads the settings made above.
    with _without("scipy"):
        from paredown.engine.run import device_of, run, tools

    channel.send(EngineStarted(isolation=applied, tools=tools(), device=device_of(order).type))
    if order.rehearse:
        from paredown.engine.rehearsal import rehearse

        return EngineRehearsed(rehearsal=rehearse(order, supervisor.should_drain))
    return run(order, lambda progress: channel.send(EngineProgress(progress=progress)), supervisor.should_drain)


# How libraries that keep only the message tell of it: torch, C++, CUDA and cuBLAS.
_OUT_OF_MEMORY = ("can't allocate memory", "std::bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def as_engine_error(error: BaseException) -> EngineError | None:
    """The name of a failure; None for a bug. Libraries wrap the system's errors and keep only the message."""
    if isinstance(error, EngineError):
        return error
    told = any(words in str(error) for words in _OUT_OF_MEMORY)
    if told or isinstance(error, MemoryError) or _is_cuda_out_of_memory(error):
        return OutOfMemory("The engine ran out of memory; use shorter sequences, fewer samples, or a larger worker.")
    if is_disk_full(error):
        return DiskFull("The worker's disk is full; free some space. Finished blocks are kept.")
    return None


def _is_cuda_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def _unnamed(error: BaseException) -> JobError:
    detail = f"The engine met a fault of its own ({type(error).__name__}); the worker's log has the details."
    return JobError(code="engine_internal", detail=detail)


def _read_order(arguments: list[str]) -> WorkOrder:
    """Raises OrderInvalid."""
    if len(arguments) != 1:
        raise OrderInvalid("The engine takes one argument: the path of a work order.")
    try:
        order = WorkOrder.model_validate_json(Path(arguments[0]).read_bytes())
    except OSError as error:
        raise OrderInvalid(f"The work order cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        [first, *_] = error.errors()
        where = ".".join(map(str, first["loc"])) or "the order"
        raise OrderInvalid(f"The work order is not valid at {where}: {first['msg']}.") from error
    if not order.model_dir.is_dir():
        raise OrderInvalid("The order's model_dir is not a directory.")
    for text in _texts(order):
        if not text.is_file():
            raise OrderInvalid(f"The order names the text {text.name}, which is not there.")
    return order


def _texts(order: WorkOrder) -> list[Path]:
    rows = (path for task in order.tasks for path in (task.rows, task.fewshot))
    return [
        text
        for text in (
            order.calibration_text,
            order.calibration_tokens,
            order.evaluation_text,
            *order.domain_texts,
            *rows,
        )
        if text is not None
    ]


def _vllm(order: WorkOrder) -> list[Path]:
    """vLLM's interpreter and the environment that it lies in."""
    return [] if order.vllm_python is None else [order.vllm_python, order.vllm_python.parent.parent]


@contextmanager
def _without(package: str) -> Iterator[None]:
    """As if a package were not installed. transformers loads SciPy, 35 MB of memory, for losses of object detection."""
    sys.modules[package] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    try:
        yield
    finally:
        del sys.modules[package]


def _settle(order: WorkOrder, scratch: Path) -> None:
    """What libraries read from the environment when they are imported."""
    home = str(scratch)
    settings = {
        "HF_DATASETS_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "HF_HOME": home,
        "HF_HUB_OFFLINE": "1",
        "HOME": home,
        "TMPDIR": home,
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_OFFLINE": "1",
    }
    if order.threads is not None:
        settings["OMP_NUM_THREADS"] = str(order.threads)
    os.environ.update(settings)
    tempfile.tempdir = home


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    # Without the interpreter's farewell: a library's thread that does not end must not keep the process.
    os._exit(status)
