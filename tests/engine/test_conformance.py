"""Every method on every family, and what each of them promises wherever it runs."""

import math
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CPU, FAMILIES, Compressor, folded
from torch import Tensor
from transformers import AutoModelForCausalLM

from paredown.contracts.families import shape_from_config
from paredown.contracts.job import Calibration
from paredown.contracts.recipes import (
    STAGES,
    Awq,
    Bonsai,
    Deeper,
    Depth,
    Distil,
    EightBit,
    Esparse,
    Fp8,
    Fp8Gptq,
    Fp8Static,
    Gptq,
    Laco,
    LlmPruner,
    Lora,
    Magnitude,
    Mixed,
    Owq,
    Rtn,
    ShortGpt,
    SmoothQuant,
    Sparsegpt,
    Squeezellm,
    Stage,
    Svd,
    Training,
    UniformGrid,
    Wanda,
    Width,
    quantizer,
)
from paredown.contracts.recipes.pruning import Pruner
from paredown.engine.architectures import architecture_of
from paredown.engine.errors import RecipeUnfit
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.inputs import check_stages
from paredown.engine.methods import ASSIGNING_METHODS, METHODS, MODEL_METHODS, esparse
from paredown.engine.statistics import Statistic
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelFiles

# One row for each method, with the settings that exercise most of it.
RECIPES: dict[str, tuple[Stage, ...]] = {
    "rtn": (Rtn(bits=4, group_size=32),),
    "gptq": (Gptq(bits=4, group_size=32),),
    "awq": (Awq(bits=4, group_size=32),),
    "smoothquant": (SmoothQuant(),),
    "fp8": (Fp8(),),
    "fp8-static": (Fp8Static(),),
    "fp8-gptq": (Fp8Gptq(),),
    "owq": (Owq(bits=3, group_size=32, extra_bits=0.5),),
    "squeezellm": (Squeezellm(bits=3, outliers=0.02),),
    "magnitude": (Magnitude(sparsity=0.5),),
    "wanda": (Wanda(sparsity=0.5),),
    "sparsegpt": (Sparsegpt(sparsity=0.5),),
    "e-sparse": (Esparse(pattern="2:4"),),
    "svd": (Svd(ratio=0.3),),
    "shortgpt": (ShortGpt(blocks=1),),
    "deeper": (Deeper(blocks=2, last_tokens=3),),
    "laco": (Laco(blocks=1, layers_per_merge=2, samples=3),),
    "llm-pruner": (LlmPruner(mlp_share=0.5, head_groups=1),),
    "bonsai": (Bonsai(mlp_share=0.5, head_groups=1, submodels=10, samples=3, rounds=2),),
    "lora": (Lora(tokens=128, batch_size=2, sequence_length=32, rank=4, learning_rate=0.02),),
    "distil": (ShortGpt(blocks=1), Distil(tokens=128, batch_size=2, sequence_length=32, rank=4)),
    "mixed": (Mixed(average_bits=4.0, group_size=32, scale_search="min_max"),),
}
VARIANTS: dict[str, tuple[Stage, ...]] = {
    "rtn 3 bits asymmetric": (Rtn(bits=3, group_size=32, symmetric=False),),
    "rtn 8 bits rows": (Rtn(bits=8, group_size=None),),
    "gptq 3 bits asymmetric": (Gptq(bits=3, group_size=64, symmetric=False),),
    "gptq in order": (Gptq(bits=4, group_size=32, activation_order=False),),
    "gptq in order, asymmetric rows, min-max": (
        Gptq(bits=4, group_size=None, activation_order=False, symmetric=False, scale_search="min_max"),
    ),
    "awq 3 bits asymmetric": (Awq(bits=3, group_size=64, symmetric=False),),
    "awq rows, min-max": (Awq(bits=8, group_size=None, scale_search="min_max", scale_steps=3),),
    "static smoothquant": (SmoothQuant(activations="static", alpha=0.8, weights="nearest"),),
    "wanda then smoothquant": (Wanda(sparsity=0.5), SmoothQuant()),
    "wanda then awq": (Wanda(sparsity=0.5), Awq(bits=4, group_size=32)),
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
    "magnitude then squeezellm": (Magnitude(sparsity=0.5), Squeezellm(bits=2, outliers=0.05, sensitive=0.02)),
    "magnitude then squeezellm as in the paper": (Magnitude(sparsity=0.5), Squeezellm(bits=3, compensate=False)),
    "e-sparse then squeezellm without outliers": (Esparse(), Squeezellm(bits=4, outliers=0, sensitive=0)),
    "wanda then owq on rows, asymmetric": (
        Wanda(sparsity=0.5),
        Owq(bits=3, group_size=None, symmetric=False, extra_bits=0.3),
    ),
    "owq without weak columns": (Owq(bits=4, group_size=32, extra_bits=0),),
    "svd without whitening": (Svd(ratio=0.5, whitening=False),),
    "shortgpt, then lora, then svd": (
        ShortGpt(blocks=1),
        Lora(tokens=128, batch_size=2, sequence_length=32, rank=4),
        Svd(ratio=0.3),
    ),
    "shortgpt, then block-wise distil, then gptq": (
        ShortGpt(blocks=1),
        Distil(tokens=64, batch_size=2, sequence_length=32, rank=4, block_wise=True),
        Gptq(bits=4, group_size=32),
    ),
    "wanda, then mixed asymmetric rows, min-max": (
        Wanda(),
        Mixed(average_bits=4.5, choices=(3, 5, 8), group_size=None, symmetric=False, scale_search="min_max"),
    ),
    "sparsegpt and mixed in one sweep": (Sparsegpt(pattern="2:4"), Mixed(group_size=32, activation_order=False)),
    "magnitude then rtn": (Magnitude(pattern="4:8"), Rtn(bits=4, group_size=64, symmetric=False)),
}


