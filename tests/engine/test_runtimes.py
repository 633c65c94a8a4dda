"""Proof in a clean child process, and what is said where there is none."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from tests.engine.orders import config_of, order, save_model
from transformers import AutoModelForCausalLM

from paredown.contracts.families import MODEL_TYPES, shape_from_config
from paredown.contracts.job import Format
from paredown.contracts.recipes import Rtn, Wanda
from paredown.contracts.report import Speed, Spread
from paredown.engine import runtimes
from paredown.engine.errors import RuntimeDisagrees, RuntimeLoadFailed, RuntimeUnavailable
from paredown.engine.evaluation import speed
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.run import run
from paredown.engine.runtimes import (
    ROUNDED_TOLERANCE,
    RuntimeFailed,
    TransformersProcess,
    load_artifact,
    memory_shortage,
    prove,
    unclaimed,
)
from paredown.engine.weights import open_model

TOKENS_NT = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("runtimes") / "model", config_of("llama"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    numpy.save(path, TOKENS_NT.numpy())
    return path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[TransformersProcess]:
    os.environ["PARE_SECRET"] = "must not be inherited"
    with TransformersProcess(tmp_path_factory.mktemp("scratch"), "cpu", threads=1) as process:
        del os.environ["PARE_SECRET"]
        load_artifact(process, model_dir)
        yield process


def test_a_proof_generates_and_measures_the_same_perplexity(
    loaded: TransformersProcess, model_dir: Path, tokens: Path
) -> None:
    ours, _ = perplexity(open_model(model_dir), TOKENS_NT, device=torch.device("cpu"), dtype=torch.float32)

    proof = prove(loaded, prompt=[5, 6, 7], new_tokens=8, tokens=tokens, dtype="float32", reported=ours)

    assert proof.loads
    assert proof.perplexity == pytest.approx(ours, rel=1e-5)
    assert proof.sample
    assert proof.version == loaded.version


def test_another_perplexity_than_the_reports_is_no_proof(loaded: TransformersProcess, tokens: Path) -> None:
    measured = loaded.perplexity(tokens, "float32")
    for reported in (measured * 1.006, measured * 0.994, float("nan")):
        with pytest.raises(RuntimeDisagrees, match="fault of Pare"):
            prove(loaded, prompt=[5], new_tokens=1, tokens=tokens, dtype="float32", reported=reported)


def test_the_frequencies_of_positions_are_not_rounded_with_the_weights(
    loaded: TransformersProcess, tokens: Path, model_dir: Path
) -> None:
    """As for a user, who loads the artifact in that number type."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        losses = [model(tokens_T[None], labels=tokens_T[None]).loss.double() for tokens_T in TOKENS_NT]
    expected = torch.stack(losses).mean().exp().item()
    assert loaded.perplexity(tokens, "bfloat16") == pytest.approx(expected, rel=1e-6)


def test_few_tokens_in_bfloat16_may_differ_by_what_rounding_leaves(loaded: TransformersProcess, tokens: Path) -> None:
    measured = loaded.perplexity(tokens, "bfloat16")
    asked = {"prompt": [5], "new_tokens": 1, "tokens": tokens, "dtype": "bfloat16"}
    share = 5 * 0.075 / (TOKENS_NT.shape[0] * (TOKENS_NT.shape[1] - 1)) ** 0.5
    assert prove(loaded, reported=measured * (1 + 0.9 * share), **asked).loads
    with pytest.raises(RuntimeDisagrees, match=f"differ by {share:.1%}"):
        prove(loaded, reported=measured * (1 + 1.2 * share), **asked)


def test_eight_bit_inputs_may_differ_more_where_batches_differ(loaded: TransformersProcess, tokens: Path) -> None:
    measured = loaded.perplexity(tokens, "float32")
    asked = {"prompt": [5], "new_tokens": 1, "tokens": tokens, "dtype": "float32", "tolerance": ROUNDED_TOLERANCE}

    assert prove(loaded, reported=measured * 1.015, **asked).loads
    with pytest.raises(RuntimeDisagrees):
        prove(loaded, reported=measured * 1.025, **asked)


def test_without_an_evaluation_loading_and_generating_is_the_proof(loaded: TransformersProcess) -> None:
    proof = prove(loaded, prompt=[5], new_tokens=4, tokens=None, dtype="float32", reported=None)

    assert proof.loads
    assert proof.perplexity is None


def test_the_child_is_clean(loaded: TransformersProcess) -> None:
    environment = Path(f"/proc/{loaded.pid}/environ").read_bytes()

    assert b"HF_HUB_OFFLINE=1" in environment
    assert b"PARE_SECRET" not in environment
    maps = Path(f"/proc/{loaded.pid}/cmdline").read_bytes().split(b"\0")
    assert maps[1:4] == [b"-P", b"-m", b"paredown.engine.runtime_child"]


