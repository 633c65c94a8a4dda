"""Small models by their configuration, jobs on them, and what plans say of both."""

from typing import Any

import pytest
from tests.support.sources import PACKAGED

from paredown.contracts.families import shape_from_config
from paredown.contracts.job import JobSpec, Plan
from paredown.contracts.recipes import Stage
from paredown.core.errors import PareError
from paredown.core.planning import make_plan
from paredown.core.recipe_checks import check_recipe
from paredown.core.settings import Settings
from paredown.core.sources import ModelDescription, SourceFile

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
MIXED = {"method": "mixed"}


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
