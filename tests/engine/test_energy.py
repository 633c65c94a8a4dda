"""Energy from counters: a tree of files as Linux shows it, and what is made of what they count."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paredown.engine.evaluation.energy import PackageMeter
from paredown.engine.evaluation.speed import SpeedSettings, measure_energy

RANGE = 1_000_000


def zone(root: Path, name: str, kind: str, microjoules: int) -> Path:
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "name").write_text(f"{kind}\n")
    (directory / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (directory / "energy_uj").write_text(f"{microjoules}\n")
    return directory / "energy_uj"


def count(file: Path, microjoules: int) -> None:
    """What the machine took; the counter begins again at 0 when it is full."""
    file.write_text(f"{(int(file.read_text()) + microjoules) % RANGE}\n")


def test_processors_and_their_memory_are_added_and_a_counter_may_begin_again(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 100_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 500)
    # A part of the package, and the whole platform: both are in, or around, what is counted already.
    core, platform = zone(tmp_path, "intel-rapl:0:0", "core", 0), zone(tmp_path, "intel-rapl:2", "psys", 0)
    meter = PackageMeter.find(tmp_path)
    assert meter is not None
    assert (meter.counter, meter.covers) == ("rapl", "2 processors and memory of the whole machine")

    def work() -> None:
        for file, taken in ((first, 300_000), (second, 200_000), (memory, 50_000), (core, 9_000), (platform, 9_000)):
            count(file, taken)

    assert meter.over(work) == pytest.approx(0.55)
    assert meter.over(lambda: None) == 0


def test_without_a_counter_or_with_one_that_cannot_be_read_there_is_no_meter(tmp_path: Path) -> None:
    assert PackageMeter.find(tmp_path / "absent") is None
    zone(tmp_path, "intel-rapl:0", "psys", 0)
    assert PackageMeter.find(tmp_path) is None
    file = zone(tmp_path, "intel-rapl:1", "package-0", 0)
    meter = PackageMeter.find(tmp_path)
    assert meter is not None
    assert meter.covers == "processor of the whole machine"
    # As for a user who may not read it; root may read anything, so it is taken away.
    assert meter.over(file.unlink) is None
    assert PackageMeter.find(tmp_path) is None, "half of a machine is no measure of it"


class Counted:
    """A runtime that takes 1000 µJ for each token of a prompt, 2000 for one decoded alone, 500 beside others."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def time(self, prompt: Sequence[int], new_tokens: int) -> tuple[float, float]:
        count(self._file, 1000 * len(prompt) + 2000 * new_tokens)
        return 0.1, 0.1

    def time_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        count(self._file, 1000 * sum(map(len, prompts)) + 500 * len(prompts) * new_tokens)
        return 0.1


def test_a_decoded_token_s_energy_leaves_the_prompt_out(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 3)
    meter = PackageMeter.find(tmp_path)
    assert meter is not None
    processes: Any = {"base": Counted(file), "artifact": Counted(file)}
    settings = SpeedSettings()
    found = measure_energy(processes, [[1] * 8] * settings.sequences, settings, meter)
    assert set(found) == {"base", "artifact"}
    assert found["base"].joules_per_token == pytest.approx(0.002)
    assert found["base"].batch_joules_per_token == pytest.approx(0.0005)
    assert (found["base"].sequences, found["base"].counter) == (8, "rapl")


def test_a_counter_that_shows_nothing_gives_no_figure(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    still = zone(tmp_path / "elsewhere", "intel-rapl:0", "package-0", 0)
    meter = PackageMeter.find(tmp_path)
    assert meter is not None
    processes: Any = {"artifact": Counted(still)}
    assert measure_energy(processes, [[1] * 8] * 8, SpeedSettings(), meter) == {}
