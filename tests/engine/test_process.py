"""The engine as its own process: what it says, and that it never outlives whoever started it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from tests.engine.orders import config_of, file_hashes, order, save_model, write_order

from paredown.contracts.job import Calibration, EvaluationSettings
from paredown.contracts.work import (
    ENGINE_MESSAGE,
    EngineDrained,
    EngineFailure,
    EngineMessage,
    EngineProgress,
    EngineResult,
    EngineStarted,
    WorkOrder,
)
from paredown.engine.__main__ import as_engine_error
from paredown.engine.run import run

RTN = {"method": "rtn", "bits": 4, "group_size": 32}
GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
PATIENCE = 120


class Engine:
    """One process, started as the supervisor starts it."""

    def __init__(self, directory: Path, order_file: Path) -> None:
        self.log = directory / "engine.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "paredown.engine", str(order_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={"HOME": str(directory), "TMPDIR": str(directory)},
                cwd=directory,
                start_new_session=True,
            )
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            self.lines.put(line)
        self.lines.put(b"")

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def until(self, wanted: Callable[[EngineMessage], bool]) -> EngineMessage:
        while True:
            message = self.next()
            assert message is not None, f"the engine ended: {self.log.read_text()[-3000:]}"
            if wanted(message):
                return message

    def next(self) -> EngineMessage | None:
        """The next message; None at the end of output. Any other line fails the test."""
        line = self.lines.get(timeout=PATIENCE)
        return ENGINE_MESSAGE.validate_json(line) if line else None

    def rest(self) -> list[EngineMessage]:
        messages = []
        while (message := self.next()) is not None:
            messages.append(message)
        return messages

    def family(self) -> list[psutil.Process]:
        leader = psutil.Process(self.process.pid)
        return [leader, *leader.children(recursive=True)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[WorkOrder], Engine]]:
    engines: list[Engine] = []

    def begin(order: WorkOrder) -> Engine:
        path = write_order(order, tmp_path / "order.json")
        engines.append(Engine(tmp_path, path))
        return engines[-1]

    yield begin
    for engine in engines:
        if engine.process.poll() is None:
            os.killpg(engine.process.pid, signal.SIGKILL)
        engine.process.wait()
        assert engine.process.stdin is not None
        assert engine.process.stdout is not None
        engine.process.stdin.close()
        engine.process.stdout.close()


def long_order(root: Path, **changes: Any) -> WorkOrder:
    """Seconds of work in every block."""
    if not (root / "model").exists():
        save_model(root / "model", config_of("llama", hidden=512, blocks=12))
    return order(root, [GPTQ], calibration=Calibration(samples=40, sequence_length=256), **changes)


def is_block(message: EngineMessage, number: int) -> bool:
    return isinstance(message, EngineProgress) and message.progress.block == number


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all end within so many seconds; a zombie whose parent is this test has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            return True
        time.sleep(0.02)
    return False


def test_a_run_speaks_messages_only_and_ends_with_the_result(
    tmp_path: Path, start: Callable[[WorkOrder], Engine]
) -> None:
    whole = order(
        tmp_path,
        [RTN],
        evaluation=EvaluationSettings(samples=3, sequence_length=64, speed=True),
        runtimes=("transformers",),
        require_isolation=sys.platform == "linux",
    )
    engine = start(whole)

    messages = engine.rest()

    assert engine.process.wait(PATIENCE) == 0
    started, result = messages[0], messages[-1]
    assert isinstance(started, EngineStarted)
    assert started.isolation.process_group
    assert started.isolation.empty_environment
    assert started.isolation.no_network is (sys.platform == "linux")
    assert {"paredown", "torch", "transformers", "compressed-tensors"} <= set(started.tools)
    assert all(isinstance(message, EngineProgress) for message in messages[1:-1])
    assert isinstance(result, EngineResult)
    report = result.report
    assert report.artifact is not None
    [proof, *others] = report.runtimes
    assert (proof.runtime, proof.loads) == ("transformers", True)
    assert proof.perplexity == pytest.approx(report.artifact.perplexity, rel=1e-4)
    assert proof.sample
    assert {(other.runtime, other.loads) for other in others} == {("vllm", False), ("llama.cpp", False)}
    assert set(report.speeds) == {"base", "artifact"}
    for speed in report.speeds.values():
        assert speed.threads == 1
        assert min(speed.prefill_tokens_per_second, speed.decode_tokens_per_second, speed.load_seconds) > 0
        assert speed.peak_memory_bytes > 100 * 2**20
    assert not list(tmp_path.glob("engine-*")), "the scratch directory stayed behind"
    assert {path.suffix for path in (tmp_path / "work").iterdir()} <= {".json", ".safetensors", ".npy"}


def test_what_libraries_print_goes_to_the_log() -> None:
    script = """
