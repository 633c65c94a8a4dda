"""The engine's process as its supervisor sees it, with a scripted engine in its place."""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from paredown.contracts.job import Calibration, Format, Phase
from paredown.contracts.work import EngineProgress, EngineStarted, WorkOrder
from paredown.core.errors import EngineCrashed, EngineFailed
from paredown.worker import process
from paredown.worker.process import EngineProcess, EngineRun, run_engine

SCRIPTED = Path(__file__).parents[1] / "support" / "scripted_engine.py"


def scripted(**script: object) -> tuple[str, ...]:
    return (sys.executable, "-P", str(SCRIPTED), json.dumps(script))


@pytest.fixture
def order(tmp_path: Path) -> WorkOrder:
    model = tmp_path / "model"
    model.mkdir()
    return WorkOrder.model_validate(
        {
            "model_dir": model,
            "recipe": [{"method": "rtn"}],
            "calibration": Calibration(),
            "format": Format.COMPRESSED_TENSORS,
            "work_dir": tmp_path / "run" / "checkpoint",
            "output_dir": tmp_path / "run" / "output",
        }
    )


def run(
    order: WorkOrder,
    *,
    attend: Callable[[EngineProcess], None] = lambda _: None,
    heard: list[EngineStarted | EngineProgress] | None = None,
    **script: object,
) -> EngineRun:
    collect = heard if heard is not None else []
    return run_engine(
        order, order.work_dir.parent, on_message=collect.append, attend=attend, command=scripted(**script)
    )


def test_a_run_tells_its_progress_and_ends_with_its_result(order: WorkOrder) -> None:
    heard: list[EngineStarted | EngineProgress] = []
    ran = run(order, heard=heard, blocks=2)
    assert ran.result is not None
    assert ran.started.tools == {"scripted": "1"}
    phases = [message.progress.phase for message in heard if isinstance(message, EngineProgress)]
    assert phases == [Phase.COMPRESS, Phase.COMPRESS, Phase.EVALUATE]
    assert (order.output_dir / "config.json").exists()


def test_the_child_leads_its_own_session_and_sees_none_of_our_environment(
    order: WorkOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARE_DATABASE_URL", "postgresql://secret@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with EngineProcess(order, order.work_dir.parent, command=scripted(ending="hang")) as engine:
        assert engine.receive(20) is not None
        child = psutil.Process(engine.pid)
        environment = child.environ()
        assert os.getsid(engine.pid) == engine.pid != os.getsid(0)
        assert child.cwd() == str(order.work_dir.parent)
    assert "secret" not in " ".join(environment.values())
    allowed = {*process._INHERITED, "HOME", "TMPDIR", "LANG", "PYTHONUNBUFFERED", "LC_CTYPE"}
    # glibc ends each of its settings with a zero, so that the second looks like a variable of its own.
    assert {name for name in environment if not name.startswith("glibc.")} <= allowed


@pytest.fixture
def no_chosen_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in process._ALLOCATING:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's variable is Linux's")
@pytest.mark.usefixtures("no_chosen_allocator")
def test_the_child_takes_its_memory_from_mimalloc(order: WorkOrder) -> None:
    with EngineProcess(order, order.work_dir.parent, command=scripted(ending="hang")) as engine:
        assert engine.receive(20) is not None
        mapped = [part.path for part in psutil.Process(engine.pid).memory_maps()]
    assert any("libmimalloc.so" in path for path in mapped)


@pytest.mark.usefixtures("no_chosen_allocator")
@pytest.mark.parametrize("name", ["LD_PRELOAD", "GLIBC_TUNABLES"])
def test_an_operator_chooses_another_allocator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "theirs")
    environment = process.engine_environment(Path("/home"), Path("/tmp"), None)
    assert {key: environment[key] for key in process._ALLOCATING if key in environment} == {name: "theirs"}


def test_an_operator_tunes_mimalloc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMALLOC_PURGE_DELAY", "10")
    assert process.engine_environment(Path("/home"), Path("/tmp"), None)["MIMALLOC_PURGE_DELAY"] == "10"


