"""Figures in the words and units that people read."""

from datetime import UTC, datetime

from paredown.contracts.job import Canary, Progress

NOTHING = "–"


def size(size_bytes: float) -> str:
    """Decimal units, as disks and networks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} TB"


def count(number: float) -> str:
    for unit in ("", " k", " M", " B"):
        if number < 1000:
            return f"{number:.0f}{unit}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} T"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def milliseconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{1000 * seconds:.0f} ms"


def money(amount: float | None, currency: str | None) -> str:
    return NOTHING if amount is None else f"{amount:.2g} {currency or ''}".rstrip()


def figure(value: float | None, form: str = ".2f") -> str:
    return NOTHING if value is None else format(value, form)


def age(moment: datetime) -> str:
    return f"{duration((datetime.now(UTC) - moment).total_seconds())} ago"


def step(progress: Progress | None) -> str:
    """`compress, block 7 of 30`"""
    if progress is None:
        return ""
    block = f", block {progress.block} of {progress.num_blocks}" if progress.num_blocks and progress.block else ""
    return f"{progress.phase}{block}"


def canary(found: Canary) -> str:
    """`Canary: 1 of 30 blocks took 1.2 s and 996.1 MB; expected to end in 2 min 40 s (planned 3 min 00 s)`"""
    line = f"Canary: 1 of {found.num_blocks} blocks took {brief(found.block_seconds)}"
    line += f" and {size(found.rehearsal_memory_bytes)}"
    if found.rehearsal_device_memory_bytes is not None:
        line += f" ({size(found.rehearsal_device_memory_bytes)} on the GPU)"
    if found.refusal is not None:
        return f"{line}. {found.refusal}"
    ends = found.seconds
    return f"{line}; expected to end in {duration(ends.expected)} (planned {duration(ends.planned)})"


def brief(seconds: float) -> str:
    """With tenths below ten seconds, which `duration` rounds away."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
