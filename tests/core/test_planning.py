"""Plans: what a job would need, and its artifact's bytes, are foretold."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.core.planned import (
    GPT2,
    LLAMA,
    MIXED,
    MIXTURE,
    NEOX,
    OPT,
    SMOL,
    TINY,
    described,
    job,
    plan,
    refusal,
)
from tests.support.sources import PACKAGED
from transformers import AutoConfig, AutoModelForCausalLM

from paredown.contracts.artifact import BaseModelRecord
from paredown.contracts.families import ModelShape, shape_from_config
from paredown.contracts.job import Format, JobSpec, Plan
from paredown.contracts.recipes import STAGES, Training
from paredown.core.errors import (
    BudgetUnmeasurable,
    GroupSizeUnfit,
    PareError,
    PlanExceeded,
    PoolUnknown,
    RecipeRefused,
)
from paredown.core.estimates import is_calibrated, memory_of, seconds_of
from paredown.core.planning import make_plan
from paredown.core.recipe_checks import check_recipe
from paredown.core.settings import Pool, Settings
from paredown.core.sizes import output_bytes
from paredown.engine.formats import WRITERS
from paredown.engine.stream import compress_model
from paredown.engine.weights import open_model


def test_the_base_beside_the_model_is_planned_for() -> None:
    shape = shape_from_config(LLAMA)
    for method in ("gptq", "wanda"):
        alone, beside = (job({"method": method}, calibration={"asymmetry": share}) for share in (0, 0.5))
        for activations in ("pausing", "rerunning"):
            assert getattr(memory_of(shape, beside, "cpu"), activations) > getattr(
                memory_of(shape, alone, "cpu"), activations
            )
        assert (
            seconds_of(shape, beside, "cpu", None, True).blocks
            > 1.5 * seconds_of(shape, alone, "cpu", None, True).blocks
        )
    assert "asymmetry" not in alone.calibration.model_dump(), "or hashes of older jobs would be others"


def test_an_expert_costs_only_the_tokens_that_reach_it() -> None:
    """A mixture of the same parameters runs as fast as its experts for one token, and solves as much."""
    spec = job({"method": "gptq", "group_size": 32})
    every, few = (
        seconds_of(
            shape_from_config(MIXTURE | {"model_type": "olmoe", "num_experts_per_tok": used}), spec, "cpu", None, True
        ).total
        for used in (6, 1)
    )
    assert few < every


def test_a_plan_says_that_unreached_experts_may_take_more_bytes() -> None:
    olmoe, dense = MIXTURE | {"model_type": "olmoe"}, {"unreached_experts": "dense"}
    squeezed = plan(olmoe, job({"method": "squeezellm"}, calibration=dense))
    assert "may be larger than planned" in " ".join(squeezed.warnings)
    # Nobody waits for tokens there, or nothing is smaller for them.
    for recipe in (
        job({"method": "rtn", "group_size": 32}, calibration=dense, format="safetensors"),
        job({"method": "wanda"}, calibration=dense),
    ):
        assert "larger than planned" not in " ".join(plan(olmoe, recipe).warnings)


def test_rows_that_fill_no_super_blocks_are_named_and_counted_as_the_blocks_they_get() -> None:
    """Of the packaged model only down_proj's 1536 channels are a multiple of 256."""
    down = 30 * 576 * 1536
    sizes, warnings = {}, {}
    for bits in (2, 3, 4, 5, 6, 8):
        planned = plan(SMOL, job({"method": "gptq", "bits": bits, "k_quant": True}, format="gguf"))
        sizes[bits] = planned.output_bytes
        warnings[bits] = " ".join(planned.warnings)
    plain = {
        bits: plan(SMOL, job({"method": "gptq", "bits": bits, "group_size": 32}, format="gguf")).output_bytes
        for bits in (4, 5, 8)
    }
    assert plain[4] - sizes[2] == down * (4.5 - 2.625) / 8
    assert plain[4] - sizes[3] == down * (4.5 - 3.4375) / 8
    assert (plain[4], plain[5], plain[8]) == (sizes[4], sizes[5], sizes[8])
    assert plain[8] - sizes[6] == down * (8.5 - 6.5625) / 8
    assert "self_attn.q_proj (576), self_attn.k_proj (576)" in warnings[4]
    assert "down_proj" not in warnings[4]
    assert not warnings[8]
    wide = SMOL | {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
    whole = {"method": "gptq", "k_quant": True}
    assert not plan(wide, job(whole, format="gguf")).warnings
    # 1536 channels become 1376.
    narrowed = plan(wide, job({"method": "llm-pruner", "mlp_share": 0.1}, whole, format="gguf"))
    assert "mlp.down_proj (1376)" in " ".join(narrowed.warnings)
    error = refusal(SMOL, job({"method": "mixed", "k_quant": True}, format="gguf"))
    assert "rows are no multiple of 256 take 4.5 at least; raise it." in error.detail


def test_embeddings_below_eight_bits_are_gguf_s_alone_and_smaller() -> None:
    stage = {"method": "gptq", "group_size": 32}
    whole, *sizes = (
        plan(SMOL, job(stage | {"embeddings": bits}, format="gguf")).output_bytes for bits in (16, 8, 5, 4)
    )
    blocks = 49152 * 576 // 32
    assert [whole - size for size in sizes] == [0, 12 * blocks, 14 * blocks]
    for file_format in ("auto", "native", "safetensors", "gptq"):
        with pytest.raises(ValidationError, match="only gguf holds embeddings in 4 bits; set format to gguf"):
            job(stage | {"embeddings": 4}, format=file_format)
    narrow = LLAMA | {"hidden_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    skip = ["*.self_attn.*", "*.gate_proj", "*.up_proj"]
    error = refusal(narrow, job(stage | {"skip": skip, "embeddings": 4}, format="gguf"))
    assert (error.field, "48 channels fill none" in error.detail) == ("recipe.0.embeddings", True)


def test_embeddings_of_k_quants_lie_in_super_blocks_where_they_fill_them() -> None:
    stage = {"method": "gptq", "k_quant": True}
    wide = SMOL | {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
    eight, *sizes = (plan(wide, job(stage | {"embeddings": bits}, format="gguf")).output_bytes for bits in (8, 6, 5, 4))
    blocks = 49152 * 512 // 256
    assert [eight - size for size in sizes] == [blocks * (272 - size) for size in (210, 176, 144)]
    narrow = plan(SMOL, job(stage | {"embeddings": 4}, format="gguf"))
    assert (
        narrow.output_bytes
        == plan(SMOL, job({"method": "gptq", "group_size": 32, "embeddings": 4}, format="gguf")).output_bytes
    )
    for config, spec, way_out in (
        (SMOL, stage, "here it is 576. Set embeddings to 5 or 8."),
        (wide, {"method": "gptq", "group_size": 32}, "or k_quant to true"),
    ):
        error = refusal(config, job(spec | {"embeddings": 6}, format="gguf"))
        assert error.field == "recipe.0.embeddings"
        assert way_out in error.detail


@pytest.mark.parametrize(
    "config",
    [
        OPT,
        LLAMA | {"hidden_act": "gelu"},
        GPT2 | {"activation_function": "relu"},
        LLAMA | {"model_type": "qwen3", "attention_bias": True},
        LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        LLAMA | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
        LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16}},
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused_for_gguf(config: dict[str, Any]) -> None:
    with pytest.raises(RecipeRefused, match="Set format to safetensors") as raised:
        plan(config, job({"method": "magnitude"}, format="gguf"))
    assert raised.value.field == "format"
    assert plan(config, job({"method": "magnitude"})).format is Format.SAFETENSORS


@pytest.mark.parametrize("config", [LLAMA, GPT2, LLAMA | {"model_type": "qwen3"}], ids=["llama", "gpt2", "qwen3"])
def test_gguf_is_planned_for_what_it_holds(config: dict[str, Any]) -> None:
    shape = shape_from_config(config)
    for stage in ({"bits": 4}, {"bits": 4, "symmetric": False}, {"bits": 8}):
        check_recipe(shape, job({"method": "rtn", "group_size": 32} | stage, format="gguf"))
    check_recipe(shape, job({"method": "wanda"}, {"method": "gptq", "group_size": 32}, format="gguf"))
    sizes = [
        output_bytes(shape, job(*stages, format="gguf").recipe, Format.GGUF)
        for stages in (
            [{"method": "rtn", "group_size": 32}],
            [{"method": "rtn", "group_size": 32, "symmetric": False}],
            [{"method": "rtn", "group_size": 32, "bits": 8}],
            [{"method": "wanda"}],
        )
    ]
    assert sizes == sorted(sizes)
    quick, timed = (
        plan(config, job({"method": "wanda"}, format="gguf", evaluation={"speed": speed})) for speed in (False, True)
    )
    assert timed.disk_bytes == quick.disk_bytes + shape.base_bytes, "the base is written to be timed in llama.cpp"


def test_a_plan_of_factors() -> None:
    made = plan(SMOL, job({"method": "svd", "ratio": 0.4}))
    assert made.recipe_name == "svd-40%"
    embeddings = 2 * 49152 * 576
    # Ranks are whole, so a little more than the ratio goes.
    assert made.output_bytes - embeddings == pytest.approx(0.6 * (made.base_bytes - embeddings), rel=0.01)
    assert made.seconds > plan(SMOL, job({"method": "wanda"})).seconds
    assert made.memory_bytes > plan(SMOL, job({"method": "wanda"})).memory_bytes


def test_a_plan_of_codebooks() -> None:
    made = plan(SMOL, job({"method": "squeezellm", "bits": 3}))
    assert (made.recipe_name, made.format) == ("squeezellm-3", Format.NATIVE)
    assert made.seconds > plan(SMOL, job({"method": "wanda"})).seconds
    embeddings = 2 * 49152 * 576
    # Of 576 inputs 2 stay, of 1536 there stay 7, in 32 bits each; a row's eight values take 128.
    bits = 3 + (128 + 2 * 32) / 576 * 3 / 4 + (128 + 7 * 32) / 1536 / 4
    assert made.output_bytes - embeddings == pytest.approx((made.base_bytes - embeddings) / 16 * bits, rel=0.01)


def test_a_plan_of_mixed_columns() -> None:
    made = plan(SMOL, job({"method": "owq", "bits": 3, "extra_bits": 0.1}))
    assert (made.recipe_name, made.format) == ("owq-3.1", Format.NATIVE)
    gptq = plan(SMOL, job({"method": "gptq", "bits": 3}))
    linears = (made.base_bytes - 2 * 49152 * 576) / 2
    assert made.output_bytes - gptq.output_bytes == pytest.approx(0.1 / 8 * linears, rel=0.15)
    error = refusal(LLAMA, job({"method": "owq", "group_size": 128}))
    assert isinstance(error, GroupSizeUnfit)


# The search for scales takes time and changes no size.
RTN = {"method": "rtn", "scale_search": "min_max"}


TRAINED = {"method": "distil", "tokens": 128, "batch_size": 1, "sequence_length": 64, "rank": 4}


GRIDS = [
    {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    for bits, group_size, symmetric in itertools.product((3, 4, 8), (64, None), (True, False))
]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "-".join(str(value) for value in grid.values()))
def test_the_artifacts_bytes_are_foretold_within_two_percent(grid: dict[str, Any], tmp_path: Path) -> None:
    spec = job(RTN | grid)
    written, foretold = written_and_foretold(TINY, spec, tmp_path)
    assert abs(foretold / written - 1) < 0.02


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (
            TINY | {"tie_word_embeddings": True},
            job(RTN | {"skip": ["*.down_proj", "model.layers.1.*"]}),
        ),
        (TINY | {"model_type": "qwen2"}, job(RTN | {"bits": 8})),
        (
            TINY | {"model_type": "qwen3", "head_dim": 32},
            job(RTN | {"group_size": 32}),
        ),
        (OPT, job(RTN | {"symmetric": False})),
        (TINY | {"model_type": "gemma2", "head_dim": 32}, job(RTN)),
        (TINY | {"model_type": "phi3", "pad_token_id": 0}, job(RTN | {"symmetric": False})),
        (NEOX, job(RTN | {"bits": 8})),
        (MIXTURE | {"model_type": "mixtral"}, job(RTN)),
        (MIXTURE | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 64}, job({"method": "magnitude"})),
        (TINY, job({"method": "fp8"})),
        (GPT2, job(RTN, format="safetensors")),
        (GPT2, job({"method": "magnitude"})),
        (TINY, job({"method": "magnitude"}, RTN)),
        (TINY | {"num_hidden_layers": 6}, job({"method": "shortgpt", "share": 0.4}, RTN)),
        (GPT2, job({"method": "deeper", "blocks": 1}, {"method": "wanda"})),
        (TINY | {"model_type": "qwen2"}, job({"method": "llm-pruner", "head_groups": 1})),
        (TINY | {"attention_bias": True, "mlp_bias": True}, job({"method": "llm-pruner"}, RTN)),
        (TINY | {"num_hidden_layers": 6}, job({"method": "deeper"}, {"method": "shortgpt"})),
        (TINY, job({"method": "svd", "ratio": 0.3, "skip": ["*.o_proj"]})),
        (GPT2, job({"method": "svd"}, format="safetensors")),
        (MIXTURE | {"model_type": "olmoe"}, job({"method": "svd"})),
        (GPT2, job(RTN | {"bits": 3, "symmetric": False}, format="native")),
        (TINY, job({"method": "squeezellm", "bits": 3, "outliers": 0.02})),
        (TINY, job({"method": "owq", "bits": 3, "extra_bits": 0.3, "symmetric": False})),
        (GPT2, job({"method": "owq", "group_size": 32})),
        (OPT, job({"method": "squeezellm", "outliers": 0, "sensitive": 0, "skip": ["*.fc2"]})),
        (TINY, job({"method": "shortgpt", "blocks": 1}, TRAINED, RTN)),
        (TINY | {"num_hidden_layers": 6}, job(MIXED | {"average_bits": 4.1, "choices": [2, 3, 4, 5, 6, 8]})),
        (
            GPT2 | {"n_layer": 6},
            job(MIXED | {"average_bits": 4.6, "symmetric": False, "embeddings": 8}, format="native"),
        ),
    ],
    ids=[
        "tied-skip",
        "qwen2",
        "qwen3",
        "opt",
        "gemma2",
        "phi3",
        "gpt_neox",
        "mixtral",
        "qwen2_moe",
        "fp8",
        "gpt2-rtn",
        "gpt2-magnitude",
        "chain",
        "shortgpt-chain",
        "gpt2-deeper",
        "qwen2-narrow",
        "narrow-chain",
        "depth-twice",
        "svd-skip",
        "svd-merged",
        "svd-olmoe",
        "gpt2-native",
        "codebooks",
        "mixed-columns",
        "gpt2-mixed-columns",
        "codebooks-alone",
        "trained",
        "mixed",
        "gpt2-mixed-native",
    ],
)
def test_the_bytes_of_every_family_and_format_are_foretold(
    config: dict[str, Any], spec: JobSpec, tmp_path: Path
) -> None:
    written, foretold = written_and_foretold(config, spec, tmp_path)
    assert abs(foretold / written - 1) < 0.02