def test_speed_is_a_median_of_both_in_turns(loaded: TransformersProcess, model_dir: Path, tmp_path: Path) -> None:
    settings = speed.SpeedSettings(prompt_tokens=20, new_tokens=4, repeats=3)
    with TransformersProcess(tmp_path, "cpu", threads=1) as base:
        base.load(model_dir, dtype=torch.bfloat16)

        measured = speed.measure({"base": base, "artifact": loaded}, list(range(20)), settings)

    assert set(measured) == {"base", "artifact"}
    for figures in measured.values():
        assert figures.runtime == f"transformers {loaded.version}"
        assert (figures.prompt_tokens, figures.new_tokens, figures.repeats) == (20, 4, 3)
        assert figures.prefill_tokens_per_second > 0
        assert figures.decode_tokens_per_second > 0
        assert figures.time_to_first_token_seconds == pytest.approx(20 / figures.prefill_tokens_per_second)
        assert figures.decode_spread
        assert figures.decode_spread.low <= figures.decode_tokens_per_second <= figures.decode_spread.high
        assert figures.first_token_spread
        assert figures.first_token_spread.low <= figures.time_to_first_token_seconds <= figures.first_token_spread.high
        assert figures.batch
        assert (figures.batch.sequences, figures.batch.repeats) == (8, 3)
        assert figures.batch.spread.low <= figures.batch.decode_tokens_per_second <= figures.batch.spread.high


def timed(decode: float, low: float, high: float) -> Speed:
    return Speed(
        runtime="transformers 5",
        device="cpu",
        prefill_tokens_per_second=100,
        decode_tokens_per_second=decode,
        prompt_tokens=8,
        new_tokens=8,
        repeats=5,
        load_seconds=1,
        peak_memory_bytes=1,
        threads=1,
        decode_spread=Spread(low=low, high=high),
    )


def test_smaller_but_not_faster_is_said_in_words() -> None:
    base = timed(40, 39, 41)
    for artifact in (timed(41.9, 41, 42), timed(38, 37, 39), timed(46, 40, 47)):
        sentence = speed.not_faster({"base": base, "artifact": artifact}, 0.4)
        assert sentence
        assert sentence.startswith("Smaller but not faster: it decodes")
        assert "the base 40.0 in transformers 5" in sentence
    assert speed.not_faster({"base": base, "artifact": timed(43, 42, 44)}, 0.4) is None
    assert (speed.not_faster({"base": base, "artifact": timed(38, 37, 39)}, 1.0) or "").startswith("Not faster:")
    assert speed.not_faster({"artifact": timed(38, 37, 39)}, 0.4) is None, "there is nothing to compare it with"


def test_every_type_of_model_is_measured_alike(tmp_path: Path, tokens: Path) -> None:
    with TransformersProcess(tmp_path, "cpu", threads=1) as process:
        for model_type in sorted(MODEL_TYPES):
            model_dir = save_model(tmp_path / model_type, config_of(model_type))
            load_artifact(process, model_dir)
            ours, _ = perplexity(open_model(model_dir), TOKENS_NT, device=torch.device("cpu"), dtype=torch.float32)

            proof = prove(process, prompt=[5, 6], new_tokens=3, tokens=tokens, dtype="float32", reported=ours)

            assert proof.perplexity == pytest.approx(ours, rel=1e-5)
            assert min(process.time([1, 2, 3], 4)) > 0


def test_a_prompt_fits_a_short_context() -> None:
    short = speed.SpeedSettings().within(32)
    assert short.prompt_tokens + short.new_tokens <= 32
    assert speed.SpeedSettings().within(4096) == speed.SpeedSettings()


def test_what_does_not_load_is_named(tmp_path: Path) -> None:
    """Three broken artifacts in one process: a failed load does not end it."""
    with TransformersProcess(tmp_path, "cpu", threads=1) as process:
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(RuntimeLoadFailed, match="transformers does not load the artifact"):
            load_artifact(process, empty)

        pickled = save_model(tmp_path / "pickled", config_of("llama"))
        (pickled / "model.safetensors").rename(pickled / "model.bin")
        with pytest.raises(RuntimeLoadFailed):
            load_artifact(process, pickled)

        truncated = save_model(tmp_path / "truncated", config_of("llama"))
        weights = truncated / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-50])
        with pytest.raises(RuntimeLoadFailed):
            load_artifact(process, truncated)

        with pytest.raises(RuntimeFailed):
            process.perplexity(tmp_path / "absent.npy", "float32")


def test_a_child_that_ends_is_named(tmp_path: Path, model_dir: Path) -> None:
    with TransformersProcess(tmp_path, "cpu", threads=1) as process:
        os.kill(process.pid, 9)
        with pytest.raises(RuntimeLoadFailed, match="ended with status -9"):
            load_artifact(process, model_dir)


