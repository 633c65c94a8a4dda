"""`calibration.statistics: dense`: the base model's own inputs, gathered once for every recipe."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import CPU, Compressor, shard_bytes
from torch import Tensor
from transformers import AutoModelForCausalLM

from paredown.contracts.job import Calibration
from paredown.contracts.recipes import Awq, Esparse, Gptq, Rtn, ShortGpt, Sparsegpt, Stage, Wanda
from paredown.engine import dense
from paredown.engine.architectures import architecture_of
from paredown.engine.dense import DenseStatistics
from paredown.engine.errors import Drained
from paredown.engine.statistics import Statistic
from paredown.engine.weights import ModelFiles

DENSE = Calibration(statistics="dense")
GPTQ: tuple[Stage, ...] = (Gptq(group_size=32),)
pytestmark = pytest.mark.usefixtures("small_batches")


def gathered(files: ModelFiles, tokens_NT: Tensor, directory: Path, **options: Any) -> DenseStatistics:
    defaults: dict[str, Any] = {
        "device": CPU,
        "dtype": torch.float32,
        "needs": frozenset({Statistic.HESSIAN}),
        "directory": directory,
        "identity": "model",
        "on_progress": lambda _done, _all: None,
        "should_drain": lambda: False,
    }
    return DenseStatistics(files, tokens_NT, **(defaults | options))


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, Any]:
    """Options of runs that share a directory."""
    return {"calibration": DENSE, "statistics_dir": tmp_path / "shared", "statistics_identity": "model"}


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that ran for their statistics."""
    ran: list[int] = []
    original = dense.through_block

    def counted(model: Any, skeleton: Any, forward: Any, index: int) -> Any:
        ran.append(index)
        return original(model, skeleton, forward, index)

    monkeypatch.setattr(dense, "through_block", counted)
    return ran


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon-new", "mixtral"])
def test_the_statistics_are_of_what_the_base_model_computes(
    family: str,
    tiny: Callable[[str], ModelFiles],
    model_dir: Callable[[str], Path],
    tokens_NT: Tensor,
    tmp_path: Path,
) -> None:
    statistics = gathered(tiny(family), tokens_NT, tmp_path)
    # The artifact stores weights in 16 bits; the base is measured as stored so.
    model = AutoModelForCausalLM.from_pretrained(model_dir(family), dtype=torch.bfloat16).float()
    blocks = architecture_of(model.config).blocks
    for index in range(model.config.num_hidden_layers):
        for group in statistics.of(index):
            name = group.name.split(", ")[0]
            if ".experts." in name:
                assert group.num_tokens <= tokens_NT.numel()
                continue
            seen: list[Tensor] = []
            hook = model.get_submodule(name).register_forward_pre_hook(
                lambda _module, args, seen=seen: seen.append(args[0].flatten(0, -2))
            )
            with torch.no_grad():
                model(input_ids=tokens_NT)
            hook.remove()
            assert name.startswith(f"{blocks}.{index}.")
            assert group.num_tokens == tokens_NT.numel()
            torch.testing.assert_close(group.hessian_II, seen[0].T @ seen[0], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(group.peak_I, seen[0].abs().amax(0), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(group.magnitude_I, seen[0].abs().mean(0), rtol=1e-3, atol=1e-4)


def test_recipes_that_share_a_directory_share_one_forward_pass(
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    shared: dict[str, Any],
    forwards: list[int],
) -> None:
    files = tiny("llama")
    recipes: list[tuple[Stage, ...]] = [
        GPTQ,
        (Wanda(sparsity=0.5),),
        (Sparsegpt(sparsity=0.5), Gptq(group_size=32)),
        (Awq(group_size=32),),
    ]
    together = [compress(files, recipe, tokens_NT, f"shared-{n}", **shared) for n, recipe in enumerate(recipes)]
    assert forwards == list(range(files.config.num_hidden_layers))
    alone = [compress(files, recipe, tokens_NT, f"own-{n}", calibration=DENSE) for n, recipe in enumerate(recipes)]
    assert len(forwards) == (1 + len(recipes)) * files.config.num_hidden_layers
    for one, other in zip(together, alone, strict=True):
        for name in one.linear_names:
            assert torch.equal(one.tensor(f"{name}.weight"), other.tensor(f"{name}.weight"))


def test_entropy_is_gathered_only_where_it_is_wanted(
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    shared: dict[str, Any],
    forwards: list[int],
) -> None:
    files = tiny("llama")
    compress(files, GPTQ, tokens_NT, "gptq", **shared)
    compress(files, (Esparse(pattern="2:4"),), tokens_NT, "e-sparse", **shared)
    assert len(forwards) == 2 * files.config.num_hidden_layers


def test_other_tokens_have_statistics_of_their_own(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    files = tiny("llama")
    one, other = (
        compress(
            files,
            GPTQ,
            tokens,
            f"work-{n}",
            calibration=DENSE,
            statistics_dir=tmp_path / "shared",
            statistics_identity=f"tokens-{n}",
        )
        for n, tokens in enumerate((tokens_NT, tokens_NT.flip(1)))
    )
    name = f"{one.linear_names[-1]}.weight"
    assert not torch.equal(one.tensor(name), other.tensor(name))


def test_only_the_first_group_equals_the_sequential_result(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    """Its inputs are the same either way; those of later groups are not."""
    files = tiny("llama")
    dense_result = compress(files, GPTQ, tokens_NT, "dense", calibration=DENSE)
    sequential = compress(files, GPTQ, tokens_NT, "sequential")
    same = [
        torch.equal(dense_result.tensor(f"{name}.weight"), sequential.tensor(f"{name}.weight"))
        for name in dense_result.linear_names
    ]
    assert all(same[:3])
    assert not any(same[-4:])


def test_after_blocks_are_dropped_the_statistics_are_of_what_is_left(
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    shared: dict[str, Any],
    forwards: list[int],
) -> None:
    files = tiny("llama")
    compress(files, GPTQ, tokens_NT, "whole", **shared)
    compress(files, (ShortGpt(blocks=1), *GPTQ), tokens_NT, "shorter", **shared)
    blocks = files.config.num_hidden_layers
    assert forwards == [*range(blocks), *range(blocks - 1)]


def test_without_a_method_that_looks_at_activations_nothing_runs(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, forwards: list[int]
) -> None:
    compress(tiny("llama"), (Rtn(group_size=32),), tokens_NT, calibration=DENSE)
    assert forwards == []


def test_a_finished_run_gathers_nothing_again(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path, forwards: list[int]
) -> None:
    """Shared statistics may be gone by the time that it goes on with its evaluation."""
    first = compress(tiny("llama"), GPTQ, tokens_NT, "run", calibration=DENSE)
    shutil.rmtree(tmp_path / "run" / "statistics")
    forwards.clear()
    assert compress(tiny("llama"), GPTQ, tokens_NT, "run", calibration=DENSE).layers == first.layers
    assert forwards == []


def test_a_drained_run_repeats_no_block_and_ends_with_the_same_bytes(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path, forwards: list[int]
) -> None:
    files = tiny("llama")
    compress(files, GPTQ, tokens_NT, "whole", calibration=DENSE)
    whole = list(forwards)
    forwards.clear()
    steps = 2 * files.config.num_hidden_layers
    for _ in range(steps + 1):
        answers = iter([False])
        try:
            compress(
                files,
                GPTQ,
                tokens_NT,
                "parts",
                calibration=DENSE,
                should_drain=lambda answers=answers: next(answers, True),
            )
        except Drained:
            continue
        break
    assert forwards == whole
    assert shard_bytes(tmp_path / "parts") == shard_bytes(tmp_path / "whole")
