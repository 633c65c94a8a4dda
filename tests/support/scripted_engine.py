"""A program that speaks the engine's protocol and does as it is told, in milliseconds: for what an engine may do to its
supervisor, and the other way round. `python scripted_engine.py SCRIPT.JSON-TEXT ORDER.json`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from paredown.contracts.artifact import Isolation
from paredown.contracts.job import JobError, Phase, Progress, content_hash
from paredown.contracts.report import Evaluation, Protocol, Report
from paredown.contracts.work import (
    CALIBRATION_FILE,
    DrawnCalibration,
    EngineDrained,
    EngineFailure,
    EngineMessage,
    EngineProgress,
    EngineRehearsed,
    EngineResult,
    EngineStarted,
    Rehearsal,
    WorkOrder,
)

DEFAULTS: dict[str, Any] = {
    "blocks": 3,
    "block_seconds": 0.02,
    "evaluate_seconds": 0.0,
    "ending": "result",
    "perplexity": 11.0,
    "drains": True,
    "keep_order": None,
    "rehearsal": {},
    # Token blocks that it says it drew, where it was given a text for them.
    "tokens": None,
    "tokenizer": "bytes",
}
# One block of the small model, as it might have gone.
REHEARSAL: dict[str, Any] = {
    "block": 0,
    "block_seconds": 0.1,
    "checkpoint_bytes": 1000,
    "saved_bytes": 1000,
    "saved_seconds": 0.01,
    "read_tokens": 128,
    "read_seconds": 0.001,
    "memory_bytes": 600 * 2**20,
}


class Inbox(threading.Thread):
    """Lines of standard input; the end of it ends the process, as the real engine's does."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.drain = False
        self._log = log

    def run(self) -> None:
        for line in sys.stdin:
            with self._log.open("a") as log:
                log.write(line)
            self.drain = self.drain or line.strip() == "drain"
        os.killpg(0, signal.SIGKILL)


def say(message: EngineMessage) -> None:
    sys.stdout.write(message.model_dump_json() + "\n")
    sys.stdout.flush()


def main() -> None:
    script = {**DEFAULTS, **json.loads(sys.argv[1])}
    order = WorkOrder.model_validate_json(Path(sys.argv[2]).read_bytes())
    if script["keep_order"]:
        Path(script["keep_order"]).write_text(order.model_dump_json())
    order.work_dir.mkdir(parents=True, exist_ok=True)
    inbox = Inbox(order.work_dir.parent / "heard.txt")
    inbox.start()
    sys.stderr.write("the scripted engine has started\n")
    if order.statistics_dir:
        with (order.statistics_dir / "runs").open("a") as runs:
            runs.write(f"{order.recipe[0].method}\n")
    say(EngineStarted(isolation=Isolation(process_group=True), tools={"scripted": "1"}, device="cpu"))
    if order.rehearse:
        say(EngineRehearsed(rehearsal=Rehearsal.model_validate(REHEARSAL | script["rehearsal"])))
        return
    if script["ending"] == "grandchild":
        child = subprocess.Popen(["sleep", "1000"])
        (order.work_dir.parent / "grandchild").write_text(str(child.pid))
    for block in range(script["blocks"]):
        shard = order.work_dir / f"block-{block:05d}.safetensors"
        if not shard.exists():
            time.sleep(script["block_seconds"])
            partial = shard.with_suffix(".partial")
            partial.write_bytes(os.urandom(64))
            partial.rename(shard)
        say(_progress(Phase.COMPRESS, 0.5 * (block + 1) / script["blocks"], block + 1, script["blocks"]))
        if inbox.drain and script["drains"]:
            say(EngineDrained())
            return
    say(_progress(Phase.EVALUATE, 0.6, None, None))
    time.sleep(script["evaluate_seconds"])
    end(script, order)


def end(script: dict[str, Any], order: WorkOrder) -> None:
    match script["ending"]:
        case "result":
            write_output(order)
            keep_tokens(script, order)
            say(result(script, order))
        case "failure":
            error = JobError(code="hessian_singular", detail="The Hessian of a layer is singular.", field="recipe.0")
            say(EngineFailure(error=error))
        case "retryable":
            say(EngineFailure(error=JobError(code="disk_full", detail="The disk is full.", retryable=True)))
        case "exit":
            sys.stderr.write("something went wrong\n")
            sys.stderr.flush()
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "garbage":
            sys.stdout.write("Downloading shards: 100%\n")
            sys.stdout.flush()
            time.sleep(1000)
        case "drained-unasked":
            say(EngineDrained())
        case "hang" | "grandchild":
            time.sleep(1000)
        case other:
            raise AssertionError(other)


def write_output(order: WorkOrder) -> None:
    order.output_dir.mkdir(parents=True)
    (order.output_dir / "config.json").write_text("{}")
    (order.output_dir / "deep").mkdir()
    (order.output_dir / "deep" / "model.safetensors").write_bytes(
        b"".join(path.read_bytes() for path in sorted(order.work_dir.glob("block-*")))
    )


def keep_tokens(script: dict[str, Any], order: WorkOrder) -> None:
    if not (script["tokens"] and order.calibration_text):
        return
    import numpy  # a tenth of a second, which other scripts need not wait for

    numpy.save(order.work_dir / CALIBRATION_FILE, numpy.array(script["tokens"], dtype=numpy.int32))


def result(script: dict[str, Any], order: WorkOrder) -> EngineResult:
    base = artifact = None
    if order.evaluation is not None:
        protocol = Protocol(
            source=order.evaluation.source,
            tokens_sha256="0" * 64,
            samples=order.evaluation.samples,
            sequence_length=order.evaluation.sequence_length,
            dtype=order.dtype,
        )
        fixed = {
            "protocol": protocol,
            "protocol_hash": content_hash(protocol.model_dump(mode="json")),
            "predicted_tokens": 100,
            "device": "cpu",
            "seconds": 0.1,
        }
        base = order.baseline or (None if order.origin else Evaluation(perplexity=10.0, **fixed))
        artifact = Evaluation(perplexity=script["perplexity"], **fixed)
    drawn = None
    if script["tokens"] and order.calibration_text:
        drawn = DrawnCalibration(tokenizer_sha256=sha256(script["tokenizer"].encode()).hexdigest(), held_out_windows=5)
    return EngineResult(
        report=Report(
            base=base,
            artifact=artifact,
            size_bytes=192,
            base_bytes=order.origin.base_bytes if order.origin else 1000,
            sparsity=0.0,
            average_bits=4.25,
            layers=(),
        ),
        calibration_tokens_sha256=sha256(repr(script["tokens"]).encode()).hexdigest() if order.calibration else None,
        drawn=drawn,
        evaluation_tokens_sha256="0" * 64,
    )


def _progress(phase: Phase, fraction: float, block: int | None, num_blocks: int | None) -> EngineProgress:
    return EngineProgress(progress=Progress(phase=phase, fraction=fraction, block=block, num_blocks=num_blocks))


if __name__ == "__main__":
    main()