def test_weights_that_the_artifact_lacks_are_not_made_up(tmp_path: Path) -> None:
    """transformers would fill a missing weight with random numbers and only warn."""
    from safetensors.torch import load_file, save_file

    lacking = save_model(tmp_path / "lacking", config_of("llama"))
    tensors = load_file(lacking / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})

    with (
        TransformersProcess(tmp_path, "cpu", threads=1) as process,
        pytest.raises(RuntimeLoadFailed, match=r"model\.layers\.1\.mlp\.up_proj\.weight"),
    ):
        load_artifact(process, lacking)


def test_memory_that_is_not_there_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "available_memory_bytes", lambda _device: 3 * 2**30)

    assert memory_shortage(2**29, 4, "cpu") is None
    sentence = memory_shortage(7 * 10**9, 4, "cpu")
    assert sentence == "needs 26.8 GiB of memory, of which 3.0 GiB are free here"


def test_runtimes_that_were_not_tried_are_not_claimed() -> None:
    shape = shape_from_config(config_of("llama").to_dict())
    for output_format, stage, hint in (
        (Format.COMPRESSED_TENSORS, Rtn(bits=4), "PARE_VLLM_PYTHON"),
        (Format.COMPRESSED_TENSORS, Rtn(bits=3), "3 bits are for transformers"),
        (Format.COMPRESSED_TENSORS, Rtn(bits=4, skip=("*.q_proj",)), "skip both or neither"),
        (Format.SAFETENSORS, Wanda(), "PARE_VLLM_PYTHON"),
    ):
        vllm, llama_cpp = unclaimed(output_format, (stage,), shape)
        assert (vllm.runtime, vllm.loads) == ("vllm", False)
        assert hint in (vllm.detail or "")
        assert (llama_cpp.runtime, llama_cpp.loads) == ("llama.cpp", False)
        assert "set the job's format to gguf" in (llama_cpp.detail or "")
        assert json.loads(vllm.model_dump_json())
    vllm, _ = unclaimed(Format.SAFETENSORS, (Wanda(),), shape, ("transformers",))
    assert "the job asks for other runtimes" in (vllm.detail or "")
    assert not any(proof.loads for proof in unclaimed(Format.NATIVE, (Rtn(bits=3),), shape))


def test_an_interpreter_without_vllm_is_named_before_any_work(tmp_path: Path) -> None:
    rtn = [{"method": "rtn", "bits": 4, "group_size": 64}]
    for python, problem in ((Path(sys.executable), "has no package vllm"), (tmp_path / "none", "cannot be started")):
        with pytest.raises(RuntimeUnavailable, match=problem) as failed:
            run(order(tmp_path, rtn, vllm_python=python), lambda _progress: None, lambda: False)
        assert "PARE_VLLM_PYTHON" in failed.value.detail
        assert failed.value.code == "runtime_unavailable"
        assert not (tmp_path / "work").exists(), "it had begun to compress"
    # Where vLLM would not be tried, nobody asks whether it is there.
    report = run(
        order(tmp_path, rtn, vllm_python=tmp_path / "none", format="native"), lambda _progress: None, lambda: False
    ).report
    assert report.artifact


BROKEN_VLLM = """
import sys
sys.path.insert(0, {engine!r})
import runtime_child

class Broken:
    def ready(self):
        return {{"version": "9.9", "device": "cpu"}}

    def knows(self, architectures):
        return True

    def load(self, **more):
        raise ValueError("shards differ")

runtime_child.serve(Broken)
"""


def test_a_vllm_that_fails_costs_its_claim_and_not_the_job_unless_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_VLLM.format(engine=str(Path(runtimes.__file__).parent)))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = -c ] && exit 0\nexec "{sys.executable}" "{tmp_path / "broken.py"}" "$5"\n')
    python.chmod(0o755)
    recipe = [{"method": "wanda"}]
    report = run(order(tmp_path, recipe, vllm_python=python), lambda _progress: None, lambda: False).report
    [proof] = [proof for proof in report.runtimes if proof.runtime == "vllm"]
    assert (proof.loads, proof.detail) == (False, "vLLM 9.9 does not load the artifact: ValueError: shards differ.")
    assert proof.detail in report.warnings

    asked = order(tmp_path / "asked", recipe, vllm_python=python)
    assert asked.evaluation
    evaluation = asked.evaluation.model_copy(update={"runtimes": ("vllm",)})
    with pytest.raises(RuntimeLoadFailed, match="shards differ"):
        run(asked.model_copy(update={"evaluation": evaluation}), lambda _progress: None, lambda: False)


def test_a_runtime_keeps_the_systems_allocator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/libmimalloc.so")
    monkeypatch.setenv("LANG", "C.UTF-8")
    environment = TransformersProcess(tmp_path, "cpu", 1).environment()
    assert environment["LANG"] == "C.UTF-8"
    assert "LD_PRELOAD" not in environment, "its memory is measured as others see it"