def written_and_foretold(config: dict[str, Any], spec: JobSpec, tmp_path: Path) -> tuple[int, int]:
    """Bytes of an artifact that the engine wrote, and what the plan says."""
    torch.manual_seed(0)
    fields = {name: value for name, value in config.items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    compressed = compress_model(
        open_model(tmp_path / "model", None),
        spec.recipe,
        torch.arange(256).view(4, 64) if is_calibrated(spec) else None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        training={
            index: torch.arange(stage.trained_tokens).view(-1, stage.sequence_length)
            for index, stage in enumerate(spec.recipe)
            if isinstance(stage, Training)
        },
        work_dir=tmp_path / "work",
        identity="x",
        on_progress=lambda done, total: None,
        should_drain=lambda: False,
    )
    (tmp_path / "out").mkdir()
    WRITERS[spec.resolved_format](compressed, tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    shape = shape_from_config(json.loads((tmp_path / "model" / "config.json").read_text()))
    return written, output_bytes(shape, spec.recipe, spec.resolved_format)


def test_a_plan_of_the_packaged_model() -> None:
    made = plan(SMOL, job({"method": "gptq"}))
    assert made.pool == "cpu"
    assert made.format is Format.COMPRESSED_TENSORS
    assert made.base_bytes == 269_030_016
    assert 0.41 < made.size_ratio < 0.43
    assert made.size_ratio == made.output_bytes / made.base_bytes
    assert made.download_bytes == 98_362_432
    assert made.disk_bytes > made.download_bytes + 2 * made.output_bytes
    assert made.cost == pytest.approx(made.seconds / 3600 * 0.10)
    assert made.pausing
    assert made.warnings == ()


@pytest.mark.parametrize(
    ("budget", "more", "from_artifact", "field"),
    [
        ({"min_decode_speedup": 1.1}, {"speed": False}, False, "budget.min_decode_speedup"),
        ({"max_cost_per_million_tokens": 1}, {"speed": False}, False, "budget.max_cost_per_million_tokens"),
        ({"max_mean_divergence": 0.1}, {}, True, "budget.max_mean_divergence"),
        ("default", {}, True, "budget.max_mean_divergence"),
    ],
    ids=str,
)
def test_a_term_that_the_job_will_not_measure_is_refused(
    budget: Any, more: dict[str, Any], from_artifact: bool, field: str
) -> None:
    description = described(SMOL)
    if from_artifact:
        base = BaseModelRecord(
            uri=PACKAGED, revision="1", fingerprint="f" * 64, model_type="llama", parameters=1, base_bytes=2
        )
        description = replace(description, base=base)
    spec = job({"method": "gptq"}, budget=budget, evaluation=more)
    with pytest.raises(BudgetUnmeasurable) as raised:
        make_plan(spec, description, Settings())
    assert raised.value.field == field
    assert "Leave the term out" in raised.value.detail


def test_the_default_budget_can_be_measured_with_and_without_speed() -> None:
    for speed in (True, False):
        assert plan(SMOL, job({"method": "gptq"}, budget="default", evaluation={"speed": speed})).warnings == ()


def test_a_plan_of_fewer_blocks() -> None:
    made = plan(SMOL, job({"method": "shortgpt", "blocks": 6}, {"method": "gptq"}))
    whole = plan(SMOL, job({"method": "gptq"}))
    assert made.recipe_name == "shortgpt-6-blocks + gptq-4"
    assert made.base_bytes == whole.base_bytes == 269_030_016
    assert made.parameters == whole.parameters
    embeddings = 2 * 49152 * 576
    # A fifth of what lies in blocks.
    assert made.output_bytes - embeddings == pytest.approx(0.8 * (whole.output_bytes - embeddings), rel=0.01)
    alone = plan(SMOL, job({"method": "shortgpt"}))
    assert (alone.recipe_name, alone.format) == ("shortgpt-20%", Format.SAFETENSORS)
    assert alone.memory_bytes < made.memory_bytes
    assert alone.seconds < made.seconds
    assert alone.seconds < plan(SMOL, job({"method": "laco"})).seconds
    assert plan(SMOL, job({"method": "laco"})).disk_bytes > alone.disk_bytes


def test_a_plan_of_narrower_blocks() -> None:
    made = plan(SMOL, job({"method": "llm-pruner", "mlp_share": 1 / 3}))
    assert made.recipe_name == "llm-pruner-33%"
    # 1024 of 1536 channels are left in each of 30 blocks.
    assert made.output_bytes == pytest.approx(made.base_bytes - 2 * 30 * 3 * 512 * 576, rel=0.001)
    survey = plan(SMOL, job({"method": "shortgpt"}))
    assert made.seconds > survey.seconds
    assert made.memory_bytes > survey.memory_bytes
    assert made.disk_bytes > survey.disk_bytes


def test_a_plan_of_submodels() -> None:
    made = plan(SMOL, job({"method": "bonsai", "mlp_share": 1 / 3}))
    assert made.recipe_name == "bonsai-33%"
    gradients = plan(SMOL, job({"method": "llm-pruner", "mlp_share": 1 / 3}))
    assert made.output_bytes == gradients.output_bytes
    # No gradients, and nothing of every block on disk.
    assert made.memory_bytes < gradients.memory_bytes
    assert made.disk_bytes < gradients.disk_bytes
    few, many, rounds = (
        plan(SMOL, job({"method": "bonsai", "mlp_share": 1 / 3} | more)).seconds
        for more in ({"submodels": 0}, {"submodels": 64}, {"submodels": 64, "rounds": 3})
    )
    assert few < made.seconds < many < rounds
    wide = plan(SMOL, job({"method": "bonsai", "mlp_share": 1 / 3, "samples": 4096}, calibration={"samples": 2048}))
    less = plan(SMOL, job({"method": "bonsai", "mlp_share": 1 / 3, "samples": 8}, calibration={"samples": 2048}))
    assert wide.memory_bytes > less.memory_bytes


def test_everything_in_four_bits_and_embeddings_in_eight_take_a_third() -> None:
    made = plan(SMOL, job({"method": "gptq", "embeddings": 8}))
    assert 0.31 < made.size_ratio < 0.32
    untied = {"tie_word_embeddings": False}
    sixteen, eight = (plan(SMOL | untied, job({"method": "gptq", "embeddings": bits})).output_bytes for bits in (16, 8))
    assert sixteen - eight == pytest.approx(2 * 49152 * 576, rel=1e-4)


def test_a_plan_of_training() -> None:
    depth = {"method": "shortgpt", "blocks": 3}
    before = plan(SMOL, job(depth))
    healed, distilled, block_wise, longer = (
        plan(SMOL, job(depth, stage))
        for stage in (
            {"method": "lora"},
            {"method": "distil"},
            {"method": "distil", "block_wise": True},
            {"method": "distil", "tokens": 1_000_000},
        )
    )
    assert healed.recipe_name == "shortgpt-3-blocks + lora-65.5k-tokens"
    assert longer.recipe_name == "shortgpt-3-blocks + distil-999k-tokens"
    assert before.output_bytes == healed.output_bytes == distilled.output_bytes
    assert before.seconds < healed.seconds < distilled.seconds < longer.seconds
    # The weights of the model, and of the base beside it.
    assert healed.memory_bytes > before.memory_bytes
    assert distilled.memory_bytes - healed.memory_bytes > 4 * before.parameters
    assert block_wise.memory_bytes < distilled.memory_bytes
    assert distilled.disk_bytes > before.disk_bytes
    assert plan(SMOL, job({"method": "deeper", "blocks": 12}, {"method": "lora"})).warnings == ()
    # All weights, of a model twice as deep; block by block that is one block as before.
    deep = SMOL | {"num_hidden_layers": 60}
    half = {"method": "shortgpt", "blocks": 33}
    assert plan(deep, job(half, {"method": "distil"})).memory_bytes > distilled.memory_bytes + 4 * 90e6
    again = plan(deep, job(half, {"method": "distil", "block_wise": True}))
    assert again.memory_bytes == pytest.approx(block_wise.memory_bytes, rel=0.01)


def test_cost_follows_the_pool() -> None:
    pools = {"cpu": Pool(), "gpu": Pool(device="cuda", price_per_hour=7.0)}
    made = plan(SMOL, job({"method": "gptq"}, pool="gpu"), pools=pools, currency="EUR")
    assert (made.pool, made.currency) == ("gpu", "EUR")
    assert made.cost == pytest.approx(made.seconds / 3600 * 7.0)
    assert made.seconds < plan(SMOL, job({"method": "gptq"})).seconds


def test_a_pool_that_does_not_exist_is_named() -> None:
    with pytest.raises(PoolUnknown, match="there are cpu, gpu") as raised:
        plan(SMOL, job({"method": "rtn"}, pool="tpu"))
    assert raised.value.field == "pool"


def test_a_method_that_needs_a_gpu_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STAGES["rtn"], "needs_gpu", True)
    assert plan(SMOL, job({"method": "rtn"})).pool == "gpu"
    with pytest.raises(RecipeRefused, match="the pool cpu has none"):
        plan(SMOL, job({"method": "rtn"}, pool="cpu"))
    with pytest.raises(PoolUnknown, match="no pool here has one"):
        plan(SMOL, job({"method": "rtn"}), pools={"cpu": Pool()})


def test_memory_decides_on_pausing_and_on_refusal() -> None:
    spec = job({"method": "gptq"}, calibration={"samples": 256, "sequence_length": 512})
    memory = memory_of(shape_from_config(SMOL), spec, "cpu")
    assert memory.rerunning < memory.pausing
    between = (memory.rerunning + memory.pausing) // 2
    roomy, tight = (plan(SMOL, spec, pools={"cpu": Pool(memory_bytes=limit)}) for limit in (memory.pausing, between))
    assert (roomy.pausing, tight.pausing) == (True, False)
    assert (roomy.memory_bytes, tight.memory_bytes) == (memory.pausing, memory.rerunning)
    assert tight.seconds > roomy.seconds
    with pytest.raises(PlanExceeded, match="GiB") as raised:
        plan(SMOL, spec, pools={"cpu": Pool(memory_bytes=memory.rerunning - 1)})
    assert raised.value.field == "pool"


def test_scores_that_no_kernel_fuses_are_counted() -> None:
    """Gemma 2's attention holds heads × tokens² numbers for each sequence; at 2048 tokens that outweighs all else."""
    spec = job({"method": "gptq"}, calibration={"samples": 16, "sequence_length": 2048})
    gemma = SMOL | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 72}
    capped, fused = (
        memory_of(shape_from_config(gemma | {"model_type": model_type}), spec, "cpu")
        for model_type in ("gemma2", "gemma3_text")
    )
    assert capped.pausing - fused.pausing > 4 * 16 * 8 * 2048**2
    assert capped.rerunning - fused.rerunning < 2**31


