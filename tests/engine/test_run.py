"""A run from order to report, in this process, on small random models."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.orders import config_of, file_hashes, order, save_model

from paredown.contracts.job import Calibration, EvaluationSettings, Format, Progress
from paredown.contracts.report import Evaluation
from paredown.contracts.work import EngineResult, WorkOrder
from paredown.engine import data
from paredown.engine.errors import (
    CalibrationTooShort,
    CalibrationUnfit,
    DeviceUnavailable,
    Drained,
    EngineError,
    FormatRefused,
    NanFound,
    NotAModel,
    OrderInvalid,
)
from paredown.engine.inputs import read_inputs
from paredown.engine.run import run

GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
RTN = {"method": "rtn", "bits": 4, "group_size": 32}
WANDA = {"method": "wanda", "sparsity": 0.5}


def carry_out(order: WorkOrder) -> EngineResult:
    return run(order, lambda _progress: None, lambda: False)


def first_block(reports: list[Progress]) -> int:
    """How many blocks were finished when compression began."""
    return next(report.block for report in reports if report.message == "compressing" and report.block is not None)


def drained_after(order: WorkOrder, polls: int) -> None:
    """Run, and ask for a drain at the given poll."""
    count = 0

    def should_drain() -> bool:
        nonlocal count
        count += 1
        return count > polls

    with pytest.raises(Drained):
        run(order, lambda _progress: None, should_drain)


def test_the_tokenizer_is_let_go_while_blocks_are_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[weakref.ref[Any]] = []
    held: list[bool] = []

    def load_tokenizer(*given: Any) -> Any:
        tokenizer = read_tokenizer(*given)
        read.append(weakref.ref(tokenizer))
        return tokenizer

    def on_progress(progress: Progress) -> None:
        if progress.message == "compressing":
            held.append(any(tokenizer() is not None for tokenizer in read))

    read_tokenizer = data.load_tokenizer
    monkeypatch.setattr(data, "load_tokenizer", load_tokenizer)
    run(order(tmp_path, [WANDA]), on_progress, lambda: False)

    assert read
    assert held
    assert not any(held)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_the_report_says_what_was_done(tmp_path: Path) -> None:
    result = carry_out(order(tmp_path, [WANDA, GPTQ]))

    report = result.report
    assert report.base is not None
    assert report.artifact is not None
    assert report.base.protocol == report.artifact.protocol
    assert report.base.protocol_hash == report.artifact.protocol_hash
    assert report.base.predicted_tokens == 3 * 63
    assert report.base.perplexity != report.artifact.perplexity
    assert report.base.protocol.tokens_sha256 == result.evaluation_tokens_sha256
    assert result.calibration_tokens_sha256 not in (None, result.evaluation_tokens_sha256)
    assert 0.5 <= report.sparsity < 0.75, "wanda's zeros stay, and the grid adds a few"
    assert report.average_bits == pytest.approx(4.5), "four bits, and a scale of sixteen for every 32 weights"
    assert report.size_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    parameters = sum(tensor.numel() for tensor in load_file(tmp_path / "model" / "model.safetensors").values())
    assert report.base_bytes == 2 * parameters
    assert {layer.name for layer in report.layers} == {
        f"model.layers.{block}.{linear}"
        for block in range(2)
        for linear in (
            *(f"self_attn.{part}_proj" for part in "qkvo"),
            *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        )
    }
    assert set(report.phase_seconds) == {"compress", "write", "evaluate_base", "evaluate_artifact"}
    assert report.peak_memory_bytes > 100 * 2**20
    assert report.runtimes == ()
    assert report.gate is None
    assert report.cost is None


def test_a_chain_that_trains_reads_its_own_share_of_the_text(tmp_path: Path) -> None:
    depth = {"method": "shortgpt", "blocks": 1}
    short = {"tokens": 1024, "batch_size": 2, "sequence_length": 64, "rank": 4}
    reports: list[Progress] = []
    healed = run(order(tmp_path, [depth, {"method": "lora"} | short, GPTQ]), reports.append, lambda: False).report
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert [stage.method for stage in healed.stages] == ["shortgpt", "lora"]
    assert healed.stages[1].losses[-1].step == 8
    assert healed.average_bits == pytest.approx(4.5)
    other = order(tmp_path, [depth, {"method": "lora", "seed": 1} | short], output_dir=tmp_path / "other")
    assert carry_out(other).report.stages[1].tokens_sha256 != healed.stages[1].tokens_sha256
    greedy = order(tmp_path, [depth, {"method": "lora"} | short | {"tokens": 10**8}], output_dir=tmp_path / "greedy")
    with pytest.raises(CalibrationTooShort, match="wants 1,562,500 sequences") as raised:
        carry_out(greedy)
    assert raised.value.field == "recipe.1.tokens"


def test_format_follows_the_recipe(tmp_path: Path) -> None:
    carry_out(order(tmp_path, [RTN], evaluation=None, output_dir=tmp_path / "quantized"))
    carry_out(order(tmp_path, [WANDA], evaluation=None, output_dir=tmp_path / "pruned"))

    assert "quantization_config" in json.loads((tmp_path / "quantized" / "config.json").read_text())
    assert "quantization_config" not in json.loads((tmp_path / "pruned" / "config.json").read_text())
    quantized = carry_out(
        order(tmp_path, [RTN], format=Format.SAFETENSORS, evaluation=None, output_dir=tmp_path / "dense")
    )
    assert quantized.report.size_bytes == pytest.approx(quantized.report.base_bytes, rel=0.02)


def test_progress_only_rises_and_names_the_blocks(tmp_path: Path) -> None:
    reports: list[Progress] = []

    run(order(tmp_path, [GPTQ]), reports.append, lambda: False)

    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.05
    assert fractions[-1] == pytest.approx(0.97)
    compressing = [report for report in reports if report.message == "compressing"]
    assert [report.block for report in compressing if report.block is not None] == [0, 1, 2]
    assert {report.num_blocks for report in compressing} == {None, 2}
    assert [report.message for report in reports if report.block is None] == [
        "compressing",
        "writing",
        "measuring the base",
        "measuring the artifact",
    ]
    assert any(report.eta_seconds is not None for report in reports)


@pytest.mark.parametrize("recipe", [[GPTQ], [WANDA], [RTN], [WANDA, GPTQ]], ids=str)
def test_a_drained_run_goes_on_to_the_same_bytes(tmp_path: Path, recipe: list[dict[str, Any]]) -> None:
    whole = carry_out(order(tmp_path, recipe, work_dir=tmp_path / "uninterrupted", output_dir=tmp_path / "whole"))
    # The first poll is the run's own, before anything; then one before each block.
    drained_after(order(tmp_path, recipe), polls=2)
    assert json.loads((tmp_path / "work" / "journal.json").read_text())["blocks"].keys() == {"0"}

    reports: list[Progress] = []
    resumed = run(order(tmp_path, recipe), reports.append, lambda: False)

    assert first_block(reports) == 1
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")
    assert resumed.report.artifact is not None
    assert whole.report.artifact is not None
    assert resumed.report.artifact.perplexity == whole.report.artifact.perplexity


def test_a_run_drained_while_it_measures_keeps_what_it_knows(tmp_path: Path) -> None:
    messages: list[str] = []

    def report(progress: Progress) -> None:
        messages.append(progress.message)

    with pytest.raises(Drained):
        run(order(tmp_path, [RTN]), report, lambda: "measuring the artifact" in messages)
    remains = order(tmp_path, [RTN], output_dir=tmp_path / "another")
    reports: list[Progress] = []

    result = run(remains, reports.append, lambda: False)

    assert [progress.block for progress in reports if progress.message == "measuring the base"] == [None]
    assert result.report.base is not None
    assert not result.report.base.cached, "it was this very job that measured it"


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": [{**GPTQ, "damping": 0.02}]},
        {"calibration": Calibration(samples=4, sequence_length=64, seed=1)},
        {"calibration": Calibration(samples=4, sequence_length=64, unreached_experts="dense")},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_another_order_does_not_go_on_from_this_ones_blocks(tmp_path: Path, change: dict[str, Any]) -> None:
    carry_out(order(tmp_path, [GPTQ], evaluation=None))
    changed = {"recipe": [GPTQ], "evaluation": None, **change}
    fresh = order(tmp_path, **changed, work_dir=tmp_path / "fresh", output_dir=tmp_path / "expected")
    carry_out(fresh)
    reports: list[Progress] = []

    run(order(tmp_path, **changed, output_dir=tmp_path / "again"), reports.append, lambda: False)

    assert first_block(reports) == 0
    assert file_hashes(tmp_path / "again") == file_hashes(tmp_path / "expected")


def test_another_model_does_not_go_on_from_this_ones_blocks(tmp_path: Path) -> None:
    carry_out(order(tmp_path, [RTN], evaluation=None))
    save_model(tmp_path / "other", config_of("llama"), seed=1)
    reports: list[Progress] = []

    changed = order(tmp_path, [RTN], evaluation=None, model_dir=tmp_path / "other", output_dir=tmp_path / "out2")
    run(changed, reports.append, lambda: False)

    assert first_block(reports) == 0


def test_a_known_baseline_is_used_only_under_the_same_protocol(tmp_path: Path) -> None:
    measured = carry_out(order(tmp_path, [RTN])).report.base
    assert measured is not None
    assert not measured.cached
    known: Evaluation = measured.model_copy(update={"perplexity": 123.0})

    used = carry_out(order(tmp_path, [RTN], baseline=known, output_dir=tmp_path / "used", work_dir=tmp_path / "w1"))
    assert used.report.base == known.model_copy(update={"cached": True})

    other = known.model_copy(update={"protocol_hash": "0" * 64})
    ignored = carry_out(order(tmp_path, [RTN], baseline=other, output_dir=tmp_path / "other", work_dir=tmp_path / "w2"))
    assert ignored.report.base is not None
    assert ignored.report.base.perplexity == measured.perplexity


def test_without_an_evaluation_nothing_is_measured(tmp_path: Path) -> None:
    result = carry_out(order(tmp_path, [RTN], calibration=None, evaluation=None))

    assert result.report.base is None
    assert result.report.artifact is None
    assert result.calibration_tokens_sha256 is None
    assert result.evaluation_tokens_sha256 is None


def test_a_model_without_a_usable_tokenizer_can_be_rounded_but_not_measured(tmp_path: Path) -> None:
    save_model(tmp_path / "model", config_of("llama"))
    (tmp_path / "model" / "tokenizer.json").write_text("garbage")

    result = carry_out(order(tmp_path, [RTN], evaluation=None))
    assert "The artifact has none either." in result.report.warnings[0]
    assert not list((tmp_path / "out").glob("tokenizer*"))
    with pytest.raises(NotAModel, match="tokenizer"):
        carry_out(order(tmp_path, [RTN], output_dir=tmp_path / "other"))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"recipe": [GPTQ], "calibration": None}, OrderInvalid, "needs calibration text"),
        ({"recipe": [GPTQ], "calibration_text": None}, OrderInvalid, "needs calibration text"),
        ({"evaluation_text": None}, OrderInvalid, "names no text"),
        ({"recipe": [WANDA], "format": Format.COMPRESSED_TENSORS}, FormatRefused, "needs a stage that quantizes"),
        (
            {"recipe": [WANDA], "calibration": Calibration(samples=4000, sequence_length=64)},
            CalibrationTooShort,
            "4000",
        ),
        ({"recipe": [WANDA], "calibration": Calibration(sequence_length=512)}, CalibrationUnfit, "at most 256 tokens"),
        ({"evaluation": EvaluationSettings(samples=4000, sequence_length=64)}, CalibrationTooShort, "evaluation text"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_order_that_cannot_be_carried_out_is_refused_before_any_work(
    tmp_path: Path, change: dict[str, Any], error: type[EngineError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        carry_out(order(tmp_path, **{"recipe": [RTN], **change}))
    assert not list((tmp_path / "out").glob("*"))
    assert not (tmp_path / "work").exists()


def test_a_directory_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")

    with pytest.raises(OrderInvalid, match="not empty"):
        carry_out(order(tmp_path, [RTN]))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable):
        carry_out(order(tmp_path, [RTN], device="cuda"))


def test_experts_that_the_text_hardly_reached_stand_in_the_report(tmp_path: Path) -> None:
    save_model(tmp_path / "model", config_of("qwen3_moe", tied=False))
    calibration = Calibration(samples=2, sequence_length=64, min_expert_tokens=65)

    report = carry_out(order(tmp_path, [GPTQ], calibration=calibration)).report

    counts = {layer.name.rpartition(".")[0]: layer.tokens for layer in report.layers if layer.tokens is not None}
    assert sum(counts.values()) == 2 * 2 * 64 * 2, "blocks, sequences, tokens, experts of each"
    few = sum(tokens < 65 for tokens in counts.values())
    assert 0 < few < 8
    [warning] = report.warnings
    assert warning.startswith(f"{few} of 8 experts, such as model.layers.")
    assert report.artifact is not None


@pytest.mark.parametrize(("model_type", "begins"), [("gemma2", True), ("llama", False)])
def test_gemma_reads_every_sequence_from_its_beginning(tmp_path: Path, model_type: str, begins: bool) -> None:
    save_model(tmp_path / "model", config_of(model_type))

    inputs = read_inputs(order(tmp_path, [GPTQ]), Format.COMPRESSED_TENSORS)

    for blocks in (inputs.calibration, inputs.evaluation):
        assert blocks is not None
        assert bool((blocks.tokens_NT[:, 0] == 0).all()) is begins


def test_gpt2_is_refused_for_compressed_tensors_before_any_work(tmp_path: Path) -> None:
    save_model(tmp_path / "model", config_of("gpt2"))

    with pytest.raises(FormatRefused, match="Conv1D"):
        carry_out(order(tmp_path, [RTN]))
    result = carry_out(order(tmp_path, [RTN], format=Format.SAFETENSORS, output_dir=tmp_path / "dense"))
    assert result.report.artifact is not None


def test_a_model_that_gives_no_probabilities_is_named(tmp_path: Path) -> None:
    save_model(tmp_path / "model", config_of("llama", tied=False))
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"].fill_(float("nan"))
    save_file(tensors, path, {"format": "pt"})

    with pytest.raises(NanFound):
        carry_out(order(tmp_path, [RTN]))
