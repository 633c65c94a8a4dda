"""Mixtures of experts: routed tokens only, no one waits for an expert, and none is left uncalibrated in silence."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CPU, FAMILIES, Compressor, folded, random_model, shard_bytes, unfolded
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from paredown.contracts.job import Calibration
from paredown.contracts.recipes import Esparse, Gptq, Magnitude, Owq, Rtn, Stage, Wanda
from paredown.engine import forward
from paredown.engine.errors import ExpertsUnreached
from paredown.engine.experts import ExpertNames, UnfoldedExperts, coverage_warnings
from paredown.engine.method import LinearWeight
from paredown.engine.methods import METHODS
from paredown.engine.statistics import InputStatistics, Statistic
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelFiles, open_model

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]
ANY = Calibration(min_expert_tokens=1)
# Three tokens reach few of six experts.
FEW_TOKENS = torch.tensor([[5, 6, 7]])
GPTQ: tuple[Stage, ...] = (Gptq(bits=4, group_size=32),)


@pytest.mark.parametrize("family", MIXTURES)
def test_unfolded_experts_compute_what_transformers_computes(family: str) -> None:
    model = random_model(family).float()
    experts = model.model.layers[0].mlp.experts
    names = ExpertNames(gate="w1", up="w3", down="w2") if family == "mixtral" else ExpertNames()
    with torch.device("meta"):
        ours = UnfoldedExperts(experts, names)
    prefix = "model.layers.0.mlp.experts."
    weights = {name.removeprefix(prefix): weight for name, weight in unfolded(model).items() if name.startswith(prefix)}
    ours.load_state_dict(weights, assign=True)
    hidden_TH = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, weights_TK, experts_TK = model.model.layers[0].mlp.gate(hidden_TH)
        torch.testing.assert_close(
            ours(hidden_TH, experts_TK, weights_TK), experts(hidden_TH, experts_TK, weights_TK), rtol=1e-4, atol=1e-6
        )


def tokens_of(result: CompressedModel) -> dict[str, int]:
    """Calibration tokens of each expert's linears."""
    return {layer.name: layer.tokens for layer in result.layers if layer.tokens is not None}


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("family", MIXTURES)
def test_every_token_is_counted_once_for_each_of_its_experts(
    family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    result = compress(tiny(family), GPTQ, tokens_NT, calibration=ANY)
    counts = tokens_of(result)
    per_token = FAMILIES[family][1]["num_experts_per_tok"]
    assert sum(count for name, count in counts.items() if name.endswith(("down_proj", "w2"))) == (
        3 * tokens_NT.numel() * per_token
    )
    assert all(".experts." in name for name in counts)
    assert len(counts) == 3 * 3 * FAMILIES[family][1]["num_experts"]


@pytest.mark.usefixtures("small_batches")
def test_an_expert_is_calibrated_on_its_own_tokens_only(
    tiny: Callable[[str], ModelFiles],
    model_dir: Callable[[str], Path],
    compress: Compressor,
    tokens_NT: Tensor,
) -> None:
    """Its first linears, against a Hessian of the tokens that transformers' own router sends it."""
    stage = Wanda(sparsity=0.5)
    result = compress(tiny("olmoe"), (stage,), tokens_NT)
    model = AutoModelForCausalLM.from_pretrained(model_dir("olmoe"), dtype=torch.float32)
    names = {name: result.tensor(name).float() for name in result.names}
    dense = unfolded(model)
    model.load_state_dict(folded({**names, **{name: dense[name] for name in names if "layers.0.mlp.experts" in name}}))
    seen: list[tuple[Tensor, Tensor]] = []
    model.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _module, args: seen.append(args[:2]))
    with torch.no_grad():
        model(input_ids=tokens_NT)
    [(hidden_TH, experts_TK)] = seen
    for expert in range(4):
        routed_EH = hidden_TH[(experts_TK == expert).any(1)]
        name = f"model.layers.0.mlp.experts.{expert}.gate_proj"
        inputs = InputStatistics(name, 64, {Statistic.ENERGY}, CPU)
        inputs.add(routed_EH)
        inputs.complete()
        linear = LinearWeight(name, dense[f"{name}.weight"].detach().clone(), torch.bfloat16)
        METHODS["wanda"].compress(linear, inputs, stage)
        assert tokens_of(result)[name] == len(routed_EH)
        assert torch.equal(linear.weight_OI.bfloat16(), result.tensor(f"{name}.weight"))


@pytest.fixture
def crowded(tmp_path: Path) -> ModelFiles:
    """Sixteen experts, one for each token, so that every small micro-batch skips some."""
    model_type, fields, _ = FAMILIES["qwen3_moe"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields | {"num_experts": 16})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "crowded")
    return open_model(tmp_path / "crowded")


