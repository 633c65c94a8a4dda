"""Every method on every family, and what each of them promises wherever it runs."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CPU, FAMILIES, Compressor, folded
from torch import Tensor
from transformers import AutoModelForCausalLM

from paredown.contracts.job import Calibration
from paredown.contracts.recipes import (
    STAGES,
    Deeper,
    Depth,
    Esparse,
    Gptq,
    Laco,
    LlmPruner,
    Magnitude,
    Rtn,
    ShortGpt,
    Sparsegpt,
    Stage,
    Wanda,
    WeightGrid,
)
from paredown.contracts.recipes.pruning import Pruner
from paredown.engine.architectures import architecture_of
from paredown.engine.errors import RecipeUnfit
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.methods import METHODS, MODEL_METHODS, esparse
from paredown.engine.statistics import Statistic
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelFiles

# One row for each method, with the settings that exercise most of it.
RECIPES: dict[str, tuple[Stage, ...]] = {
    "rtn": (Rtn(bits=4, group_size=32),),
    "gptq": (Gptq(bits=4, group_size=32),),
    "magnitude": (Magnitude(sparsity=0.5),),
    "wanda": (Wanda(sparsity=0.5),),
    "sparsegpt": (Sparsegpt(sparsity=0.5),),
    "e-sparse": (Esparse(pattern="2:4"),),
    "shortgpt": (ShortGpt(blocks=1),),
    "deeper": (Deeper(blocks=2, last_tokens=3),),
    "laco": (Laco(blocks=1, layers_per_merge=2, samples=3),),
    "llm-pruner": (LlmPruner(mlp_share=0.5, head_groups=1),),
}
# Of these alone each block has one gated MLP, and queries, keys and values of their own.
SEPARATE = {"llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"}
# What a method cannot take, and why.
REFUSED = {("llm-pruner", family): "gated MLP" for family in FAMILIES if family not in SEPARATE}
VARIANTS: dict[str, tuple[Stage, ...]] = {
    "rtn 3 bits asymmetric": (Rtn(bits=3, group_size=32, symmetric=False),),
    "rtn 8 bits rows": (Rtn(bits=8, group_size=None),),
    "gptq 3 bits asymmetric": (Gptq(bits=3, group_size=64, symmetric=False),),
    "gptq in order": (Gptq(bits=4, group_size=32, activation_order=False),),
    "gptq in order, asymmetric rows, min-max": (
        Gptq(bits=4, group_size=None, activation_order=False, symmetric=False, scale_search="min_max"),
    ),
    "wanda 2:4": (Wanda(pattern="2:4"),),
    "wanda then gptq": (Wanda(sparsity=0.5), Gptq(bits=4, group_size=32)),
    "wanda 2:4 then asymmetric gptq": (Wanda(pattern="2:4"), Gptq(bits=4, group_size=32, symmetric=False)),
    "gptq 2 bits asymmetric, damping searched": (Gptq(bits=2, group_size=32, symmetric=False, damping_search=True),),
    "rtn 5 bits": (Rtn(bits=5, group_size=32),),
    "sparsegpt 2:4": (Sparsegpt(pattern="2:4"),),
    "sparsegpt and gptq in one sweep": (Sparsegpt(sparsity=0.5), Gptq(bits=4, group_size=32)),
    "sparsegpt 2:4 and asymmetric gptq in one sweep, in order": (
        Sparsegpt(pattern="2:4"),
        Gptq(bits=3, group_size=64, symmetric=False, activation_order=False),
    ),
    "e-sparse 4:8 unshuffled": (Esparse(pattern="4:8", shuffle=False),),
    "e-sparse then gptq": (Esparse(), Gptq(bits=4, group_size=32)),
    "e-sparse then sparsegpt and gptq in one sweep": (
        Esparse(pattern="3:4"),
        Sparsegpt(pattern="2:4"),
        Gptq(bits=4, group_size=32, symmetric=False),
    ),
    "shortgpt, then wanda 2:4, then gptq": (ShortGpt(share=0.3), Wanda(pattern="2:4"), Gptq(bits=4, group_size=32)),
    "laco, then rtn": (Laco(blocks=1, layers_per_merge=2), Rtn(bits=4, group_size=32)),
    "magnitude then rtn": (Magnitude(pattern="4:8"), Rtn(bits=4, group_size=64, symmetric=False)),
}


def test_methods_are_the_stages_that_recipes_know() -> None:
    assert [*METHODS, *MODEL_METHODS] == list(STAGES)
    assert set(RECIPES) == set(STAGES)
    for name, method in METHODS.items():
        assert method.config is STAGES[name]
        assert bool(method.needs) == STAGES[name].needs_calibration
    for name, across in MODEL_METHODS.items():
        assert across.config is STAGES[name]
        assert STAGES[name].needs_calibration


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", RECIPES)
def test_a_method_keeps_its_promises_on_a_family(
    method: str, family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    if reason := REFUSED.get((method, family)):
        with pytest.raises(RecipeUnfit, match=reason):
            compress(tiny(family), RECIPES[method], tokens_NT)
    else:
        _check(RECIPES[method], tiny(family), compress, tokens_NT)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_and_chains_keep_their_promises(
    variant: str, family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    _check(VARIANTS[variant], tiny(family), compress, tokens_NT)


def _check(recipe: tuple[Stage, ...], files: ModelFiles, compress: Compressor, tokens_NT: Tensor) -> None:
    needs_tokens = any(stage.needs_calibration for stage in recipe)
    result = compress(files, recipe, tokens_NT if needs_tokens else None)
    bases = _base_names(result, files)
    assert set(bases.values()) <= set(files.names)
    assert (tuple(bases) == files.names) == (not isinstance(recipe[0], Depth))
    assert result.storage_dtype == files.storage_dtype
    assert [layer.name for layer in result.layers] == list(result.linear_names)
    quantizing = next((stage for stage in recipe if isinstance(stage, WeightGrid)), None)
    pruning = next((stage for stage in recipe if isinstance(stage, Pruner)), None)
    shuffling = any(isinstance(stage, Esparse) for stage in recipe)
    compressed = {f"{name}.weight" for name in result.linear_names}
    if any(stage.method in ("laco", "llm-pruner") for stage in recipe):
        # A merge adds up biases too, and a narrower block has fewer.
        compressed |= {f"{name}.bias" for name in result.linear_names}
    for name in result.names:
        value = result.tensor(name)
        assert value.dtype == files.storage_dtype
        if recipe[0].method != "llm-pruner":
            assert value.shape == files.tensor(bases[name]).shape
        assert bool(value.isfinite().all())
        original = files.tensor(bases[name]).to(files.storage_dtype)
        if shuffling and name.endswith(".bias"):
            value, original = value.sort().values, original.sort().values
        if name not in compressed:
            assert torch.equal(value, original)
    for layer in result.layers:
        weight = result.tensor(f"{layer.name}.weight")
        assert layer.weights == weight.numel()
        assert layer.zeros == int((weight == 0).sum())
        if pruning is not None:
            assert layer.zeros >= weight.numel() // 2
        quantized = result.quantized(layer.name)
        if quantizing is None:
            assert quantized is None
            assert layer.bits == 16
        else:
            assert quantized is not None
            low = -(2 ** (quantizing.bits - 1)) if quantizing.symmetric else 0
            assert low <= int(quantized.codes_OI.min())
            assert int(quantized.codes_OI.max()) < low + 2**quantizing.bits
            assert quantizing.bits < layer.bits < quantizing.bits + 1
        solved = any(Statistic.HESSIAN in METHODS[stage.method].needs for stage in recipe if stage.method in METHODS)
        if solved and (layer.tokens is None or layer.tokens >= Calibration().min_expert_tokens):
            assert layer.error is not None
            assert 0 < layer.error < 1
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    assert math.isfinite(found)


def _base_names(result: CompressedModel, files: ModelFiles) -> dict[str, str]:
    """The artifact's parameters, and which of the base's stand there: numbers change where blocks were dropped."""
    if not result.stages:
        return {name: name for name in result.names}
    [report] = result.stages
    assert [block.block for block in report.blocks] == list(range(files.config.num_hidden_layers))
    kept = [block.block for block in report.blocks if block.kept]
    assert len(kept) == result.config.num_hidden_layers
    prefix = architecture_of(files.config).blocks + "."

    def base_name(name: str) -> str:
        if not name.startswith(prefix):
            return name
        number, _, leaf = name.removeprefix(prefix).partition(".")
        return f"{prefix}{kept[int(number)]}.{leaf}"

    return {name: base_name(name) for name in result.names}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_are_those_of_a_model_that_transformers_runs(
    family: str,
    tiny: Callable[[str], ModelFiles],
    model_dir: Callable[[str], Path],
    compress: Compressor,
    tokens_NT: Tensor,
) -> None:
    result = compress(tiny(family), (Gptq(bits=3, group_size=32),), tokens_NT)
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(model_dir(family), dtype=torch.float32)
    model.load_state_dict(folded({name: result.tensor(name).float() for name in result.names}), strict=False)
    with torch.no_grad():
        expected = math.exp(model(input_ids=tokens_NT, labels=tokens_NT).loss.item())
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_skipped_linear_is_left_as_it_is(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    files = tiny("llama")
    skip = ("*.k_proj", "model.layers.1.*")
    result = compress(files, (Wanda(sparsity=0.5), Gptq(group_size=32, skip=skip)), tokens_NT)
    for name in result.linear_names:
        skipped = name.endswith("k_proj") or ".1." in name
        assert (result.quantized(name) is None) == skipped
        # Only gptq skips: wanda still prunes everywhere.
        assert int((result.tensor(f"{name}.weight") == 0).sum()) >= files.tensor(f"{name}.weight").numel() // 2
    result = compress(files, (Gptq(group_size=32, skip=skip),), tokens_NT, "again")
    assert torch.equal(
        result.tensor("model.layers.1.mlp.up_proj.weight"), files.tensor("model.layers.1.mlp.up_proj.weight")
    )


def test_stages_that_are_solved_in_one_sweep_part_where_one_of_them_skips(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    files = tiny("llama")
    recipe = (Sparsegpt(skip=("*.k_proj", "*.o_proj")), Gptq(group_size=32, skip=("*.v_proj", "*.o_proj")))
    result = compress(files, recipe, tokens_NT)
    for name in result.linear_names:
        weight, kind = result.tensor(f"{name}.weight"), name.rpartition(".")[2]
        assert (result.quantized(name) is None) == (kind in ("v_proj", "o_proj"))
        assert (int((weight == 0).sum()) >= weight.numel() // 2) == (kind not in ("k_proj", "o_proj"))
        assert torch.equal(weight, files.tensor(f"{name}.weight")) == (kind == "o_proj")


@pytest.mark.parametrize("family", FAMILIES)
def test_shuffled_channels_change_nothing_that_the_model_computes(
    family: str,
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(esparse, "pattern_mask", lambda score_OI, *_: torch.zeros_like(score_OI, dtype=torch.bool))
    files = tiny(family)
    plain = compress(files, (Esparse(shuffle=False),), tokens_NT, "plain")
    result = compress(files, (Esparse(),), tokens_NT)
    moved = {name for name in result.names if not torch.equal(result.tensor(name), plain.tensor(name))}
    produced = architecture_of(files.config).produced
    expected = {name for consumer, producers in produced.items() for name in (consumer, *producers)}
    assert {name for name in expected if any(f".{name}.weight" in one for one in moved)} == expected
    assert len(moved) >= len(expected)
    before, after = (perplexity(model, tokens_NT, device=CPU, dtype=torch.float32)[0] for model in (plain, result))
    assert after == pytest.approx(before, rel=1e-5)


def test_a_layer_that_is_skipped_is_not_shuffled_either(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    files = tiny("llama")
    result = compress(files, (Esparse(skip=("*.up_proj", "*.v_proj")),), tokens_NT)
    for name in result.linear_names:
        if name.endswith(("up_proj", "v_proj")):
            assert torch.equal(result.tensor(f"{name}.weight"), files.tensor(f"{name}.weight"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_shuffled_pattern_holds_in_the_file(
    family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    result = compress(tiny(family), (Esparse(),), tokens_NT)
    for name in result.linear_names:
        weight = result.tensor(f"{name}.weight")
        weight_OI = weight.T if family == "gpt2" else weight
        assert bool(((weight_OI == 0).reshape(-1, 4).sum(1) == 2).all())