def test_more_work_takes_longer_and_more_memory() -> None:
    shape = shape_from_config(SMOL)
    few, many = (job({"method": "gptq"}, calibration={"samples": samples}) for samples in (8, 128))
    assert seconds_of(shape, few, "cpu", None, True).total < seconds_of(shape, many, "cpu", None, True).total
    assert memory_of(shape, few, "cpu").pausing < memory_of(shape, many, "cpu").pausing
    searched = job({"method": "gptq", "damping_search": True}, calibration={"samples": 128})
    assert seconds_of(shape, many, "cpu", None, True).total < seconds_of(shape, searched, "cpu", None, True).total
    assert memory_of(shape, many, "cpu").pausing < memory_of(shape, searched, "cpu").pausing
    chosen = job(MIXED, calibration={"samples": 128})
    assert seconds_of(shape, many, "cpu", None, True).total < seconds_of(shape, chosen, "cpu", None, True).total
    assert memory_of(shape, many, "cpu").rerunning < memory_of(shape, chosen, "cpu").rerunning
    deeper = shape_from_config(SMOL | {"num_hidden_layers": 60})
    assert memory_of(deeper, few, "cpu").pausing == memory_of(shape, few, "cpu").pausing


def test_float8_takes_a_runtime_without_its_kernels_longer() -> None:
    shape = shape_from_config(SMOL)
    plain, float8 = (seconds_of(shape, job({"method": method}), "cpu", None, True) for method in ("rtn", "fp8"))
    assert plain.reading + 5 < float8.reading


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (job({"method": "rtn", "bits": 3}), "without calibration"),
        (job({"method": "gptq", "bits": 3}), "vLLM has no kernel for 3-bit"),
        (job({"method": "gptq", "bits": 6}), "vLLM has no kernel for 6-bit"),
        (job({"method": "gptq", "bits": 2}), "2 bits on a symmetric grid"),
        (job({"method": "rtn"}, format="safetensors"), "no smaller than the base"),
        (job({"method": "svd"}, format="safetensors"), "the product of two factors dense"),
        (job({"method": "svd"}), "no other runtime reads it"),
        (job({"method": "wanda", "sparsity": 0.7}), "Pruning 70%"),
        (job({"method": "wanda", "pattern": "1:4"}), "Pruning 75%"),
        (job({"method": "e-sparse", "pattern": "1:4"}), "Pruning 75%"),
        (job({"method": "deeper", "blocks": 12}), "Dropping 12 of 30 blocks"),
        (job({"method": "gptq"}, calibration={"samples": 2, "sequence_length": 128}), "256 calibration tokens are few"),
        (job({"method": "rtn", "bits": 8}, budget={"max_size_ratio": 0.3}), "will end rejected"),
    ],
)
def test_a_plan_warns_in_sentences(spec: JobSpec, sentence: str) -> None:
    warnings = plan(SMOL, spec).warnings
    assert any(sentence in warning for warning in warnings)
    assert all(warning.endswith(".") for warning in warnings)


