"""Artifacts of the packaged 135 M model in vLLM itself, which lives in an environment of its own: `make vllm`.

vLLM pins versions of torch and transformers other than the engine's, so its process knows nothing of ours.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest
from tests.engine.test_real_model import GGUF, model_dir, texts

from paredown.contracts.job import Calibration, EvaluationSettings, Format
from paredown.contracts.recipes import Gptq, LlmPruner, Recipe, Rtn, ShortGpt, Wanda
from paredown.contracts.work import WorkOrder
from paredown.engine import data
from paredown.engine.run import run

__all__ = ["model_dir", "texts"]

# The interpreter of vLLM's environment; `make vllm` names it.
PYTHON = os.environ.get("PARE_VLLM_PYTHON")
SAMPLES, LENGTH = 4, 256

# What a user would write, and the likelihood of given tokens beside it.
LOAD = """
import json, math, sys
import numpy
from vllm import LLM, SamplingParams

directory, tokens = sys.argv[1:]
model = LLM(directory, dtype="bfloat16", enforce_eager=True, max_model_len=512, max_num_seqs=4)
sequences = numpy.load(tokens).tolist()
scored = model.generate(
    [{"prompt_token_ids": sequence} for sequence in sequences], SamplingParams(max_tokens=1, prompt_logprobs=1)
)
losses = [
    -choices[token].logprob
    for sequence, output in zip(sequences, scored, strict=True)
    for token, choices in zip(sequence[1:], output.prompt_logprobs[1:], strict=True)
]
[written] = model.generate([{"prompt_token_ids": sequences[0][:64]}], SamplingParams(max_tokens=16, temperature=0))
answer = {"perplexity": math.exp(sum(losses) / len(losses)), "tokens": len(written.outputs[0].token_ids)}
print("ANSWER", json.dumps(answer))
"""

pytestmark = [pytest.mark.vllm, pytest.mark.model]


def in_vllm(root: Path, tokens: Path) -> dict[str, Any]:
    assert PYTHON is not None
    finished = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", LOAD, str(root / "out"), str(tokens)],
        env={
            "HF_HUB_OFFLINE": "1",
            "HOME": str(root),
            "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line for line in finished.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, (finished.stdout + finished.stderr)[-3000:]
    answer: dict[str, Any] = json.loads(answers[-1].removeprefix("ANSWER "))
    return answer


@pytest.mark.skipif(PYTHON is None, reason="vLLM has its own environment: run `make vllm`")
@pytest.mark.parametrize(
    ("recipe", "file_format"),
    [
        pytest.param((Gptq(bits=4, group_size=64),), Format.AUTO, id="gptq-4"),
        pytest.param((Gptq(bits=4, group_size=64),), Format.GPTQ, id="gptq-4-as-gptq"),
        pytest.param((Gptq(bits=4, group_size=64, symmetric=False),), Format.AWQ, id="gptq-4-as-awq"),
        pytest.param((Gptq(bits=4, group_size=64, symmetric=False),), Format.AUTO, id="gptq-4-asymmetric"),
        pytest.param((Rtn(bits=8, group_size=None),), Format.AUTO, id="rtn-8-rows"),
        pytest.param((Wanda(pattern="2:4"),), Format.AUTO, id="wanda-2:4"),
        pytest.param((LlmPruner(mlp_share=1 / 3),), Format.AUTO, id="llm-pruner"),
        pytest.param((ShortGpt(blocks=3), Gptq(bits=4, group_size=64)), Format.AUTO, id="shortgpt-gptq-4"),
    ],
)
def test_an_artifact_gives_the_reported_perplexity_in_vllm(
    tmp_path: Path, model_dir: Path, texts: dict[str, Path], recipe: Recipe, file_format: Format
) -> None:
    settings = EvaluationSettings(samples=SAMPLES, sequence_length=LENGTH, speed=False)
    order = WorkOrder(
        model_dir=model_dir,
        gguf_file=GGUF,
        recipe=recipe,
        calibration=Calibration(samples=4, sequence_length=LENGTH),
        calibration_text=texts["calibration"],
        evaluation=settings,
        evaluation_text=texts["evaluation"],
        format=file_format,
        dtype="bfloat16",
        work_dir=tmp_path / "work",
        output_dir=tmp_path / "out",
    )
    report = run(order, lambda _progress: None, lambda: False).report
    blocks = data.evaluation_blocks(
        texts["evaluation"], settings, data.load_tokenizer(model_dir, GGUF), vocab_size=49152, context=8192
    )
    numpy.save(tmp_path / "tokens.npy", blocks.tokens_NT.numpy())

    answer = in_vllm(tmp_path, tmp_path / "tokens.npy")

    assert report.artifact is not None
    assert answer["tokens"] == 16
    # bfloat16 on both sides, in kernels of their own.
    assert answer["perplexity"] == pytest.approx(report.artifact.perplexity, rel=0.02)
