"""What a rehearsal makes of a job's plan: formulas where nothing was measured, measurements where something was.

The engine ran the model's largest block through the job's linear stages, wrote it in the job's format and evaluated it
(engine/rehearsal.py). That block stands for every other one. What no block shows keeps its formula, at the speed that
was measured: stages across blocks, benchmarks, whole shards in memory.
Units: seconds, bytes.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from paredown.contracts.families import ModelShape
from paredown.contracts.job import Canary, Corrected, JobSpec, Plan
from paredown.contracts.recipes import shape_left
from paredown.contracts.work import Rehearsal
from paredown.core.estimates import (
    PROCESS_BYTES,
    checkpoint_bytes,
    memory_of,
    reading_seconds,
    seconds_of,
)
from paredown.core.history import download_seconds
from paredown.core.settings import Pool


@dataclass(frozen=True)
class Room:
    """What the worker has for the job. `disk_bytes` are free, beside the model itself."""

    disk_bytes: int
    deadline_at: datetime | None


def judge(
    rehearsal: Rehearsal,
    *,
    spec: JobSpec,
    shape: ModelShape,
    bare: Plan,
    planned: Plan,
    pool: Pool,
    threads: int | None,
    store_seconds: float,
    room: Room,
    now: datetime,
) -> Canary:
    """The plan, corrected, and whether the worker can carry it out. `bare` is the formulas' plan, from which figures
    are corrected; `planned` is what was said before, beside which they are shown."""
    device = rehearsal.device_memory_bytes
    memory, device_memory = _memory(rehearsal, spec, shape, pool)
    beside = planned.download_bytes
    disk = bare.disk_bytes - beside - checkpoint_bytes(shape, bare.output_bytes)
    disk += shape.num_blocks * rehearsal.checkpoint_bytes
    canary = Canary(
        passed=True,
        at=now,
        block=rehearsal.block,
        num_blocks=shape_left(shape, spec.recipe).num_blocks,
        block_seconds=rehearsal.block_seconds,
        rehearsal_memory_bytes=rehearsal.memory_bytes,
        rehearsal_device_memory_bytes=device,
        saved_bytes=rehearsal.saved_bytes,
        saved_seconds=rehearsal.saved_seconds,
        store_seconds=store_seconds,
        seconds=Corrected(
            planned=planned.seconds - download_seconds(planned),
            expected=_seconds(rehearsal, spec, shape, bare, pool, threads),
        ),
        memory_bytes=Corrected(planned=planned.memory_bytes, expected=memory),
        device_memory_bytes=None
        if device_memory is None
        else Corrected(planned=planned.device_memory_bytes or 0, expected=device_memory),
        disk_bytes=Corrected(planned=planned.disk_bytes - beside, expected=disk),
    )
    refusal = _refusal(canary, rehearsal, pool, room)
    return canary.model_copy(update={"passed": refusal is None, "refusal": refusal})


def _seconds(
    rehearsal: Rehearsal, spec: JobSpec, shape: ModelShape, bare: Plan, pool: Pool, threads: int | None
) -> float:
    formulas = seconds_of(shape, spec, pool.device, threads, bare.pausing)
    one_block = shape.without_blocks(shape.num_blocks - 1)
    slower = rehearsal.read_seconds / reading_seconds(one_block, spec, pool.device, threads, rehearsal.read_tokens)
    blocks = shape_left(shape, spec.recipe).num_blocks * rehearsal.block_seconds
    writing = rehearsal.saved_seconds * bare.output_bytes / max(rehearsal.saved_bytes, 1)
    return formulas.starting + blocks + writing + formulas.reading * slower


def _memory(rehearsal: Rehearsal, spec: JobSpec, shape: ModelShape, pool: Pool) -> tuple[int, int | None]:
    """(all that the engine will hold, that of it which lies on the GPU)"""
    beyond = memory_of(shape, spec, pool.device).beyond_blocks
    if rehearsal.device_memory_bytes is None:
        return max(rehearsal.memory_bytes, beyond), None
    device = max(rehearsal.device_memory_bytes, beyond - PROCESS_BYTES)
    return rehearsal.memory_bytes + device, device


def _refusal(canary: Canary, rehearsal: Rehearsal, pool: Pool, room: Room) -> str | None:
    """A sentence with figures, where the worker cannot carry out the job."""
    memory, device, disk = canary.memory_bytes, canary.device_memory_bytes, canary.disk_bytes
    ends_at = canary.at + timedelta(seconds=canary.seconds.expected)
    advice = "Use fewer or shorter calibration sequences, or another pool."
    if pool.memory_bytes is not None and memory.expected > pool.memory_bytes:
        return (
            f"The job needs {_mib(memory.expected)} of memory, as its largest block showed, and the worker may use "
            f"{_mib(pool.memory_bytes)}. {advice}"
        )
    if device and rehearsal.device_total_bytes is not None and device.expected > rehearsal.device_total_bytes:
        return (
            f"The job needs {_mib(device.expected)} on the GPU, as its largest block showed, and that has "
            f"{_mib(rehearsal.device_total_bytes)}. {advice}"
        )
    if disk.expected > room.disk_bytes:
        return (
            f"The job needs {_mib(disk.expected)} of disk, as its largest block showed, and the worker has "
            f"{_mib(room.disk_bytes)} left. Free some space, then retry."
        )
    if room.deadline_at is not None and ends_at > room.deadline_at:
        late = (ends_at - room.deadline_at).total_seconds()
        return (
            f"The job would take {canary.seconds.expected:.0f} s more, as its largest block showed, and end {late:.0f} "
            "s after its deadline. Submit it with a later deadline_at, or with less to do."
        )
    return None


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"


__all__ = ["Room", "judge"]
