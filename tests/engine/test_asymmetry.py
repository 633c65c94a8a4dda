"""Weights that make up for the errors of earlier layers, by the base's inputs beside a layer's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CPU, Compressor, random_model
from tests.engine.orders import config_of, order, save_model
from tests.engine.test_stream import LOOPED, plain_loop
from torch import Tensor

from paredown.contracts.job import Calibration
from paredown.contracts.recipes import Gptq, Magnitude, Rtn, Stage, Svd, Wanda
from paredown.engine.errors import RecipeUnfit
from paredown.engine.run import run
from paredown.engine.statistics import InputStatistics, Statistic
from paredown.engine.stream import CompressedModel, perplexity
from paredown.engine.weights import ModelFiles, ModelReader, open_model

pytestmark = pytest.mark.usefixtures("small_batches")
HALF = Calibration(asymmetry=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_way_is_the_least_squares_solution(dtype: torch.dtype) -> None:
    """argmin over V of ‖X̃Wᵀ - XVᵀ‖² + λ‖V - W‖²; a share of the way lies on the line to it."""
    chance = torch.Generator().manual_seed(0)
    base_TI = torch.randn(256, 24, generator=chance).to(dtype)
    inputs_TI = (base_TI + 0.3 * torch.randn(256, 24, generator=chance)).to(dtype)
    weight_OI = torch.randn(8, 24, generator=chance)
    statistics = InputStatistics("layer", 24, {Statistic.HESSIAN, Statistic.SHIFT}, CPU)
    for part, base in zip(inputs_TI.split(100), base_TI.split(100), strict=True):
        statistics.add(part, base)
    statistics.complete()

    inputs_TI, base_TI = inputs_TI.float(), base_TI.float()
    penalty = (0.1 * inputs_TI.square().sum(0).mean()).sqrt()
    rows = torch.cat([inputs_TI, penalty * torch.eye(24)])
    targets = torch.cat([base_TI @ weight_OI.T, penalty * weight_OI.T])
    expected_OI = torch.linalg.lstsq(rows, targets).solution.T
    tolerance = {"atol": 2e-5, "rtol": 0.0} if dtype == torch.float32 else {"atol": 2e-3, "rtol": 0.0}
    torch.testing.assert_close(statistics.toward_base(weight_OI, 1.0), expected_OI, **tolerance)
    torch.testing.assert_close(
        statistics.toward_base(weight_OI, 0.25), torch.lerp(weight_OI, expected_OI, 0.25), **tolerance
    )


@pytest.mark.parametrize("family", LOOPED)
def test_it_equals_a_plain_loop_beside_the_base(
    family: str,
    tiny: Callable[[str], ModelFiles],
    model_dir: Callable[[str], Path],
    compress: Compressor,
    tokens_NT: Tensor,
) -> None:
    # A method without thresholds: sums in another order change its result by as little.
    recipe = (Svd(ratio=0.3),)
    result = compress(tiny(family), recipe, tokens_NT, "with", calibration=HALF)
    without = compress(tiny(family), recipe, tokens_NT, "without")
    for name, expected in plain_loop(model_dir(family), recipe, tokens_NT, 0.5).items():
        assert (result.tensor(name) - expected).norm() < 0.03 * expected.norm(), name
        if ".0." not in name:
            assert (without.tensor(name) - expected).norm() > 0.05 * expected.norm(), name


def test_the_first_layer_has_nothing_to_make_up_for(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    without = compress(tiny("llama"), (Wanda(),), tokens_NT, "without")
    with_it = compress(tiny("llama"), (Wanda(),), tokens_NT, "with", calibration=HALF)
    first, later = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(without.tensor(first), with_it.tensor(first))
    assert not torch.equal(without.tensor(later), with_it.tensor(later))


@pytest.mark.parametrize("recipe", [(Gptq(bits=2, group_size=32),), (Wanda(),), (Svd(ratio=0.3),)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_ends_nearer_to_its_base(
    family: str,
    recipe: tuple[Stage, ...],
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
) -> None:
    without = compress(tiny(family), recipe, tokens_NT, "without")
    with_it = compress(tiny(family), recipe, tokens_NT, "with", calibration=HALF)
    assert distance(with_it, tiny(family), tokens_NT) < 0.98 * distance(without, tiny(family), tokens_NT)


def distance(compressed: CompressedModel, base: ModelFiles, tokens_NT: Tensor) -> float:
    """Mean square of what compressing changed in the states that enter the head."""
    ours, theirs = (final_states(model, tokens_NT) for model in (compressed, base))
    return float((ours - theirs).square().mean())


def final_states(model: ModelReader, tokens_NT: Tensor) -> Tensor:
    found: list[Tensor] = []
    perplexity(model, tokens_NT, device=CPU, dtype=torch.float32, observe=lambda states, *_: found.append(states))
    return torch.cat(found)


def test_what_no_stage_calibrates_stays_as_it_was(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    recipe = (Magnitude(skip=("*.o_proj",)), Gptq(group_size=32, skip=("*.mlp.*", "*.o_proj")))
    result = compress(tiny("llama"), recipe, tokens_NT, calibration=HALF)
    name = "model.layers.2.self_attn.o_proj.weight"
    assert torch.equal(result.tensor(name), tiny("llama").tensor(name)), "skipped by every stage"
    name = "model.layers.2.mlp.down_proj.weight"
    stored, source = result.tensor(name), tiny("llama").tensor(name)
    assert torch.equal(stored, torch.where(stored == 0, 0, source)), "magnitude looks at no inputs"
    plain = compress(tiny("llama"), (Rtn(group_size=32),), None, "plain")
    asked = compress(tiny("llama"), (Rtn(group_size=32),), None, "asked", calibration=HALF)
    for name in plain.names:
        assert torch.equal(plain.tensor(name), asked.tensor(name)), name


def test_zeros_of_an_earlier_job_stay(compress: Compressor, tokens_NT: Tensor, tmp_path: Path) -> None:
    source = tmp_path / "pruned"
    model = random_model("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter[:, ::2] = 0
    model.save_pretrained(source)
    result = compress(open_model(source), (Gptq(group_size=32),), tokens_NT, calibration=HALF, keep_zeros=True)
    for name in result.linear_names:
        assert not result.tensor(f"{name}.weight")[:, ::2].any(), name


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_a_mixture_is_refused_before_any_work(model_type: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", config_of(model_type))
    calibration = Calibration(samples=4, sequence_length=64, asymmetry=0.5)
    given = order(tmp_path, [{"method": "gptq", "group_size": 32}], calibration=calibration)
    with pytest.raises(RecipeUnfit, match="sends it to other experts"):
        run(given, lambda _progress: None, lambda: False)
    assert not (tmp_path / "work").exists()