def test_a_plan_warns_where_the_proof_will_not_fit() -> None:
    deep = SMOL | {"num_hidden_layers": 300}
    limit = 2 * 2**30
    warnings = plan(deep, job({"method": "rtn"}), pools={"cpu": Pool(memory_bytes=limit)}).warnings
    assert any("no runtime will be claimed" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (GPT2, "mlp.c_proj"),
        (OPT | {"activation_function": "gelu"}, "fc2"),
        (OPT | {"do_layer_norm_before": False}, "self_attn.k_proj, self_attn.v_proj, self_attn.q_proj, fc1"),
    ],
)
def test_a_plan_names_the_layers_whose_inputs_awq_cannot_scale(config: dict[str, Any], layers: str) -> None:
    awq = {"method": "awq"}
    assert any(
        f"no inputs of {layers} in" in warning for warning in plan(config, job(awq, format="safetensors")).warnings
    )
    assert not any("no inputs" in warning for warning in plan(SMOL, job(awq)).warnings)
    rest = job(awq | {"skip": [f"*.{name}" for name in layers.split(", ")]}, format="safetensors")
    assert not any("no inputs" in warning for warning in plan(config, rest).warnings)


def test_half_of_the_weights_pruned_is_nothing_to_warn_of() -> None:
    assert plan(SMOL, job({"method": "wanda", "pattern": "2:4"})).warnings == ()