@pytest.mark.skipif(sys.platform != "linux", reason="mimalloc comes with the worker on Linux")
@pytest.mark.parametrize("missing", ["wheel", "usable path"])
def test_without_mimalloc_glibc_maps_tensors_by_themselves(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class File:
        name = "libmimalloc.so"

        def locate(self) -> Path:
            return Path("/opt/my tools/libmimalloc.so")

    monkeypatch.setattr(importlib.metadata, "files", lambda _name: [] if missing == "wheel" else [File()])
    process.allocator.cache_clear()
    try:
        assert process.allocator() == {"GLIBC_TUNABLES": process._GLIBC}
    finally:
        process.allocator.cache_clear()


def test_a_named_failure_keeps_its_code_and_field(order: WorkOrder) -> None:
    with pytest.raises(EngineFailed) as caught:
        run(order, ending="failure")
    problem = caught.value.as_job_error()
    assert (problem.code, problem.field, problem.retryable) == ("hessian_singular", "recipe.0", False)


@pytest.mark.parametrize(
    ("ending", "says"),
    [
        ("exit", "status 3"),
        ("killed", "ran out of memory"),
        ("garbage", "no message"),
    ],
)
def test_an_engine_without_last_words_has_crashed(order: WorkOrder, ending: str, says: str) -> None:
    with pytest.raises(EngineCrashed, match=says) as caught:
        run(order, ending=ending)
    assert caught.value.retryable
    assert "the scripted engine has started" in (order.work_dir.parent / "engine.log").read_text()


def test_a_line_without_end_is_not_read_into_memory(order: WorkOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LINE_LIMIT_BYTES", 64)
    with pytest.raises(EngineCrashed, match="longer than any message"):
        run(order)


def test_leaving_takes_the_whole_process_group_along(order: WorkOrder) -> None:
    note = order.work_dir.parent / "grandchild"

    def leave_once_it_has_a_child(engine: EngineProcess) -> None:
        if note.exists() and note.read_text():
            raise InterruptedError(str(engine.pid))

    with pytest.raises(InterruptedError) as caught:
        run(order, ending="grandchild", attend=leave_once_it_has_a_child)
    assert not psutil.pid_exists(int(str(caught.value)))
    assert is_gone(int(note.read_text()))


def test_a_child_that_outlives_its_engine_does_not_hold_the_supervisor_up(order: WorkOrder) -> None:
    note = order.work_dir.parent / "grandchild"

    def kill_the_leader_only(engine: EngineProcess) -> None:
        if note.exists() and note.read_text():
            psutil.Process(engine.pid).kill()

    started = time.monotonic()
    with pytest.raises(EngineCrashed):
        run(order, ending="grandchild", attend=kill_the_leader_only)
    assert time.monotonic() - started < process.EXIT_SECONDS
    assert is_gone(int(note.read_text()))


def test_a_drained_run_has_no_result(order: WorkOrder) -> None:
    ran = run(order, attend=lambda engine: engine.drain(), blocks=100, block_seconds=0.1)
    assert ran.result is None
    assert 0 < len(list(order.work_dir.glob("block-*"))) < 100


def test_ticks_arrive_and_ticking_a_finished_engine_is_no_error(order: WorkOrder) -> None:
    with EngineProcess(order, order.work_dir.parent, command=scripted(blocks=1)) as engine:
        assert engine.receive(20) is not None
        engine.tick()
        while engine.receive(20).type != "result":  # type: ignore[union-attr]
            engine.tick()
        engine.finish()
        engine.tick()
    engine.tick()
    assert "tick" in (order.work_dir.parent / "heard.txt").read_text()


def test_an_engine_whose_supervisor_has_closed_its_input_is_gone(order: WorkOrder) -> None:
    with EngineProcess(order, order.work_dir.parent, command=scripted(ending="hang")) as engine:
        assert engine.receive(20) is not None
        assert engine._process.stdin is not None
        engine._process.stdin.close()
        deadline = time.monotonic() + 10
        while not engine._leader_exited() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert engine._leader_exited()


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
