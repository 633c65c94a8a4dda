"""Energy by the machine's own counters: RAPL for processors, NVML for GPUs. Where there is none, nothing is estimated.

A counter counts for the whole machine, or the whole GPU: what else runs there is in it. RAPL's are files that Linux
shows below /sys/class/powercap, for AMD's processors too; since 2020 most systems let root alone read them.
Units: joules; RAPL counts microjoules and begins again at 0, NVML counts millijoules.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """`covers` says in words what is counted."""

    counter: Literal["rapl", "nvml"]
    covers: str

    def over(self, work: Callable[[], object]) -> float | None:
        """Joules while `work` runs; None where the counter cannot be read any more."""


@dataclass(frozen=True)
class _Zone:
    """One of RAPL's counters."""

    file: Path
    range_microjoules: int

    @classmethod
    def of(cls, directory: Path) -> "_Zone":
        """Raises OSError or ValueError where it cannot be read."""
        zone = cls(directory / "energy_uj", int((directory / "max_energy_range_uj").read_text()))
        zone.read()
        return zone

    def read(self) -> int:
        return int(self.file.read_text())

    def since(self, before: int) -> int:
        """Microjoules; a counter that is lower than before began again once."""
        now = self.read()
        return now - before if now >= before else now + self.range_microjoules - before


class PackageMeter:
    """Processors, and their memory where that has a counter of its own."""

    counter: Literal["rapl", "nvml"] = "rapl"

    def __init__(self, zones: list[_Zone], covers: str) -> None:
        self.covers = covers
        self._zones = zones

    @classmethod
    def find(cls, root: Path = POWERCAP) -> "PackageMeter | None":
        """None where there is no counter, or one that may not be read: a part of the machine is no measure of it."""
        found: dict[str, list[_Zone]] = {"package": [], "dram": []}
        try:
            for directory in sorted(root.glob("intel-rapl:*")):
                name = (directory / "name").read_text().strip()
                kind = "package" if re.fullmatch(r"package-\d+", name) else name
                if kind in found:
                    found[kind].append(_Zone.of(directory))
        except (OSError, ValueError):
            return None
        packages, memory = found["package"], found["dram"]
        if not packages:
            return None
        processors = "processor" if len(packages) == 1 else f"{len(packages)} processors"
        covers = f"{processors}{' and memory' if memory else ''} of the whole machine"
        return cls([*packages, *memory], covers)

    def over(self, work: Callable[[], object]) -> float | None:
        try:
            before = [zone.read() for zone in self._zones]
            work()
            return sum(zone.since(start) for zone, start in zip(self._zones, before, strict=True)) / 1e6
        except (OSError, ValueError):
            return None


class GpuMeter:
    """The first GPU that this process sees."""

    counter: Literal["rapl", "nvml"] = "nvml"
    covers = "the whole GPU, without the processor beside it"

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    @classmethod
    def find(cls) -> "GpuMeter | None":
        """None without the package nvidia-ml-py, and on GPUs without a counter (before Volta, parts of a GPU)."""
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return None
        try:
            library.nvmlInit()
            # CUDA_VISIBLE_DEVICES numbers GPUs otherwise than NVML does.
            handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
            library.nvmlDeviceGetTotalEnergyConsumption(handle)
        except library.NVMLError:
            return None
        return cls(library, handle)

    def over(self, work: Callable[[], object]) -> float | None:
        try:
            before = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            work()
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) - before) / 1e3
        except self._library.NVMLError:
            return None


def meter_of(device: str) -> Meter | None:
    """What counts the energy of a device, where something does."""
    return GpuMeter.find() if device == "cuda" else PackageMeter.find()


__all__ = ["POWERCAP", "GpuMeter", "Meter", "PackageMeter", "meter_of"]