def test_a_shape_has_the_same_bytes_in_both_directions() -> None:
    shape: ModelShape = shape_from_config(SMOL)
    dense = output_bytes(shape, job({"method": "magnitude"}).recipe, Format.SAFETENSORS)
    assert shape.base_bytes < dense < 1.001 * shape.base_bytes


def test_plans_of_gptq_and_awq_say_what_reads_them() -> None:
    gptq = plan(SMOL, job({"method": "gptq"}, format="gptq"))
    assert gptq.output_bytes > plan(SMOL, job({"method": "gptq"}, format="awq")).output_bytes
    assert any("gptqmodel" in warning for warning in gptq.warnings)
    assert not any("transformers only" in warning for warning in gptq.warnings)
    asymmetric = plan(SMOL, job({"method": "gptq", "symmetric": False}, format="gptq"))
    assert any("transformers only" in warning for warning in asymmetric.warnings)


def test_tasks_take_time_and_memory_as_many_as_there_are_rows() -> None:
    def planned(**evaluation: Any) -> Plan:
        return plan(SMOL, job({"method": "rtn"}, evaluation={"tasks": [evaluation]} if evaluation else {}))

    without, few, all_rows = planned(), planned(name="mmlu", limit=100), planned(name="mmlu")
    assert without.seconds < few.seconds < all_rows.seconds
    assert without.memory_bytes < few.memory_bytes < all_rows.memory_bytes
    # Hidden states of one pass are bounded, whatever the number of rows.
    assert all_rows.memory_bytes - without.memory_bytes < 2 * 2**30
    assert planned(name="gsm8k", limit=100).seconds > planned(name="mmlu", limit=300).seconds


def test_under_four_bits_the_plan_warns_as_the_literature_does() -> None:
    assert any("2212.09720" in warning for warning in plan(SMOL, job({"method": "gptq", "bits": 3})).warnings)
    assert not any("2212.09720" in warning for warning in plan(SMOL, job({"method": "gptq"})).warnings)


def test_a_pool_whose_workers_have_no_vllm_refuses_a_job_that_asks_for_it() -> None:
    asked = job({"method": "rtn"}, evaluation={"runtimes": ["vllm"]})
    for runtimes in (None, ["vllm"]):
        assert plan(SMOL, asked, pools={"cpu": {"runtimes": runtimes}})
    without = {"cpu": {"runtimes": []}}
    assert plan(SMOL, job({"method": "rtn"}), pools=without)
    with pytest.raises(PareError, match="have no vLLM") as refused:
        plan(SMOL, asked, pools=without)
    assert (refused.value.code, refused.value.field) == ("runtime_unavailable", "evaluation.runtimes")
