"""Artifacts of the packaged 135 M model in vLLM itself, which lives in an environment of its own: `make vllm`.

vLLM pins versions of torch and transformers other than the engine's, so its process knows nothing of ours.
"""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.engine.test_real_model import GGUF, model_dir, texts

from paredown.contracts.job import Calibration, EvaluationSettings, Format
from paredown.contracts.recipes import (
    Fp8,
    Gptq,
    LlmPruner,
    Recipe,
    Rtn,
    ShortGpt,
    SmoothQuant,
    Wanda,
    WeightGrid,
    rounds_activations,
)
from paredown.contracts.report import Report, RuntimeProof
from paredown.contracts.work import WorkOrder
from paredown.core.errors import EngineFailed
from paredown.engine.vllm import TOLERANCE
from paredown.worker.process import run_engine

__all__ = ["model_dir", "texts"]

# The interpreter of vLLM's environment; `make vllm` names it.
PYTHON = os.environ.get("PARE_VLLM_PYTHON")
LENGTH = 256

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.model,
    pytest.mark.skipif(PYTHON is None, reason="vLLM has its own environment: run `make vllm`"),
]


def carry_out(root: Path, model: Path, texts: dict[str, Path], recipe: Recipe, **changes: Any) -> Report:
    """As a worker does: in an isolated process, from which vLLM's is started."""
    order = WorkOrder(
        model_dir=model,
        gguf_file=GGUF,
        recipe=recipe,
        calibration=Calibration(samples=4, sequence_length=LENGTH),
        calibration_text=texts["calibration"],
        evaluation=EvaluationSettings(samples=4, sequence_length=LENGTH, speed=False),
        evaluation_text=texts["evaluation"],
        format=Format.AUTO,
        dtype="bfloat16",
        work_dir=root / "work",
        output_dir=root / "out",
        runtimes=(),
        vllm_python=PYTHON,
        require_isolation=sys.platform == "linux",
        threads=1,
    ).model_copy(update=changes)
    result = run_engine(order, root / "engine", on_message=lambda _message: None).result
    assert result is not None
    return result.report


def in_vllm(report: Report, recipe: Recipe) -> RuntimeProof:
    """What vLLM did; skips the rest where it has no kernel for what it was given, once it has said so."""
    [proof] = [proof for proof in report.runtimes if proof.runtime == "vllm"]
    lacks, processor = None, Path("/proc/cpuinfo").read_text()
    is_x86 = platform.machine() == "x86_64"
    if is_x86 and any(isinstance(stage, WeightGrid) for stage in recipe) and "avx512f" not in processor:
        lacks = "AVX-512", "has no kernel for it on this cpu"
    if is_x86 and rounds_activations(recipe) and "_vnni" not in processor:
        lacks = "VNNI", "cuts sums off at 16 bits"
    if lacks:
        feature, sentence = lacks
        assert not proof.loads
        assert sentence in (proof.detail or "")
        pytest.skip(f"vLLM would want a CPU with {feature}")
    return proof


@pytest.mark.parametrize(
    ("recipe", "file_format"),
    [
        pytest.param((Gptq(bits=4, group_size=64),), Format.AUTO, id="gptq-4"),
        pytest.param((Gptq(bits=4, group_size=64),), Format.GPTQ, id="gptq-4-as-gptq"),
        pytest.param((Gptq(bits=4, group_size=64, symmetric=False),), Format.AWQ, id="gptq-4-as-awq"),
        pytest.param((Gptq(bits=4, group_size=64, symmetric=False),), Format.AUTO, id="gptq-4-asymmetric"),
        pytest.param((SmoothQuant(),), Format.AUTO, id="smoothquant"),
        pytest.param((Wanda(pattern="2:4"),), Format.AUTO, id="wanda-2:4"),
        pytest.param((LlmPruner(mlp_share=1 / 3),), Format.AUTO, id="llm-pruner"),
        pytest.param((ShortGpt(blocks=3), Gptq(bits=4, group_size=64)), Format.AUTO, id="shortgpt-gptq-4"),
    ],
)
def test_an_artifact_gives_the_reported_perplexity_in_vllm(
    tmp_path: Path, model_dir: Path, texts: dict[str, Path], recipe: Recipe, file_format: Format
) -> None:
    report = carry_out(tmp_path, model_dir, texts, recipe, format=file_format)
    proof = in_vllm(report, recipe)
    assert report.artifact
    assert (proof.loads, proof.generates, proof.agrees) == (True, True, True), proof.detail
    assert proof.version
    # bfloat16 on both sides, in kernels of their own.
    assert proof.perplexity == pytest.approx(report.artifact.perplexity, rel=TOLERANCE)


@pytest.mark.parametrize("stage", [Rtn(bits=8, group_size=64), Fp8()], ids=["rtn-8", "fp8"])
def test_what_vllm_has_no_kernel_for_on_a_cpu_is_not_claimed(
    tmp_path: Path, model_dir: Path, texts: dict[str, Path], stage: Rtn | Fp8
) -> None:
    asked = EvaluationSettings(samples=1, sequence_length=LENGTH, speed=False, runtimes=("vllm",))
    with pytest.raises(EngineFailed, match=r"(on|for) a CPU") as failed:
        carry_out(tmp_path, model_dir, texts, (stage,), evaluation=asked)
    assert failed.value.as_job_error().code == "runtime_unavailable"


def test_base_and_artifact_are_timed_in_both_runtimes(tmp_path: Path, model_dir: Path, texts: dict[str, Path]) -> None:
    settings = EvaluationSettings(samples=2, sequence_length=LENGTH)
    report = carry_out(
        tmp_path, model_dir, texts, (ShortGpt(blocks=3),), evaluation=settings, runtimes=("transformers",)
    )
    assert [proof.runtime for proof in report.runtimes] == ["transformers", "vllm", "llama.cpp"]
    for name, proof in zip(("transformers", "vllm"), report.runtimes, strict=False):
        assert (proof.loads, proof.generates, proof.agrees) == (True, True, True)
        speeds = report.speeds_in(proof)
        assert set(speeds) == {"base", "artifact"}
        for speed in speeds.values():
            assert speed.runtime == f"{name} {proof.version}"
            assert min(speed.prefill_tokens_per_second, speed.decode_tokens_per_second, speed.load_seconds) > 0
            assert speed.peak_memory_bytes > 300 * 2**20
            assert speed.decode_spread
            assert speed.batch
            assert speed.batch.sequences == 8
