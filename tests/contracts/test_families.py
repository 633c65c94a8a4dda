"""contracts.families against transformers itself: same parameters and names, for tiny random models of each family."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paredown.contracts.families import MODEL_TYPES, UnsupportedArchitecture, shape_from_config

LLAMA = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
OPT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "ffn_dim": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

GEMMA = LLAMA | {"head_dim": 8}
PHI3 = LLAMA | {"pad_token_id": 0}
NEOX = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
BLOOM = {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": 64}
FALCON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

MIXTURE = LLAMA | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama tied": ("llama", LLAMA | {"tie_word_embeddings": True}),
    "llama biased": ("llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("llama", LLAMA | {"head_dim": 16}),
    "llama all heads": ("llama", LLAMA | {"num_key_value_heads": None}),
    "mistral": ("mistral", LLAMA),
    "mistral with a switch it ignores": ("mistral", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2 tied": ("qwen2", LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 16}),
    "qwen3 biased": ("qwen3", LLAMA | {"head_dim": 16, "attention_bias": True}),
    "opt": ("opt", OPT),
    "opt untied": ("opt", OPT | {"tie_word_embeddings": False}),
    "opt projected": ("opt", OPT | {"word_embed_proj_dim": 16}),
    "opt post-norm": ("opt", OPT | {"do_layer_norm_before": False}),
    "opt plain": ("opt", OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "gpt2": ("gpt2", GPT2),
    "gpt2 untied": ("gpt2", GPT2 | {"tie_word_embeddings": False}),
    "gpt2 narrow": ("gpt2", GPT2 | {"n_inner": 40}),
    "gemma2": ("gemma2", GEMMA),
    "gemma2 untied, biased": ("gemma2", GEMMA | {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma3": ("gemma3_text", GEMMA | {"head_dim": 16}),
    "phi3": ("phi3", PHI3),
    "phi3 tied, all heads": ("phi3", PHI3 | {"tie_word_embeddings": True, "num_key_value_heads": None}),
    "gpt_neox": ("gpt_neox", NEOX),
    "gpt_neox plain": ("gpt_neox", NEOX | {"attention_bias": False, "tie_word_embeddings": True}),
    "bloom": ("bloom", BLOOM),
    "bloom by its old names": (
        "bloom",
        {"vocab_size": 96, "n_embed": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "seq_length": 64},
    ),
    "falcon": ("falcon", FALCON),
    "mixtral": ("mixtral", MIXTURE),
    "qwen2_moe": ("qwen2_moe", MIXTURE | {"shared_expert_intermediate_size": 40}),
    "qwen2_moe unbiased": ("qwen2_moe", MIXTURE | {"shared_expert_intermediate_size": 40, "qkv_bias": False}),
    "qwen3_moe": ("qwen3_moe", MIXTURE | {"head_dim": 16}),
    "olmoe": ("olmoe", MIXTURE | {"pad_token_id": 0, "attention_bias": True}),
    "falcon new": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon new, one norm": (
        "falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 4, "num_ln_in_parallel_attn": 1},
    ),
    "falcon in sequence": (
        "falcon",
        FALCON | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True, "ffn_hidden_size": 40},
    ),
}


def tiny_model(name: str) -> PreTrainedModel:
    model_type, fields = CONFIGS[name]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shape_has_the_parameters_and_linears_of_the_real_model(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.config.save_pretrained(tmp_path)
    # The file on disk is what Pare reads, and save_pretrained leaves out what is at its default.
    shape = shape_from_config(json.loads((tmp_path / "config.json").read_text()))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    modules = dict(model.named_modules())
    named = dict(shape.named_linears())
    experts = {linear_name: linear for linear_name, linear in named.items() if ".experts." in linear_name}
    for linear_name, linear in experts.items():
        block, _, index = linear_name.rpartition(".")[0].rpartition(".")
        fused = modules[block].down_proj if linear_name.endswith(("down_proj", "w2")) else modules[block].gate_up_proj
        rows = linear.out_features * (1 if fused is modules[block].down_proj else 2)
        assert tuple(fused[int(index)].shape) == (rows, linear.in_features)
    for linear_name in named.keys() - experts.keys():
        linear = named[linear_name]
        weight = modules[linear_name].weight
        expected = (linear.out_features, linear.in_features)
        assert tuple(weight.shape) == (expected[::-1] if isinstance(modules[linear_name], Conv1D) else expected)
    heads = {"lm_head", "model.decoder.project_in", "model.decoder.project_out"}
    weights = {key: getattr(module, "weight", None) for key, module in modules.items()}
    every = {key for key, weight in weights.items() if weight is not None and weight.ndim == 2}
    embeddings = {key for key in every if "embed" in key or key.endswith(("wte", "wpe"))}
    # Which expert a token goes to, and how much of the shared one it takes, is decided by what no method touches.
    routers = {key for key in every if key.endswith(("mlp.gate", "mlp.shared_expert_gate"))}
    assert every - embeddings - heads - routers == named.keys() - experts.keys()
    assert shape.tied_embeddings == bool(model.config.tie_word_embeddings)
    assert shape.context_length == 64


SWITCHES = (
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "qkv_bias",
    "bias",
    "multi_query",
    "new_decoder_architecture",
    "alibi",
)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_any_sizes_and_switches_are_counted_as_the_real_model_has_them(model_type: str, tmp_path: Path) -> None:
    """Drawn at random, and the same on every run."""
    draw = random.Random(model_type)
    for _ in range(12):
        fields = random_fields(model_type, draw)
        config = AutoConfig.for_model(model_type, **fields)
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        config.save_pretrained(tmp_path)
        shape = shape_from_config(json.loads((tmp_path / "config.json").read_text()))
        assert shape.parameters == sum(parameter.numel() for parameter in model.parameters()), fields


def random_fields(model_type: str, draw: random.Random) -> dict[str, Any]:
    heads, head_dim = draw.choice((2, 4, 6)), draw.choice((4, 8))
    key_value_heads = draw.choice([count for count in (1, 2, heads) if heads % count == 0])
    blocks, inner, context, vocab = (draw.randrange(*bounds) for bounds in ((1, 4), (8, 80), (16, 99), (20, 120)))
    hidden = heads * draw.choice((4, 8, 12))
    switches: dict[str, Any] = {name: draw.random() < 0.5 for name in SWITCHES}
    match model_type:
        case "gpt2":
            sizes = {"n_embd": hidden, "n_inner": inner, "n_layer": blocks, "n_head": heads, "n_positions": context}
        case "bloom":
            sizes = {"hidden_size": hidden, "n_layer": blocks, "n_head": heads, "seq_length": context}
        case _:
            sizes = {
                "hidden_size": hidden,
                "intermediate_size": inner,
                "ffn_dim": inner,
                "ffn_hidden_size": inner,
                "word_embed_proj_dim": draw.choice((hidden, 8)),
                "num_hidden_layers": blocks,
                "num_attention_heads": heads,
                "num_key_value_heads": key_value_heads,
                "num_kv_heads": key_value_heads,
                "max_position_embeddings": context,
                "num_experts": draw.randrange(2, 6),
                "num_experts_per_tok": draw.randrange(1, 3),
                "moe_intermediate_size": draw.randrange(8, 40),
                "shared_expert_intermediate_size": draw.randrange(8, 40),
            }
            if model_type not in ("phi3", "falcon", "olmoe") and draw.random() < 0.5:
                sizes["head_dim"] = head_dim
    if model_type == "falcon":
        switches["parallel_attn"] = switches["new_decoder_architecture"] or draw.random() < 0.5
        if not switches["new_decoder_architecture"] and not switches["multi_query"]:
            sizes["num_kv_heads"] = heads
    return {"vocab_size": vocab, "pad_token_id": 0, **sizes, **switches}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "gemma3", "text_config": {}}, "save its language model alone"),
        ({"model_type": "gemma3_text", **GEMMA, "use_bidirectional_attention": True}, "predict the next token"),
        ({"model_type": "qwen2_moe", **MIXTURE, "mlp_only_layers": [0]}, "blocks are alike"),
        ({"model_type": "qwen3_moe", **MIXTURE, "decoder_sparse_step": 2}, "blocks are alike"),
        ({"model_type": "mixtral", **MIXTURE, "num_experts_per_tok": 7}, r"num_experts_per_tok \(7 of 6"),
        ({"model_type": "mixtral", **MIXTURE, "num_experts": 2**16}, r"num_experts \(2 blocks"),
        ({"model_type": "falcon", **FALCON, "num_ln_in_parallel_attn": 2}, "do not go together"),
        (
            {"model_type": "falcon", **FALCON, "new_decoder_architecture": True, "parallel_attn": False},
            "do not go together",
        ),
        (
            {"model_type": "falcon", **FALCON, "multi_query": False, "num_kv_heads": 2},
            r"num_kv_heads: 2, where without",
        ),
    ],
)
def test_a_relative_that_is_not_taken_is_refused_with_the_reason(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=sentence):
        shape_from_config(config)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_silent_fields_take_the_defaults_of_transformers(model_type: str) -> None:
    reference = AutoConfig.for_model(model_type)
    other = {"opt": OPT, "gpt2": GPT2, "gpt_neox": NEOX, "bloom": BLOOM, "falcon": FALCON}
    required = other.get(model_type, LLAMA)
    optional = {"num_key_value_heads", "max_position_embeddings", "word_embed_proj_dim", "n_positions", "seq_length"}
    fields = {name: getattr(reference, name) for name in required if name not in optional}
    shape = shape_from_config({"model_type": model_type, **fields})
    full = shape_from_config(reference.to_dict())
    assert shape == full


def test_a_family_that_is_not_supported_is_refused_with_those_that_are() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"'t5' is not supported.*llama.*qwen3"):
        shape_from_config({"model_type": "t5"})


@pytest.mark.parametrize("value", [None, -1, 0, "32", 3.5, True, 2**40, [32], {}])
def test_a_garbled_size_is_named(value: Any) -> None:
    with pytest.raises(UnsupportedArchitecture, match="hidden_size"):
        shape_from_config({"model_type": "llama", **LLAMA, "hidden_size": value})


def test_a_model_of_absurd_depth_is_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="num_hidden_layers"):
        shape_from_config({"model_type": "llama", **LLAMA, "num_hidden_layers": 2**30})


@pytest.mark.parametrize("model_type", [None, 3, ["llama"], {"llama": 1}])
def test_a_model_type_of_another_kind_is_refused(model_type: Any) -> None:
    with pytest.raises(UnsupportedArchitecture, match="model_type"):
        shape_from_config({"model_type": model_type})
