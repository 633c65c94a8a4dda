"""Perplexity by the block stream against transformers' own loss."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CPU, FAMILIES
from torch import Tensor
from transformers import AutoModelForCausalLM

from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.weights import ModelFiles


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_loss_of_plain_transformers(
    family: str, model_dir: Callable[[str], Path], tiny: Callable[[str], ModelFiles], tokens_NT: Tensor
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir(family), dtype=torch.float32)
    with torch.no_grad():
        expected = math.exp(model(input_ids=tokens_NT, labels=tokens_NT).loss.item())
    found, predicted = perplexity(tiny(family), tokens_NT, device=CPU, dtype=torch.float32)
    assert found == pytest.approx(expected, rel=1e-4)
    assert predicted == 7 * 31


def test_bfloat16_is_close_to_float32(tiny: Callable[[str], ModelFiles], tokens_NT: Tensor) -> None:
    files = tiny("llama")
    low, _ = perplexity(files, tokens_NT, device=CPU, dtype=torch.bfloat16)
    full, _ = perplexity(files, tokens_NT, device=CPU, dtype=torch.float32)
    assert low != full
    assert low == pytest.approx(full, rel=0.02)


def test_progress_counts_blocks(tiny: Callable[[str], ModelFiles], tokens_NT: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    perplexity(
        tiny("qwen3"), tokens_NT, device=CPU, dtype=torch.float32, on_progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
