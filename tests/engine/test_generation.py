"""Free generation: how much of it repeats, and that both sides are asked the same."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.engine.orders import order

from paredown.contracts.pieces import GENERATED_TOKENS
from paredown.engine.evaluation.generation import PROMPTS, of_roles, repetition
from paredown.engine.inputs import read_inputs
from paredown.engine.run import run
from paredown.engine.runtimes import RuntimeProcess

RTN = {"method": "rtn", "bits": 4, "group_size": 32}


def test_by_hand() -> None:
    assert repetition([1, 2, 3]) == 0
    assert repetition(range(64)) == 0
    # 1234, 2341, 3412, 4123, 1234: of five 4-grams the last occurred before.
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([7] * 64) == pytest.approx(60 / 61)


class Loop(RuntimeProcess):
    """A runtime whose model writes one token for ever, or counts."""

    name = "transformers"

    def __init__(self, loops: bool) -> None:
        self.loops = loops
        self.prompts: list[list[int]] = []

    def continuations(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        self.prompts = [list(prompt) for prompt in prompts]
        return [[40] * new_tokens if self.loops else list(range(new_tokens)) for _ in prompts]


def test_a_model_that_loops_is_told_from_one_that_writes(tmp_path: Path) -> None:
    inputs = read_inputs(order(tmp_path, [RTN]), order(tmp_path, [RTN]).format)
    sound, broken = Loop(False), Loop(True)
    written = of_roles({"base": sound, "artifact": broken}, inputs)
    assert sound.prompts == broken.prompts
    assert len({len(prompt) for prompt in sound.prompts}) == 1
    assert len(sound.prompts) == len(PROMPTS)
    assert written["base"].repetition == 0
    assert written["artifact"].repetition > 0.98
    assert written["artifact"].new_tokens == GENERATED_TOKENS
    assert all(sample.startswith(prompt[:8]) for sample, prompt in zip(written["base"].samples, PROMPTS, strict=True))


def test_the_proof_has_both_sides_where_speed_is_measured(tmp_path: Path) -> None:
    settings = {"samples": 2, "sequence_length": 32, "speed": True}
    report = run(
        order(tmp_path, [RTN], evaluation=settings, runtimes=("transformers",)), lambda _progress: None, lambda: False
    ).report
    assert set(report.generations) == {"base", "artifact"}
    for written in report.generations.values():
        assert 0 <= written.repetition < 1
        assert len(written.samples) == written.prompts == len(PROMPTS)
    assert report.repetition_increase == pytest.approx(
        report.generations["artifact"].repetition - report.generations["base"].repetition
    )
    alone = run(
        order(
            tmp_path,
            [RTN],
            evaluation={**settings, "speed": False},
            runtimes=("transformers",),
            output_dir=tmp_path / "o2",
            work_dir=tmp_path / "w2",
        ),
        lambda _progress: None,
        lambda: False,
    ).report
    assert set(alone.generations) == {"artifact"}
    assert alone.generations["artifact"] == report.generations["artifact"]
    assert alone.repetition_increase is None