import os, subprocess, sys
from paredown.contracts.work import EngineDrained
from paredown.engine.__main__ import Channel
channel = Channel()
print("chatter", flush=True)
os.write(1, b"raw chatter\\n")
subprocess.run(["echo", "a child's chatter"], check=True)
channel.send(EngineDrained())
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert finished.stdout == '{"type":"drained"}\n'
    assert finished.stderr == "chatter\nraw chatter\na child's chatter\n"


def test_the_engine_dies_with_its_supervisor_in_the_middle_of_computing(
    tmp_path: Path, start: Callable[[WorkOrder], Engine]
) -> None:
    engine = start(long_order(tmp_path))
    engine.until(lambda message: is_block(message, 1))
    family = engine.family()

    assert engine.process.stdin is not None
    engine.process.stdin.close()

    assert gone(family, 2)
    assert "the supervisor is gone" in engine.log.read_text()


def test_the_engine_dies_with_its_supervisor_while_a_runtime_loads(
    tmp_path: Path, start: Callable[[WorkOrder], Engine]
) -> None:
    engine = start(order(tmp_path, [RTN], evaluation=None, runtimes=("transformers",)))
    family = with_a_runtime(engine)

    assert engine.process.stdin is not None
    engine.process.stdin.close()

    assert gone(family, 2)


def test_a_killed_engine_leaves_no_runtime_behind(tmp_path: Path, start: Callable[[WorkOrder], Engine]) -> None:
    engine = start(order(tmp_path, [RTN], evaluation=None, runtimes=("transformers",)))
    family = with_a_runtime(engine)

    engine.process.kill()

    assert gone(family, 2)


def with_a_runtime(engine: Engine) -> list[psutil.Process]:
    """Wait until the engine has started a runtime; both."""
    engine.until(lambda message: isinstance(message, EngineProgress) and "in transformers" in message.progress.message)
    deadline = time.monotonic() + PATIENCE
    while len(engine.family()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return engine.family()


def test_silence_ends_the_engine_and_ticks_keep_it(tmp_path: Path, start: Callable[[WorkOrder], Engine]) -> None:
    engine = start(long_order(tmp_path, tick_timeout_seconds=3))
    family = engine.family()
    began = time.monotonic()
    while time.monotonic() < began + 6:
        engine.say("tick")
        time.sleep(0.3)
    assert engine.process.poll() is None

    assert gone(family, 6)
    assert "no tick came for 3 s" in engine.log.read_text()


def test_killed_and_drained_a_run_still_ends_with_the_same_bytes(
    tmp_path: Path, start: Callable[[WorkOrder], Engine]
) -> None:
    save_model(tmp_path / "model", config_of("llama", hidden=128, blocks=8))
    work = order(tmp_path, [GPTQ], calibration=Calibration(samples=16, sequence_length=256), evaluation=None)

    killed = start(work)
    killed.until(lambda message: is_block(message, 2))
    killed.process.kill()
    killed.process.wait()
    drained = start(work)
    first = drained.until(lambda message: isinstance(message, EngineProgress) and message.progress.block is not None)
    drained.say("drain")
    assert not is_block(first, 0)
    assert isinstance(drained.rest()[-1], EngineDrained)
    assert drained.process.wait(PATIENCE) == 0
    finished = json.loads((tmp_path / "work" / "journal.json").read_text())["blocks"]
    assert 2 <= len(finished) < 8
    resumed = start(work)
    resumed.until(lambda message: is_block(message, len(finished)))
    assert isinstance(resumed.rest()[-1], EngineResult)

    # Uninterrupted, and in another process.
    whole = work.model_copy(update={"work_dir": tmp_path / "whole-work", "output_dir": tmp_path / "whole"})
    run(whole, lambda _progress: None, lambda: False)
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def failure(tmp_path: Path, content: bytes | WorkOrder) -> tuple[EngineFailure, int]:
    """The last line of an engine whose order cannot be carried out, and its exit status."""
    path = tmp_path / "order.json"
    path.write_bytes(content if isinstance(content, bytes) else content.model_dump_json().encode())
    engine = Engine(tmp_path, path)
    messages = engine.rest()
    status = engine.process.wait(PATIENCE)
    assert engine.process.stdin is not None
    assert engine.process.stdout is not None
    engine.process.stdin.close()
    engine.process.stdout.close()
    [last] = [message for message in messages if not isinstance(message, EngineStarted)]
    assert isinstance(last, EngineFailure)
    assert "Traceback" not in last.error.detail
    return last, status


def hostile(values: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**values, **changes}).encode()


