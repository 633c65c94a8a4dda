"""Memory of this process and of this machine."""

import ctypes
import gc
import sys
from pathlib import Path

import psutil
import torch


def peak_memory_bytes(device: torch.device) -> int:
    """The most this process ever held: on the GPU where the work ran there, else resident in memory."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most of this machine's memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: that also counts the process from which this one was forked.
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_memory_bytes(device: str) -> int:
    """Free memory of the GPU, or of this machine, or of its container where that is less."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        # No control group of version 2 limits this process.
        pass
    return max(available, 0)


def give_back(device: torch.device) -> None:
    """Return to the system what this process no longer uses, so that the next phase's peak is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return freed memory to the system, which allocators keep: glibc in pieces between what is still used."""
    if sys.platform != "linux":
        return
    process = ctypes.CDLL(None)
    # The worker starts the engine with mimalloc, where it can.
    if (collect := getattr(process, "mi_collect", None)) is not None:
        collect(ctypes.c_bool(True))
    elif (trim := getattr(process, "malloc_trim", None)) is not None:
        trim(0)
