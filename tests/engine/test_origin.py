"""An artifact that is compressed further: its zeros stay, and nothing is measured in the name of its base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.engine.orders import order

from paredown.contracts.report import Evaluation
from paredown.contracts.work import Origin, WorkOrder
from paredown.engine.errors import BaselineUnknown
from paredown.engine.run import run

GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
WANDA = {"method": "wanda", "sparsity": 0.5}
BASE_BYTES = 10**6


def carry_out(order: WorkOrder) -> Any:
    return run(order, lambda _progress: None, lambda: False).report


def further(
    root: Path, stage: dict[str, Any] = GPTQ, *, pruned: bool = True, required: bool = False, **changes: Any
) -> WorkOrder:
    """Another stage, GPTQ if none is given, on what Wanda has left in `root`."""
    origin = Origin(base_bytes=BASE_BYTES, pruned=pruned, baseline_required=required)
    changes = {"work_dir": root / "work-2", "output_dir": root / "out-2", "format": "safetensors", **changes}
    return order(root, [stage], model_dir=root / "out", origin=origin, **changes)


@pytest.fixture
def base(tmp_path: Path) -> Evaluation:
    """The base as the first job measured it; `out` below tmp_path is that job's artifact."""
    base = carry_out(order(tmp_path, [WANDA])).base
    assert base is not None
    return base


def zeros_of(directory: Path) -> dict[str, torch.Tensor]:
    weights = load_file(directory / "model.safetensors")
    return {name: weight == 0 for name, weight in weights.items() if "_proj" in name}


@pytest.mark.parametrize("pruned", [True, False])
def test_what_a_job_before_pruned_stays_zero(tmp_path: Path, base: Evaluation, pruned: bool) -> None:
    """GPTQ spreads errors over later columns, so only a mask keeps zeros; without one they would be filled again."""
    carry_out(further(tmp_path, pruned=pruned, evaluation=None))
    before, after = zeros_of(tmp_path / "out"), zeros_of(tmp_path / "out-2")
    assert before.keys() == after.keys()
    kept = [bool((after[name] | ~before[name]).all()) for name in before]
    assert all(kept) is pruned


def test_it_stays_zero_where_bits_are_chosen_for_each_layer(tmp_path: Path, base: Evaluation) -> None:
    stage = {"method": "mixed", "group_size": 32, "average_bits": 4.0}
    report = carry_out(further(tmp_path, stage, evaluation=None))
    assert len({layer.bits for layer in report.layers}) > 1
    before, after = zeros_of(tmp_path / "out"), zeros_of(tmp_path / "out-2")
    assert all((after[name] | ~before[name]).all() for name in before)


def test_the_base_is_the_one_that_was_measured_before(tmp_path: Path, base: Evaluation) -> None:
    report = carry_out(further(tmp_path, baseline=base, required=True))
    assert report.base == base.model_copy(update={"cached": True})
    assert report.artifact.protocol_hash == base.protocol_hash
    assert report.base_bytes == BASE_BYTES
    [warning] = report.warnings
    assert report.divergence is None, "its states were not kept, and the base is not here"
    assert "divergence from the base was not measured" in warning
    assert report.size_ratio == report.size_bytes / BASE_BYTES


def test_the_artifact_is_never_measured_as_the_base(tmp_path: Path, base: Evaluation) -> None:
    other = base.model_copy(update={"protocol_hash": "0" * 64})
    for number, baseline in enumerate((None, other)):
        places = {"work_dir": tmp_path / f"w{number}", "output_dir": tmp_path / f"o{number}"}
        report = carry_out(further(tmp_path, baseline=baseline, **places))
        assert report.base is None
        assert report.artifact is not None
        assert "base's perplexity under this evaluation is not known" in report.warnings[0]


def test_a_budget_that_needs_the_base_fails_before_any_work(tmp_path: Path, base: Evaluation) -> None:
    with pytest.raises(BaselineUnknown, match="Submit a job on the base") as raised:
        carry_out(further(tmp_path, required=True, baseline=base.model_copy(update={"protocol_hash": "0" * 64})))
    assert raised.value.field == "budget.max_perplexity_increase"
    assert not (tmp_path / "work-2" / "journal.json").exists()


def test_speed_is_the_artifacts_alone(tmp_path: Path, base: Evaluation) -> None:
    settings = {"samples": 3, "sequence_length": 64, "speed": True}
    report = carry_out(further(tmp_path, evaluation=settings, runtimes=("transformers",)))
    assert set(report.speeds) == {"artifact"}
    assert report.runtimes[0].loads