def test_a_micro_batch_that_skips_an_expert_holds_no_one_up(
    crowded: ModelFiles, compress: Compressor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without pauses, byte for byte: sums are in the order of micro-batches, whoever arrives first."""
    monkeypatch.setattr(forward, "MICRO_BATCH_TOKENS", 16)
    tokens_NT = torch.randint(96, (8, 8), generator=torch.Generator().manual_seed(2))
    paused = compress(crowded, GPTQ, tokens_NT, "paused", calibration=ANY)
    rerun = compress(crowded, GPTQ, tokens_NT, "rerun", pausing=False, calibration=ANY)
    assert min(tokens_of(paused).values()) < 4, "some expert is skipped by a micro-batch"
    assert shard_bytes(tmp_path / "paused") == shard_bytes(tmp_path / "rerun")
    # Errors too, to the last bit: rounding to codes may hide that a sum was made in another order.
    assert paused.layers == rerun.layers


def few(result: CompressedModel) -> list[str]:
    return [name for name, tokens in tokens_of(result).items() if tokens == 0]


@pytest.mark.parametrize(("stage", "without"), [(Gptq(group_size=32), Rtn(group_size=32)), (Wanda(), None)])
def test_uniform_does_to_an_unreached_expert_what_is_done_without_calibration(
    stage: Stage, without: Stage | None, tiny: Callable[[str], ModelFiles], compress: Compressor
) -> None:
    files = tiny("qwen3_moe")
    result = compress(files, (stage,), FEW_TOKENS, calibration=ANY)
    unreached = few(result)
    assert unreached
    plain = None if without is None else compress(files, (without,), None, "plain")
    for name in unreached:
        found = result.tensor(f"{name}.weight")
        if plain is not None:
            assert torch.equal(found, plain.tensor(f"{name}.weight"))
        else:
            weight_OI = files.tensor(f"{name}.weight")
            kept = weight_OI.abs() >= weight_OI.abs().median(1, keepdim=True).values
            assert bool(((found != 0) <= kept).all()), "the smaller half of each row is gone"
    assert all(layer.error is None for layer in result.layers if layer.name in unreached)


@pytest.mark.parametrize("recipe", [(Owq(bits=3, group_size=32),), (Esparse(), *GPTQ)])
def test_an_expert_without_a_token_has_dense_statistics_too(
    recipe: tuple[Stage, ...], tiny: Callable[[str], ModelFiles], compress: Compressor
) -> None:
    dense = ANY.model_copy(update={"statistics": "dense"})
    result = compress(tiny("qwen3_moe"), recipe, FEW_TOKENS, calibration=dense)
    assert few(result)


def test_dense_leaves_an_unreached_expert_to_stages_that_need_no_activations(
    tiny: Callable[[str], ModelFiles], compress: Compressor
) -> None:
    files = tiny("qwen3_moe")
    dense = Calibration(min_expert_tokens=1, unreached_experts="dense")
    result = compress(files, GPTQ, FEW_TOKENS, calibration=dense)
    unreached = few(result)
    for name in result.linear_names:
        assert (result.quantized(name) is None) == (name in unreached)
    for name in unreached:
        assert torch.equal(result.tensor(f"{name}.weight"), files.tensor(f"{name}.weight"))
    pruned = compress(files, (Magnitude(), *GPTQ), FEW_TOKENS, "pruned", calibration=dense)
    assert few(pruned)
    for name in few(pruned):
        assert pruned.quantized(name) is None
        assert int((pruned.tensor(f"{name}.weight") == 0).sum()) == files.tensor(f"{name}.weight").numel() // 2


@pytest.mark.parametrize("statistics", ["sequential", "dense"])
def test_experts_that_a_recipe_skips_need_no_tokens(
    statistics: str, tiny: Callable[[str], ModelFiles], compress: Compressor
) -> None:
    fail = Calibration(unreached_experts="fail", statistics=statistics)
    skipping = (Wanda(skip=("*.experts.*",)), Rtn(group_size=32))
    result = compress(tiny("qwen3_moe"), skipping, FEW_TOKENS, calibration=fail)
    assert tokens_of(result) == {}
    experts = [layer for layer in result.layers if ".experts." in layer.name]
    assert experts
    assert all(layer.zeros < layer.weights // 4 for layer in experts), "not pruned"


def test_fail_names_the_expert(tiny: Callable[[str], ModelFiles], compress: Compressor) -> None:
    fail = Calibration(min_expert_tokens=2, unreached_experts="fail")
    with pytest.raises(
        ExpertsUnreached, match=r"tokens reached model\.layers\.0\.mlp\.experts\.\d.*fewer than the 2"
    ) as e:
        compress(tiny("qwen3_moe"), GPTQ, FEW_TOKENS, calibration=fail)
    assert e.value.field == "calibration.unreached_experts"


def test_the_report_says_how_many_experts_were_hardly_reached(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    files = tiny("qwen3_moe")
    result = compress(files, GPTQ, FEW_TOKENS, calibration=ANY)
    [warning] = coverage_warnings(result.layers, ANY)
    experts = {name.rpartition(".")[0] for name in few(result)}
    assert warning.startswith(f"{len(experts)} of 18 experts, such as model.layers.0.mlp.experts.")
    assert f"({len(experts)} saw none)" in warning
    assert "equally active" in warning
    assert coverage_warnings(compress(tiny("olmoe"), GPTQ, tokens_NT, "all").layers, Calibration()) == ()
    assert coverage_warnings(compress(files, (Rtn(group_size=32),), None, "rtn").layers, Calibration()) == ()
