"""What a manifest says, and what a job costs."""

from pathlib import Path
from uuid import uuid4

import pytest

from paredown.contracts.artifact import MANIFEST_NAME, BaseModelRecord, Isolation, Manifest, verify_files
from paredown.contracts.job import Budget, Format
from paredown.contracts.recipes import recipe_hash
from paredown.contracts.report import Report, Speed, Verdict
from paredown.contracts.work import EngineResult, EngineStarted, WorkOrder
from paredown.core.prices import Rate
from paredown.worker import publish

REPORT = Report(base=None, artifact=None, size_bytes=40, base_bytes=100, sparsity=0.0, average_bits=4.25)
BASE = BaseModelRecord(
    uri="file:///m", revision="1", fingerprint="a" * 64, model_type="llama", parameters=50, base_bytes=100
)


def speed(decode: float) -> Speed:
    return Speed(
        runtime="transformers",
        device="cpu",
        prefill_tokens_per_second=100,
        decode_tokens_per_second=decode,
        prompt_tokens=8,
        new_tokens=8,
        repeats=3,
        load_seconds=1,
        peak_memory_bytes=1,
        threads=1,
    )


def manifest_of(directory: Path) -> Manifest:
    order = WorkOrder.model_validate(
        {
            "model_dir": directory,
            "recipe": [{"method": "rtn"}],
            "calibration": None,
            "format": Format.COMPRESSED_TENSORS,
            "work_dir": directory,
            "output_dir": directory,
        }
    )
    return publish.build_manifest(
        directory,
        artifact_id=uuid4(),
        job_id=None,
        base=BASE,
        order=order,
        started=EngineStarted(isolation=Isolation(no_network=True), tools={"torch": "2"}, device="cpu"),
        result=EngineResult(report=REPORT, calibration_tokens_sha256=None, evaluation_tokens_sha256=None),
        report=REPORT,
    )


def test_a_manifest_lists_every_file_but_itself(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "deep" / "model.safetensors").write_bytes(b"weights")
    manifest = manifest_of(tmp_path)
    publish.write_manifest(manifest, tmp_path)
    assert [file.path for file in manifest.files] == ["config.json", "deep/model.safetensors"]
    assert manifest.recipe_hash == recipe_hash(manifest.recipe)
    assert manifest.isolation.no_network
    assert manifest.tools == {"torch": "2"}
    assert list(verify_files(manifest, tmp_path)) == []
    assert manifest_of(tmp_path).files == manifest.files
    assert Manifest.model_validate_json((tmp_path / MANIFEST_NAME).read_bytes()) == manifest
    (tmp_path / "config.json").write_text("{ }")
    assert len(list(verify_files(manifest, tmp_path))) == 1


def test_a_link_in_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="no plain file"):
        manifest_of(tmp_path)


def test_cost_is_time_at_the_pool_s_price() -> None:
    report = REPORT.model_copy(update={"speeds": {"base": speed(10), "artifact": speed(40)}})
    rate = Rate(3.6, "EUR")
    cost = publish.job_cost(report, rate=rate, job_seconds=1000)
    # A million tokens at 10 a second take 100,000 s, of which each costs a thousandth.
    assert cost.base_per_million_tokens == pytest.approx(100)
    assert cost.artifact_per_million_tokens == pytest.approx(25)
    assert (cost.job, cost.currency) == (pytest.approx(1.0), "EUR")
    without = publish.job_cost(REPORT, rate=rate, job_seconds=1000)
    assert without.base_per_million_tokens is None


def test_the_gate_speaks_only_where_there_is_a_budget() -> None:
    assert publish.complete_report(REPORT, cost=None, budget=None).gate is None
    gate = publish.complete_report(REPORT, cost=None, budget=Budget(max_size_ratio=0.35)).gate
    assert gate is not None
    assert gate.verdict is Verdict.MISSED