def test_methods_are_the_stages_that_recipes_know() -> None:
    assert [*METHODS, *MODEL_METHODS, *ASSIGNING_METHODS] == list(STAGES)
    assert set(RECIPES) == set(STAGES)
    for name, method in METHODS.items():
        assert method.config is STAGES[name]
        assert bool(method.needs) == STAGES[name].needs_calibration
    for name, across in [*MODEL_METHODS.items(), *ASSIGNING_METHODS.items()]:
        assert across.config is STAGES[name]
        assert STAGES[name].needs_calibration


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", RECIPES)
def test_a_method_keeps_its_promises_on_a_family(
    method: str, family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    *before, stage = RECIPES[method]
    files = tiny(family)
    shape = shape_from_config(files.config.to_dict())
    if stage.refusal(shape):
        with pytest.raises(RecipeUnfit, match="cannot take a"):
            check_stages((stage,), shape)
        return
    if isinstance(stage, EightBit) and stage.is_dynamic and family.startswith("opt"):
        # transformers flattens the sequences before its MLP; core/recipe_checks.py refuses that before it comes here.
        with pytest.raises(RecipeUnfit, match="use static activations"):
            _check((*before, stage), files, compress, tokens_NT)
        stage = stage.model_copy(update={"skip": ("*.fc?",)})
    _check((*before, stage), files, compress, tokens_NT, name="again")


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_and_chains_keep_their_promises(
    variant: str, family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    _check(VARIANTS[variant], tiny(family), compress, tokens_NT)


def _check(
    recipe: tuple[Stage, ...], files: ModelFiles, compress: Compressor, tokens_NT: Tensor, name: str = "work"
) -> None:
    needs_tokens = any(stage.needs_calibration for stage in recipe)
    training = {
        index: tokens_NT[: stage.steps * stage.batch_size]
        for index, stage in enumerate(recipe)
        if isinstance(stage, Training)
    }
    result = compress(files, recipe, tokens_NT if needs_tokens else None, name, training=training)
    bases = _base_names(result, files)
    assert set(bases.values()) <= set(files.names)
    assert (tuple(bases) == files.names) == (not isinstance(recipe[0], Depth))
    assert result.storage_dtype == files.storage_dtype
    assert [layer.name for layer in result.layers] == list(result.linear_names)
    quantizing = quantizer(recipe)
    pruning = next((stage for stage in recipe if isinstance(stage, Pruner)), None)
    shuffling = any(isinstance(stage, Esparse) for stage in recipe)
    compressed = {f"{name}.weight" for name in result.linear_names}
    if training:
        # An expert that no token reached has learned nothing.
        moved = [
            not torch.equal(result.tensor(name), files.tensor(bases[name]).to(files.storage_dtype))
            for name in compressed
        ]
        assert sum(moved) > len(moved) / 2
    if any(isinstance(stage, Laco | Width) for stage in recipe):
        # A merge adds up biases too, and a narrower block has fewer.
        compressed |= {f"{name}.bias" for name in result.linear_names}
    if isinstance(quantizing, Awq | SmoothQuant):
        compressed |= {name for name in files.names if takes_a_scale(name)}
    for name in result.names:
        value = result.tensor(name)
        assert value.dtype == files.storage_dtype
        if not isinstance(recipe[0], Width):
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
        factorizing = next((stage for stage in recipe if isinstance(stage, Svd)), None)
        clustering = next((stage for stage in recipe if isinstance(stage, Squeezellm)), None)
        if factorizing is not None:
            # Small layers lose more, because a rank is a whole number.
            assert layer.bits <= 16 * (1 - factorizing.ratio)
            rank = int(torch.linalg.matrix_rank(weight.double(), rtol=0.02))
            assert rank <= layer.bits / 16 * weight.numel() / sum(weight.shape)
        elif clustering is not None:
            assert quantized is not None
            weight_OI = architecture_of(files.config).oriented(weight)
            kept = sum(clustering.kept(weight_OI.shape[1]))
            assert max(len(row.unique()) for row in weight_OI) <= 2**clustering.bits + kept
            assert (
                clustering.bits
                < layer.bits
                <= clustering.bits + (16 * 2**clustering.bits + 32 * kept) / min(weight.shape)
            )
        elif quantizing is None or any(fnmatchcase(layer.name, pattern) for pattern in quantizing.skip):
            assert quantized is None
            assert layer.bits == 16
        else:
            assert quantized is not None
            bits = quantized.bits
            assert bits in quantizing.widths
            extra = quantizing.extra_bits if isinstance(quantizing, Owq) else 0
            assert bits < layer.bits < bits + 1 + extra
            assert (quantized.activations is not None) == isinstance(quantizing, EightBit)
        if isinstance(quantizing, UniformGrid) and quantized is not None:
            low = -(2 ** (quantized.bits - 1)) if quantizing.symmetric else 0
            assert low <= int(quantized.codes_OI.min())
            assert int(quantized.codes_OI.max()) < low + 2**quantized.bits
        solved = isinstance(quantizing, Mixed) or any(
            Statistic.HESSIAN in METHODS[stage.method].needs
            for stage in recipe
            if stage.method in METHODS and not any(fnmatchcase(layer.name, pattern) for pattern in stage.skip)
        )
        if solved and (layer.tokens is None or layer.tokens >= Calibration().min_expert_tokens):
            assert layer.error is not None
            assert 0 < layer.error < 1
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    assert math.isfinite(found)


def takes_a_scale(name: str) -> bool:
    """Norms of a block, and biases of the linears that make another's input."""
    makers = ("layernorm", "layer_norm", "ln_1", "ln_2", "ln_attn", "ln_mlp", "v_proj", "c_attn", "up_proj", "fc1")
    return bool(re.search(r"(layers|h)\.\d+\.", name)) and name.split(".")[-2].endswith(makers)


def _base_names(result: CompressedModel, files: ModelFiles) -> dict[str, str]:
    """The artifact's parameters, and which of the base's stand there: numbers change where blocks were dropped."""
    reports = [report for report in result.stages if report.blocks]
    if not reports:
        return {name: name for name in result.names}
    [report] = reports
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
    architecture = architecture_of(files.config)
    rows = {name: maker for name, maker in architecture.producers.items() if maker.name in architecture.linears}
    expected = {name for consumer, maker in rows.items() for name in (consumer, maker.name, *maker.gates)}
    assert expected
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


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_a_shuffled_pattern_holds_in_the_file(
    family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    result = compress(tiny(family), (Esparse(),), tokens_NT)
    for name in result.linear_names:
        weight = result.tensor(f"{name}.weight")
        weight_OI = weight.T if family == "gpt2" else weight
        assert bool(((weight_OI == 0).reshape(-1, 4).sum(1) == 2).all())
