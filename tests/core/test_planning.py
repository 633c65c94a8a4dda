"""Plans: recipes that cannot run are refused with the field to blame, and the artifact's bytes are foretold."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.support.sources import PACKAGED
from transformers import AutoConfig, AutoModelForCausalLM

from paredown.contracts.artifact import BaseModelRecord
from paredown.contracts.families import ModelShape, shape_from_config
from paredown.contracts.job import Format, JobSpec, Plan
from paredown.contracts.recipes import STAGES, ShortGpt, Stage, Training, conflict
from paredown.core.errors import (
    BudgetUnmeasurable,
    CalibrationUnfit,
    GroupSizeUnfit,
    PareError,
    PlanExceeded,
    PoolUnknown,
    RecipeRefused,
)
from paredown.core.estimates import is_calibrated, memory_of, seconds_of
from paredown.core.planning import check_recipe, make_plan
from paredown.core.settings import Pool, Settings
from paredown.core.sizes import output_bytes
from paredown.core.sources import ModelDescription, SourceFile
from paredown.engine.formats import WRITERS
from paredown.engine.stream import compress_model
from paredown.engine.weights import open_model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 512, "n_embd": 192, "n_layer": 2, "n_head": 6, "n_positions": 1024}
OPT = {
    "model_type": "opt",
    "vocab_size": 512,
    "hidden_size": 192,
    "ffn_dim": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 1024,
    "word_embed_proj_dim": 192,
}
NEOX = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"} | {"model_type": "gpt_neox"}
# Written for real, so small.
TINY = LLAMA | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON = {name: LLAMA[name] for name in LLAMA if "key_value" not in name and "intermediate" not in name} | {
    "model_type": "falcon"
}
MIXTURE = TINY | {
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
# What the packaged 135 M model is, without reading it.
SMOL = LLAMA | {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def recipe_label(stage: Stage) -> str:
    return "-".join(str(value) for value in stage.identity().values())


def job(*stages: dict[str, Any], **more: Any) -> JobSpec:
    return JobSpec.model_validate({"model": PACKAGED, "recipe": stages, **more})


def described(config: dict[str, Any]) -> ModelDescription:
    files = (SourceFile("m.gguf", 98_362_432),)
    return ModelDescription(PACKAGED, "1", config, shape_from_config(config), files, "gguf", "m.gguf")


def plan(config: dict[str, Any], spec: JobSpec, **settings: Any) -> Plan:
    return make_plan(spec, described(config), Settings(**settings))


def refusal(config: dict[str, Any], spec: JobSpec) -> PareError:
    with pytest.raises(PareError) as raised:
        check_recipe(shape_from_config(config), spec)
    return raised.value


def test_a_group_size_that_does_not_divide_a_layer_names_the_layer_and_what_fits() -> None:
    error = refusal(LLAMA, job({"method": "wanda"}, {"method": "gptq", "group_size": 128}))
    assert isinstance(error, GroupSizeUnfit)
    assert error.field == "recipe.1.group_size"
    assert "model.layers.0.self_attn.q_proj" in error.detail
    assert "192" in error.detail
    assert "32, 64" in error.detail
    narrow = refusal(LLAMA | {"hidden_size": 60}, job({"method": "rtn"}))
    assert "no group size fits every layer" in narrow.detail


def test_layers_that_are_skipped_need_not_fit() -> None:
    wide = LLAMA | {"hidden_size": 256, "head_dim": 64, "intermediate_size": 520}
    assert isinstance(refusal(wide, job({"method": "rtn"})), GroupSizeUnfit)
    check_recipe(shape_from_config(wide), job({"method": "rtn", "skip": ["*.down_proj"]}))
    check_recipe(shape_from_config(wide), job({"method": "rtn", "group_size": None}))


def test_a_pattern_that_does_not_divide_a_layer_is_refused() -> None:
    error = refusal(LLAMA, job({"method": "magnitude", "pattern": "5:10"}))
    assert (type(error), error.field) == (RecipeRefused, "recipe.0.pattern")
    assert "multiple of 10" in error.detail


@pytest.mark.parametrize(
    ("skip", "field"),
    [
        (["*.q_porj"], "recipe.0.skip.0"),
        (["*.q_proj", "model.layers.9.*"], "recipe.0.skip.1"),
        (["*"], "recipe.0.skip"),
        (["*_proj"], "recipe.0.skip"),
    ],
)
def test_a_skip_that_matches_nothing_or_everything_is_refused(skip: list[str], field: str) -> None:
    error = refusal(LLAMA, job({"method": "rtn", "skip": skip}))
    assert (type(error), error.field) == (RecipeRefused, field)


def test_compressed_tensors_is_refused_for_gpt2_with_the_way_out() -> None:
    error = refusal(GPT2, job({"method": "rtn"}))
    assert (type(error), error.field) == (RecipeRefused, "format")
    assert "Conv1D" in error.detail
    assert "safetensors" in error.detail
    check_recipe(shape_from_config(GPT2), job({"method": "rtn"}, format="safetensors"))
    check_recipe(shape_from_config(GPT2), job({"method": "wanda"}))


NUMBERED = GPT2 | {"scale_attn_by_inverse_layer_idx": True}
DEEP = LLAMA | {"num_hidden_layers": 12}


@pytest.mark.parametrize(
    ("config", "stage", "field", "sentence"),
    [
        (LLAMA, {"method": "shortgpt", "blocks": 3}, "blocks", "cannot drop 3 of 3 blocks"),
        (LLAMA, {"method": "deeper", "blocks": 40}, "blocks", "at most 2 can go"),
        (LLAMA, {"method": "laco", "blocks": 2}, "blocks", "at most 0 can go"),
        (LLAMA, {"method": "shortgpt", "share": 0.9}, "share", "cannot drop 3 of 3 blocks"),
        (DEEP, {"method": "shortgpt", "skip": ["model.layers.12.*"]}, "skip.0", "matches no linear layer"),
        (DEEP, {"method": "shortgpt", "blocks": 9, "skip": ["model.layers.[0-3].*"]}, "blocks", "at most 8"),
        (DEEP, {"method": "deeper", "blocks": 8, "skip": ["model.layers.4.*"]}, "blocks", "at most 7"),
        (DEEP, {"method": "laco", "blocks": 10, "lowest": 1}, "blocks", "at most 9"),
        (DEEP, {"method": "shortgpt", "skip": ["*.down_proj"]}, "share", "at most 0"),
        (DEEP, {"method": "deeper", "last_tokens": 1000}, "last_tokens", "sequences of 512"),
        (NUMBERED, {"method": "deeper", "blocks": 1}, "", "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_blocks_that_cannot_go_are_refused_with_how_many_can(
    config: dict[str, Any], stage: dict[str, Any], field: str, sentence: str
) -> None:
    error = refusal(config, job(stage, {"method": "wanda"}))
    assert isinstance(error, RecipeRefused)
    assert error.field == f"recipe.0.{field}".rstrip(".")
    assert sentence in error.detail


def test_most_blocks_may_go_and_one_stays() -> None:
    for stage in (
        {"method": "shortgpt"},
        {"method": "deeper"},
        {"method": "laco", "lowest": 0, "layers_per_merge": 2, "interval": 1},
    ):
        check_recipe(shape_from_config(DEEP), job(stage | {"blocks": 11}))
        assert refusal(DEEP, job(stage | {"blocks": 12})).field == "recipe.0.blocks"


def test_patterns_of_later_stages_go_by_the_numbers_that_are_left() -> None:
    depth = {"method": "shortgpt", "blocks": 1}
    check_recipe(shape_from_config(LLAMA), job(depth, {"method": "wanda", "skip": ["model.layers.1.*"]}))
    error = refusal(LLAMA, job(depth, {"method": "wanda", "skip": ["model.layers.2.*"]}))
    assert error.field == "recipe.1.skip.0"
    again = refusal(LLAMA, job(depth, depth, depth))
    assert again.field == "recipe.2.blocks"
    assert "1 of 1 blocks" in again.detail


@pytest.mark.parametrize(
    ("recipe", "more", "field"),
    [
        ([{"method": "rtn", "symmetric": False}], {}, "recipe.0.symmetric"),
        ([{"method": "wanda"}, {"method": "rtn", "skip": ["*.experts.5.*"]}], {}, "recipe.1.skip"),
        ([{"method": "gptq"}], {"calibration": {"unreached_experts": "dense"}}, "calibration.unreached_experts"),
    ],
)
def test_experts_that_transformers_could_not_join_are_refused(
    recipe: list[dict[str, Any]], more: dict[str, Any], field: str
) -> None:
    mixture = MIXTURE | {"model_type": "qwen3_moe"}
    error = refusal(mixture, job(*recipe, **more))
    assert (type(error), error.field) == (RecipeRefused, field)
    assert "set format to safetensors" in error.detail
    check_recipe(shape_from_config(mixture), job(*recipe, **more, format="safetensors"))
    check_recipe(shape_from_config(TINY), job(*(stage | {"skip": []} for stage in recipe), **more))


def test_asymmetry_is_refused_where_tokens_have_no_counterpart() -> None:
    mixture = shape_from_config(MIXTURE | {"model_type": "olmoe"})
    asked = {"calibration": {"asymmetry": 0.5}}
    with pytest.raises(RecipeRefused, match="sends it to other experts") as refused:
        check_recipe(mixture, job({"method": "gptq", "group_size": 32}, **asked, format="safetensors"))
    assert refused.value.field == "calibration.asymmetry"
    # Where nothing is calibrated, how is of no account.
    check_recipe(mixture, job({"method": "rtn", "group_size": 32}, **asked))
    check_recipe(shape_from_config(TINY), job({"method": "gptq", "group_size": 32}, **asked))
    with pytest.raises(ValidationError, match="set statistics to sequential"):
        job({"method": "gptq"}, calibration={"asymmetry": 0.5, "statistics": "dense"})


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


@pytest.mark.parametrize(
    ("config", "stage", "field", "sentence"),
    [
        (LLAMA, {"method": "llm-pruner", "head_groups": 2}, ".head_groups", "at most 1 can go"),
        (LLAMA, {"method": "llm-pruner", "mlp_share": 0.01}, ".mlp_share", "512 MLP channels is too little"),
        (OPT, {"method": "llm-pruner"}, "", "gated MLP"),
        (LLAMA, {"method": "bonsai", "head_groups": 2}, ".head_groups", "at most 1 can go"),
        (GPT2, {"method": "bonsai"}, "", "gated MLP"),
        (GPT2, {"method": "llm-pruner"}, "", "gated MLP"),
    ],
)
def test_widths_that_cannot_be_are_refused(
    config: dict[str, Any], stage: dict[str, Any], field: str, sentence: str
) -> None:
    error = refusal(config, job(stage))
    assert (type(error), error.field) == (RecipeRefused, f"recipe.0{field}")
    assert sentence in error.detail


MIXED = {"method": "mixed"}


@pytest.mark.parametrize(
    ("config", "stage", "more", "field", "sentence"),
    [
        (LLAMA, {"average_bits": 2.2}, {}, "recipe.0.average_bits", "less than the 2.25 that 2 bits take"),
        (LLAMA, {"average_bits": 7}, {}, "recipe.0.average_bits", "more than the 6.25 that 6 bits take"),
        (LLAMA, {"symmetric": False}, {}, "recipe.0.symmetric", "no zero points"),
        (FALCON, {}, {}, "format", "cannot load a falcon model"),
        (MIXTURE | {"model_type": "olmoe"}, {}, {}, "format", "only if all have the same bits"),
        (LLAMA, {"group_size": 32}, {"format": "gguf"}, "recipe.0.choices", "no 2-bit symmetric grid"),
        (LLAMA, {"choices": [4, 5], "average_bits": 5}, {"format": "gguf"}, "recipe.0.group_size", "to 32"),
    ],
)
def test_bits_that_cannot_be_chosen_are_refused(
    config: dict[str, Any], stage: dict[str, Any], more: dict[str, Any], field: str, sentence: str
) -> None:
    error = refusal(config, job(MIXED | stage, **more))
    assert (type(error), error.field) == (RecipeRefused, field)
    assert sentence in error.detail
    # What is refused for its format alone is stored dense.
    if not more and "average_bits" not in stage:
        check_recipe(shape_from_config(config), job(MIXED | stage, format="safetensors"))


@pytest.mark.parametrize("choices", [[4], [4, 3], [3, 3, 4], [3, 7]])
def test_choices_rise_and_are_several(choices: list[int]) -> None:
    with pytest.raises(ValidationError):
        job(MIXED | {"choices": choices})


def test_a_width_that_drops_nothing_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="nothing to drop"):
        job({"method": "llm-pruner", "mlp_share": 0})


def test_later_stages_meet_the_narrower_layers() -> None:
    # 512 channels become 336, which groups of 64 do not divide.
    narrow = {"method": "llm-pruner", "mlp_share": 0.35}
    error = refusal(LLAMA, job(narrow, {"method": "rtn"}))
    assert isinstance(error, GroupSizeUnfit)
    assert error.field == "recipe.1.group_size"
    assert "336 input channels of model.layers.0.mlp.down_proj" in error.detail
    check_recipe(shape_from_config(LLAMA), job(narrow | {"mlp_share": 0.25}, {"method": "rtn"}))


@pytest.mark.parametrize(
    ("config", "stages", "field", "way_out"),
    [
        (LLAMA, [{"method": "rtn", "bits": 3, "group_size": 32}], "recipe.0.bits", "use 4 or 5 bits"),
        (
            LLAMA,
            [{"method": "rtn", "bits": 8, "group_size": 32, "symmetric": False}],
            "recipe.0.symmetric",
            "8 bits symmetric",
        ),
        (LLAMA, [{"method": "wanda"}, {"method": "gptq"}], "recipe.1.group_size", "set group_size to 32"),
        (LLAMA, [{"method": "rtn", "group_size": None}], "recipe.0.group_size", "set group_size to 32"),
        (
            LLAMA,
            [{"method": "wanda"}, {"method": "gptq", "group_size": 32, "symmetric": False}],
            "recipe.1.symmetric",
            "pruned weights would not stay zero",
        ),
        (
            LLAMA,
            [{"method": "wanda"}, {"method": "gptq", "k_quant": True}],
            "recipe.1.bits",
            "use K-quants of 3, 6 and 8 bits",
        ),
        (
            LLAMA | {"model_type": "qwen2"},
            [{"method": "llm-pruner", "head_groups": 1}],
            "recipe.0.head_groups",
            "set head_groups to 0",
        ),
    ],
)
def test_what_gguf_cannot_hold_is_refused_with_what_it_can(
    config: dict[str, Any], stages: list[dict[str, Any]], field: str, way_out: str
) -> None:
    error = refusal(config, job(*stages, format="gguf"))
    assert (type(error), error.field) == (RecipeRefused, field)
    assert way_out.casefold() in error.detail.casefold()


PATTERNED = STAGES["wanda"].model_validate({"pattern": "2:4"})


@pytest.mark.parametrize("before", [*(stage() for stage in STAGES.values()), PATTERNED], ids=recipe_label)
def test_an_artifact_takes_the_stages_that_could_have_followed_in_its_own_recipe(before: Stage) -> None:
    # Which no recipe begins with.
    earlier = (ShortGpt(), before) if before.method == "distil" else (before,)
    for stage in STAGES.values():
        later = stage()
        try:
            spec = job(*(each.identity() for each in (*earlier, later)))
        except ValidationError:
            refused = conflict(earlier, (later,))
            assert refused, f"{later.method} after {before.method}"
        else:
            assert spec
            assert conflict(earlier, (later,)) is None, f"{later.method} after {before.method}"


def test_zeros_of_a_job_before_count_for_gguf() -> None:
    spec = job({"method": "gptq", "group_size": 32, "symmetric": False}, format="gguf")
    check_recipe(shape_from_config(LLAMA), spec)
    with pytest.raises(RecipeRefused, match="pruned weights would not stay zero") as raised:
        check_recipe(shape_from_config(LLAMA), spec, (STAGES["wanda"](),))
    assert raised.value.field == "recipe.0.symmetric"


def test_k_quants_are_gguf_s_alone_and_have_groups_of_their_own() -> None:
    stage = {"method": "gptq", "k_quant": True}
    for file_format in ("auto", "native", "safetensors", "compressed-tensors", "gptq"):
        with pytest.raises(ValidationError, match="only gguf holds K-quants; set format to gguf"):
            job(stage, format=file_format)
    with pytest.raises(ValidationError, match="only gguf holds K-quants; set k_quant to false"):
        job({"method": "owq", "k_quant": True})
    for change in ({"group_size": 32}, {"symmetric": False}):
        with pytest.raises(ValidationError, match="K-quants have groups and zero points of their own"):
            job(stage | change, format="gguf")
    shape = shape_from_config(LLAMA)
    for change in ({"bits": 3}, {"bits": 8}, {"skip": ["*.down_proj"]}):
        # Only down_proj's rows have super-blocks there, so all others are symmetric.
        check_recipe(shape, job({"method": "wanda"}, stage | change, format="gguf"))
    narrow = LLAMA | {"hidden_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    error = refusal(narrow, job(stage, format="gguf"))
    assert (type(error), error.field) == (GroupSizeUnfit, "recipe.0.k_quant")
    assert "q_proj has 48 input channels; skip that layer" in error.detail


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


def test_rounded_activations_are_refused_where_no_runtime_would_round_them() -> None:
    error = refusal(GPT2, job({"method": "smoothquant"}))
    assert (type(error), error.field) == (RecipeRefused, "recipe.0")
    assert "Conv1D" in error.detail
    for stage in ({"method": "fp8"}, {"method": "smoothquant"}):
        flattened = refusal(OPT, job(stage))
        assert (type(flattened), flattened.field) == (RecipeRefused, "recipe.0")
        assert "use static activations, or skip *.fc?" in flattened.detail
        check_recipe(shape_from_config(OPT), job(stage | {"skip": ["*.fc?"]}))
        with pytest.raises(ValueError, match="only format compressed-tensors can say"):
            job(stage, format="safetensors")
    check_recipe(shape_from_config(OPT), job({"method": "fp8-static"}))
    check_recipe(shape_from_config(OPT), job({"method": "smoothquant", "activations": "static"}))
    for model_type in ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"):
        for method in ("smoothquant", "fp8", "fp8-static"):
            joined = refusal(MIXTURE | {"model_type": model_type}, job({"method": method}))
            assert (type(joined), joined.field) == (RecipeRefused, "recipe.0")
            assert "joins the experts" in joined.detail


@pytest.mark.parametrize("method", ["lora", "distil"])
def test_training_that_cannot_be_is_refused(method: str) -> None:
    depth = {"method": "shortgpt", "blocks": 1}

    def stage(**more: Any) -> dict[str, Any]:
        return {"method": method} | more

    wide = refusal(LLAMA, job(depth, stage(rank=65)))
    assert (type(wide), wide.field) == (RecipeRefused, "recipe.1.rank")
    assert "model.layers.0.self_attn.k_proj has 64 × 192 weights" in wide.detail
    assert "lower rank to 64" in wide.detail
    check_recipe(shape_from_config(LLAMA), job(depth, stage(rank=65, skip=["*.k_proj", "*.v_proj"])))
    long = refusal(LLAMA, job(depth, stage(sequence_length=1025)))
    assert (type(long), long.field) == (CalibrationUnfit, "recipe.1.sequence_length")
    with pytest.raises(ValidationError, match="1000 tokens are less than one batch of 4 × 512"):
        job(depth, stage(tokens=1000))
    check_recipe(shape_from_config(LLAMA), job(depth, stage(), {"method": "wanda"}, {"method": "gptq"}))


@pytest.mark.parametrize("earlier", ["wanda", "sparsegpt", "gptq"])
def test_training_after_what_it_would_undo_is_refused(earlier: str) -> None:
    with pytest.raises(
        ValidationError, match=f"lora .training. cannot follow {earlier}.*would undo it; put lora first"
    ):
        job({"method": earlier}, {"method": "lora"})


def test_distillation_without_anything_to_learn_is_refused() -> None:
    with pytest.raises(ValidationError, match="no stage before it changes the model"):
        job({"method": "distil"}, {"method": "gptq"})
    job({"method": "lora"}, {"method": "distil"})


def test_sequences_longer_than_the_context_are_refused() -> None:
    long = {"sequence_length": 1025}
    calibrated = refusal(LLAMA, job({"method": "gptq"}, calibration=long, evaluation=long))
    assert (type(calibrated), calibrated.field) == (CalibrationUnfit, "calibration.sequence_length")
    assert "1024" in calibrated.detail
    evaluated = refusal(LLAMA, job({"method": "rtn"}, calibration=long, evaluation=long))
    assert evaluated.field == "evaluation.sequence_length"
    check_recipe(shape_from_config(LLAMA), job({"method": "rtn"}, calibration=long))


def test_a_method_that_refuses_a_family_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STAGES["rtn"], "refuses", {"opt": "its norms lie elsewhere"})
    error = refusal(OPT, job({"method": "rtn"}))
    assert (type(error), error.field) == (RecipeRefused, "recipe.0")
    assert "Round to nearest cannot take a opt model: its norms lie elsewhere" in error.detail


@pytest.mark.parametrize(
    ("rounding", "sentence"), [({"damping": 0.1}, "both 0.01 or both 0.1"), ({"damping_search": True}, "cannot search")]
)
def test_stages_that_are_solved_in_one_sweep_agree(rounding: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence) as caught:
        job({"method": "sparsegpt"}, {"method": "gptq", **rounding})
    assert caught.value.errors()[0]["loc"] == ("recipe",)
    job({"method": "sparsegpt"}, {"method": "rtn"})
    job({"method": "wanda"}, {"method": "gptq", **rounding})


def test_a_shuffle_after_a_pattern_is_refused() -> None:
    with pytest.raises(ValidationError, match="shuffles channels, which would break the pattern 2:4"):
        job({"method": "wanda", "pattern": "2:4"}, {"method": "e-sparse", "pattern": "1:4"})
    job({"method": "wanda", "pattern": "2:4"}, {"method": "e-sparse", "pattern": "1:4", "shuffle": False})
    job({"method": "wanda"}, {"method": "e-sparse"})


@pytest.mark.parametrize(
    ("recipe", "more", "sentence"),
    [
        (("svd", "wanda"), {}, "svd stores two factors"),
        (("wanda", "svd"), {}, "svd stores two factors"),
        (("svd", "gptq"), {}, "svd stores two factors"),
        (("gptq", "svd"), {}, "svd stores two factors"),
        (("svd", "svd"), {}, "svd stores two factors"),
        (("svd", "shortgpt"), {}, "put shortgpt first"),
        (("squeezellm", "gptq"), {}, "both quantize"),
        (("owq", "squeezellm"), {}, "both quantize"),
        (("svd", "owq"), {}, "svd stores two factors"),
        (("owq",), {"format": "compressed-tensors"}, "cannot hold what owq makes"),
        (("squeezellm", "wanda"), {}, "put wanda first"),
        (("squeezellm",), {"format": "compressed-tensors"}, "cannot hold what squeezellm makes"),
        (("svd",), {"format": "compressed-tensors"}, "compressed-tensors cannot hold what svd makes"),
        (("wanda",), {"format": "native"}, "needs a stage that quantizes or factorizes"),
    ],
)
def test_what_no_artifact_could_hold_is_refused(recipe: tuple[str, ...], more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        job(*({"method": method} for method in recipe), **more)


def test_a_format_follows_what_a_recipe_leaves() -> None:
    svd = job({"method": "shortgpt"}, {"method": "svd"})
    assert svd.resolved_format is Format.NATIVE
    assert job({"method": "svd"}, format="safetensors").resolved_format is Format.SAFETENSORS
    assert job({"method": "wanda"}, {"method": "gptq"}).resolved_format is Format.COMPRESSED_TENSORS
    assert job({"method": "wanda"}).resolved_format is Format.SAFETENSORS


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


@pytest.mark.parametrize(
    ("config", "file_format", "stage", "field", "sentence"),
    [
        (LLAMA, "gptq", {"bits": 5}, "recipe.0.bits", "2, 3, 4 or 8 bits"),
        (LLAMA, "awq", {"bits": 8}, "recipe.0.bits", "codes of 4 bits; set bits to 4"),
        (LLAMA, "awq", {"embeddings": 8}, "recipe.0.embeddings", "set embeddings to 16"),
        (LLAMA, "gptq", {"group_size": 128}, "recipe.0.group_size", "sizes that fit every layer: 32, 64"),
        (LLAMA, "gptq", {"skip": ["model.layers.0.*"]}, "recipe.0.skip", "skip the same ones in each"),
        (GPT2, "gptq", {}, "format", "of a gpt2 model, set format to"),
        (MIXTURE | {"model_type": "mixtral"}, "awq", {}, "format", "of a mixtral model, set format to"),
        (LLAMA | {"intermediate_size": 208}, "awq", {"group_size": None}, "format", "multiples of 32"),
    ],
)
def test_what_gptq_and_awq_files_cannot_hold_is_refused_with_what_they_can(
    config: dict[str, Any], file_format: str, stage: dict[str, Any], field: str, sentence: str
) -> None:
    error = refusal(config, job({"method": "rtn"} | stage, format=file_format))
    assert error.field == field
    assert sentence in error.detail


@pytest.mark.parametrize("file_format", ["gptq", "awq"])
@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("owq", "cannot hold what owq makes"),
        ("squeezellm", "cannot hold what squeezellm makes"),
        ("svd", "cannot hold what svd makes"),
        ("mixed", "cannot hold what mixed makes"),
        ("smoothquant", "only format compressed-tensors can say"),
        ("wanda", "needs a stage that quantizes"),
    ],
)
def test_recipes_that_leave_no_one_grid_are_refused_for_gptq_and_awq(
    file_format: str, method: str, sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        job({"method": method}, format=file_format)


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


def test_a_runtime_that_does_not_read_the_artifact_is_refused() -> None:
    asked = {"runtimes": ["transformers", "vllm"]}
    for stage, file_format, hint in (
        ({"method": "gptq", "bits": 3}, "compressed-tensors", "3 bits are for transformers"),
        ({"method": "svd"}, "native", "native"),
        ({"method": "rtn", "group_size": 32}, "gguf", "llama.cpp"),
    ):
        error = refusal(SMOL, job(stage, format=file_format, evaluation=asked))
        assert (error.code, error.field) == ("recipe_refused", "evaluation.runtimes")
        assert hint in error.detail


def test_a_pool_whose_workers_have_no_vllm_refuses_a_job_that_asks_for_it() -> None:
    asked = job({"method": "rtn"}, evaluation={"runtimes": ["vllm"]})
    for runtimes in (None, ["vllm"]):
        assert plan(SMOL, asked, pools={"cpu": {"runtimes": runtimes}})
    without = {"cpu": {"runtimes": []}}
    assert plan(SMOL, job({"method": "rtn"}), pools=without)
    with pytest.raises(PareError, match="have no vLLM") as refused:
        plan(SMOL, asked, pools=without)
    assert (refused.value.code, refused.value.field) == ("runtime_unavailable", "evaluation.runtimes")
