"""Recipes that cannot run are refused with the field to blame."""

from typing import Any

import pytest
from pydantic import ValidationError
from tests.core.planned import FALCON, GPT2, LLAMA, MIXED, MIXTURE, OPT, SMOL, TINY, job, recipe_label, refusal

from paredown.contracts.families import shape_from_config
from paredown.contracts.job import Format
from paredown.contracts.recipes import STAGES, ShortGpt, Stage, conflict
from paredown.core.errors import CalibrationUnfit, GroupSizeUnfit, RecipeRefused
from paredown.core.recipe_checks import check_recipe


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


def test_what_is_said_of_an_evaluation_that_does_not_run_is_of_no_account() -> None:
    short = shape_from_config(LLAMA | {"max_position_embeddings": 256})
    unevaluated = job({"method": "wanda"}, calibration={"sequence_length": 256})
    check_recipe(short, unevaluated, evaluated=False)
    with pytest.raises(CalibrationUnfit, match="Sequences of 512 tokens"):
        check_recipe(short, unevaluated)


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


def test_a_budget_of_bits_counts_every_expert() -> None:
    stage = {"method": "mixed", "average_bits": 3.5, "group_size": 32}
    mixture = MIXTURE | {"model_type": "qwen3_moe"}
    error = refusal(mixture, job(stage, format="native", calibration={"unreached_experts": "dense"}))
    assert (type(error), error.field) == (RecipeRefused, "calibration.unreached_experts")
    check_recipe(shape_from_config(mixture), job(stage, format="native"))


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


FOUR_HEADS = LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 128}
GEMMA = {"model_type": "gemma2", "head_dim": 32}


@pytest.mark.parametrize(
    ("config", "stage", "field", "sentence"),
    [
        (LLAMA, {"method": "llm-pruner", "head_groups": 2}, ".head_groups", "at most 1 can go"),
        (LLAMA, {"method": "llm-pruner", "mlp_share": 0.01}, ".mlp_share", "512 MLP channels is too little"),
        (OPT, {"method": "llm-pruner"}, "", "gated MLP"),
        (LLAMA, {"method": "bonsai", "head_groups": 2}, ".head_groups", "at most 1 can go"),
        (GPT2, {"method": "bonsai"}, "", "gated MLP"),
        (GPT2, {"method": "llm-pruner"}, "", "gated MLP"),
        # What goes with heads does not make up for channels that stay.
        (LLAMA, {"method": "llm-pruner", "mlp_share": 0.01, "head_groups": 1}, ".mlp_share", "512 MLP channels is too"),
        (FOUR_HEADS, {"method": "bonsai", "head_groups": 1}, ".head_groups", "leave 1 or 2 key-value heads"),
        (FOUR_HEADS | GEMMA, {"method": "llm-pruner", "head_groups": 1}, ".head_groups", "3 of 4 would be left"),
    ],
)
def test_widths_that_cannot_be_are_refused(
    config: dict[str, Any], stage: dict[str, Any], field: str, sentence: str
) -> None:
    error = refusal(config, job(stage))
    assert (type(error), error.field) == (RecipeRefused, f"recipe.0{field}")
    assert sentence in error.detail


def test_heads_may_go_where_every_reader_takes_what_is_left() -> None:
    shape = shape_from_config(FOUR_HEADS)
    one_goes = {"method": "llm-pruner", "head_groups": 1}
    check_recipe(shape, job(one_goes, one_goes))
    check_recipe(shape, job(one_goes, format="gguf"))
    check_recipe(shape_from_config(FOUR_HEADS | {"model_type": "qwen3"}), job(one_goes))


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


K_QUANT = {"method": "rtn", "k_quant": True}
PRUNED_CODES = [{"method": "wanda"}, {"method": "gptq", "group_size": 32, "symmetric": False}]


def test_gguf_meets_a_model_as_earlier_stages_leave_it() -> None:
    deep = LLAMA | {"num_hidden_layers": 4}
    error = refusal(deep, job({"method": "shortgpt", "blocks": 2}, *PRUNED_CODES, format="gguf"))
    assert (type(error), error.field) == (RecipeRefused, "recipe.2.symmetric")
    # Of 512 channels 256 are left, one block of a K-quant, which loses zeros; of 1440 864, which only plain types hold.
    halved = {"method": "llm-pruner", "mlp_share": 0.5}
    assert refusal(LLAMA, job(halved, {"method": "wanda"}, K_QUANT, format="gguf")).field == "recipe.2.bits"
    wide = LLAMA | {"intermediate_size": 1440, "hidden_size": 288}
    narrow = {"method": "llm-pruner", "mlp_share": 0.4}
    check_recipe(shape_from_config(wide), job(narrow, {"method": "wanda"}, K_QUANT, format="gguf"))
    one_goes = {"method": "llm-pruner", "head_groups": 1}
    many = LLAMA | {"num_key_value_heads": 3}
    check_recipe(shape_from_config(many), job(one_goes, one_goes, {"method": "rtn", "group_size": 32}, format="gguf"))


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