def test_an_order_that_is_none_is_refused(tmp_path: Path) -> None:
    values = order(tmp_path, [RTN]).model_dump(mode="json")
    orders = {
        b"": "the order",
        b"\xff\xfe": "the order",
        b"[]": "the order",
        hostile(values, recipe=[]): "recipe",
        hostile(values, recipe=[{"method": "magic"}]): "recipe",
        hostile(values, recipe=[{"method": "rtn", "bits": 7}]): "bits",
        hostile(values, credentials="secret"): "credentials",
        hostile(values, model_dir=str(tmp_path / "nothing")): "model_dir is not a directory",
        hostile(values, calibration_text=str(tmp_path / "nothing.txt")): "nothing.txt, which is not there",
    }
    for content, where in orders.items():
        last, status = failure(tmp_path, content)
        assert (last.error.code, status) == ("order_invalid", 1)
        assert where in last.error.detail

    missing = Engine(tmp_path, tmp_path / "absent.json")
    [message] = missing.rest()
    assert isinstance(message, EngineFailure)
    assert message.error.code == "order_invalid"
    assert missing.process.wait(PATIENCE) == 1
    assert missing.process.stdin is not None
    assert missing.process.stdout is not None
    missing.process.stdin.close()
    missing.process.stdout.close()


def test_the_engine_loads_no_scipy_until_something_asks_for_it() -> None:
    script = (
        "import sys\nfrom paredown.engine import __main__ as engine\nwith engine._without('scipy'):\n"
        "    import paredown.engine.run, transformers.models.llama.modeling_llama\n"
        "assert not any(name.startswith('scipy.') for name in sys.modules)\nimport scipy.stats"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True)


def test_a_failure_with_a_name_ends_the_process_with_its_code(tmp_path: Path) -> None:
    good = order(tmp_path, [RTN], evaluation=None)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    last, status = failure(tmp_path, good)

    assert (last.error.code, status) == ("not_a_model", 1)


def test_a_bug_ends_the_process_with_a_code_of_its_own(tmp_path: Path) -> None:
    blocked = order(tmp_path, [RTN], evaluation=None, work_dir=tmp_path / "file" / "work")
    (tmp_path / "file").write_text("not a directory")

    last, status = failure(tmp_path, blocked)

    assert (last.error.code, status) == ("engine_internal", 2)
    assert "Traceback" in (tmp_path / "engine.log").read_text()


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (MemoryError(), "out_of_memory", False),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "out_of_memory",
            False,
        ),
        (RuntimeError("std::bad_alloc"), "out_of_memory", False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out_of_memory", False),
        (OSError(28, "No space left on device"), "disk_full", True),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "disk_full", True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full", True),
    ],
    ids=str,
)
def test_the_systems_refusals_have_names(error: Exception, code: str, retryable: bool) -> None:
    named = as_engine_error(error)

    assert named is not None
    assert (named.code, named.retryable) == (code, retryable)


def test_what_is_unknown_has_no_name() -> None:
    assert as_engine_error(ZeroDivisionError()) is None
    assert as_engine_error(OSError(13, "Permission denied")) is None
