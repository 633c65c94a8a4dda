"""What a model's `config.json` says of its shape, without torch: families, linear layers, parameters.

The engine knows where a family keeps its modules (engine/architectures.py); this file knows only sizes, for plans and
for refusing a recipe before it is queued. Tests hold the two together.
"""

from collections.abc import Callable
from typing import Any

from paredown.contracts.mixtures import mixture
from paredown.contracts.shapes import (
    BLOCK_PREFIXES,
    FamilyName,
    LinearShape,
    ModelShape,
    UnsupportedArchitecture,
    attention_linears,
    attention_widths,
    block_count,
    gated_linears,
    linear,
    size,
    stored_name,
)

# transformers' `model_type` → family. Members of a family share names and shapes up to biases and head norms.
MODEL_TYPES: dict[str, FamilyName] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "opt": "opt",
    "gpt2": "gpt2",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "phi3": "phi3",
    "gpt_neox": "gpt_neox",
    "bloom": "bloom",
    "falcon": "falcon",
    "mixtral": "mixtral",
    "qwen2_moe": "qwen2_moe",
    "qwen3_moe": "qwen3_moe",
    "olmoe": "qwen3_moe",
}

# Known relatives that are not taken, each with what to do instead.
_REFUSED = {
    "gemma3": "this gemma3 model reads images too, which this release does not take; save its language model alone "
    "(text_config as config.json, the weights under language_model) and submit that",
}

# What transformers takes where a config.json is silent, by model_type.
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_CONTEXT = {"mistral": 131072, "qwen2": 32768, "qwen3": 32768}


def family_of(model_type: Any) -> FamilyName:
    """Raises UnsupportedArchitecture with a sentence for the user."""
    family = MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedArchitecture(
            _REFUSED.get(model_type if isinstance(model_type, str) else "")
            or f"model_type {model_type!r} is not supported; this release takes {', '.join(sorted(MODEL_TYPES))}"
        )
    return family


def shape_from_config(config: dict[str, Any]) -> ModelShape:
    """Read a `config.json`. Raises UnsupportedArchitecture with a sentence for the user."""
    family = family_of(config.get("model_type"))
    try:
        return _READERS[family](config)
    except UnsupportedArchitecture:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedArchitecture(
            f"config.json of this {config['model_type']} model lacks or garbles {error}"
        ) from error


def _llama(config: dict[str, Any]) -> ModelShape:
    model_type = config["model_type"]
    hidden, inner, vocab = (size(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    query, key_value, head_dim = attention_widths(
        config, hidden, kv_heads=_KV_HEADS.get(model_type), head_dim=128 if model_type == "qwen3" else None
    )
    # llama and qwen3 write the switch down; qwen2 always has biases on q, k and v; mistral never has any.
    attention_bias = bool(config.get("attention_bias", False)) and model_type in ("llama", "qwen3")
    norms = 2 * hidden + (2 * head_dim if model_type == "qwen3" else 0)
    query_bias = attention_bias or model_type == "qwen2"
    mlp_bias = bool(config.get("mlp_bias", False)) and model_type == "llama"
    biases = (query + 2 * key_value) * query_bias + hidden * attention_bias + (2 * inner + hidden) * mlp_bias
    tied = bool(config.get("tie_word_embeddings", False))
    linears = attention_linears(hidden, query, key_value, bias=query_bias) + gated_linears(
        "mlp", hidden, inner, bias=mlp_bias
    )
    return ModelShape(
        model_type=model_type,
        family="llama",
        num_blocks=block_count(config),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=size(config, "max_position_embeddings", _CONTEXT.get(model_type, 2048)),
        tied_embeddings=tied,
        linears=linears,
        scalable=tuple(one.name for one in linears),
        kv_heads=key_value // head_dim,
        block_other_parameters=norms + biases,
        other_parameters=vocab * hidden * (1 if tied else 2) + hidden,
    )


def _opt(config: dict[str, Any]) -> ModelShape:
    hidden, inner, vocab = (size(config, key) for key in ("hidden_size", "ffn_dim", "vocab_size"))
    context = size(config, "max_position_embeddings", 2048)
    embedding = size(config, "word_embed_proj_dim", hidden)
    bias = bool(config.get("enable_bias", True))
    affine = bool(config.get("layer_norm_elementwise_affine", True))
    tied = bool(config.get("tie_word_embeddings", True))
    norm = 2 * hidden if affine else 0
    projections = 2 * embedding * hidden if embedding != hidden else 0
    norms_first = bool(config.get("do_layer_norm_before", True))
    has_final_norm = norms_first and not config.get("_remove_final_layer_norm", False)
    return ModelShape(
        model_type="opt",
        family="opt",
        num_blocks=block_count(config),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=context,
        tied_embeddings=tied,
        embedding_size=embedding,
        linears=(
            linear("self_attn.k_proj", hidden, hidden),
            linear("self_attn.v_proj", hidden, hidden, shares_input=True),
            linear("self_attn.q_proj", hidden, hidden, shares_input=True),
            linear("self_attn.out_proj", hidden, hidden),
            linear("fc1", inner, hidden),
            linear("fc2", hidden, inner),
        ),
        # Norms that come after a block's parts also make the residual.
        scalable=(
            "self_attn.out_proj",
            *((*(f"self_attn.{name}_proj" for name in "qkv"), "fc1") if affine and norms_first else ()),
            *(("fc2",) if config.get("activation_function", "relu") == "relu" else ()),
        ),
        block_other_parameters=2 * norm + (5 * hidden + inner if bias else 0),
        # OPT's learned positions carry an offset of two rows.
        other_parameters=vocab * embedding * (1 if tied else 2)
        + (context + 2) * hidden
        + projections
        + (norm if has_final_norm else 0),
    )


def _gpt2(config: dict[str, Any]) -> ModelShape:
    hidden, vocab = size(config, "n_embd"), size(config, "vocab_size")
    inner = size(config, "n_inner", 4 * hidden)
    context = size(config, "n_positions", 1024)
    tied = bool(config.get("tie_word_embeddings", True))
    return ModelShape(
        model_type="gpt2",
        family="gpt2",
        num_blocks=block_count(config, "n_layer"),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=context,
        tied_embeddings=tied,
        linears=(
            linear("attn.c_attn", 3 * hidden, hidden),
            linear("attn.c_proj", hidden, hidden),
            linear("mlp.c_fc", inner, hidden),
            linear("mlp.c_proj", hidden, inner),
        ),
        scalable=("attn.c_attn", "attn.c_proj", "mlp.c_fc"),
        block_other_parameters=4 * hidden + 3 * hidden + hidden + inner + hidden,
        other_parameters=vocab * hidden * (1 if tied else 2) + context * hidden + 2 * hidden,
        numbered_blocks=bool(config.get("scale_attn_by_inverse_layer_idx", False)),
    )


def _gemma(config: dict[str, Any]) -> ModelShape:
    model_type = config["model_type"]
    if config.get("use_bidirectional_attention"):
        raise UnsupportedArchitecture(
            f"this {model_type} model attends to later tokens too, as encoders do (use_bidirectional_attention); Pare "
            "compresses models that predict the next token"
        )
    hidden, inner, vocab = (size(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    query, key_value, head_dim = attention_widths(config, hidden, kv_heads=4, head_dim=256)
    head_norms = 2 * head_dim if model_type == "gemma3_text" else 0
    attention_bias = bool(config.get("attention_bias", False))
    biases = (query + 2 * key_value + hidden) * attention_bias
    tied = bool(config.get("tie_word_embeddings", True))
    linears = attention_linears(hidden, query, key_value, bias=attention_bias) + gated_linears("mlp", hidden, inner)
    return ModelShape(
        model_type=model_type,
        family="gemma",
        num_blocks=block_count(config),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=size(config, "max_position_embeddings", 8192 if model_type == "gemma2" else 131072),
        tied_embeddings=tied,
        linears=linears,
        scalable=tuple(one.name for one in linears),
        kv_heads=key_value // head_dim,
        block_other_parameters=4 * hidden + head_norms + biases,
        other_parameters=vocab * hidden * (1 if tied else 2) + hidden,
        # gemma 2 caps its attention scores, which no fused kernel of transformers does.
        score_heads=query // head_dim if model_type == "gemma2" else 0,
    )


def _phi3(config: dict[str, Any]) -> ModelShape:
    hidden, inner, vocab = (size(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    query, key_value, _ = attention_widths(config, hidden)
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(
        model_type="phi3",
        family="phi3",
        num_blocks=block_count(config),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=size(config, "max_position_embeddings", 4096),
        tied_embeddings=tied,
        linears=(
            linear("self_attn.qkv_proj", query + 2 * key_value, hidden),
            linear("self_attn.o_proj", hidden, query),
            linear("mlp.gate_up_proj", 2 * inner, hidden),
            linear("mlp.down_proj", hidden, inner),
        ),
        scalable=("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        block_other_parameters=2 * hidden,
        other_parameters=vocab * hidden * (1 if tied else 2) + hidden,
    )


def _fused_linears(attention: str, hidden: int, fused: int, inner: int) -> tuple[LinearShape, ...]:
    """Queries, keys and values as the rows of one matrix, and a plain feed-forward part: GPT-NeoX and its relatives."""
    return (
        linear(f"{attention}.query_key_value", fused, hidden),
        linear(f"{attention}.dense", hidden, hidden),
        linear("mlp.dense_h_to_4h", inner, hidden),
        linear("mlp.dense_4h_to_h", hidden, inner),
    )


def _gpt_neox(config: dict[str, Any]) -> ModelShape:
    hidden, inner, vocab = (size(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    attention_biases = 4 * hidden if config.get("attention_bias", True) else 0
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(
        model_type="gpt_neox",
        family="gpt_neox",
        num_blocks=block_count(config),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=size(config, "max_position_embeddings", 2048),
        tied_embeddings=tied,
        linears=_fused_linears("attention", hidden, 3 * hidden, inner),
        scalable=("attention.query_key_value", "mlp.dense_h_to_4h"),
        block_other_parameters=4 * hidden + attention_biases + inner + hidden,
        other_parameters=vocab * hidden * (1 if tied else 2) + 2 * hidden,
    )


def _alias(config: dict[str, Any], *keys: str) -> str:
    """The first of several names of a field that the configuration has."""
    return next((key for key in keys if config.get(key) is not None), keys[0])


def _bloom(config: dict[str, Any]) -> ModelShape:
    hidden, vocab = size(config, _alias(config, "n_embed", "hidden_size")), size(config, "vocab_size")
    tied = bool(config.get("tie_word_embeddings", True))
    norms_make_residual = bool(config.get("apply_residual_connection_post_layernorm", False))
    return ModelShape(
        model_type="bloom",
        family="bloom",
        num_blocks=block_count(config, _alias(config, "n_layer", "num_hidden_layers")),
        hidden_size=hidden,
        vocab_size=vocab,
        # Positions are a bias that grows with distance; what bloom was trained on bounds what is worth measuring.
        context_length=size(config, "seq_length", 2048),
        tied_embeddings=tied,
        linears=_fused_linears("self_attention", hidden, 3 * hidden, 4 * hidden),
        scalable=() if norms_make_residual else ("self_attention.query_key_value", "mlp.dense_h_to_4h"),
        block_other_parameters=4 * hidden + 9 * hidden,
        other_parameters=vocab * hidden * (1 if tied else 2) + 4 * hidden,
        score_heads=size(config, _alias(config, "n_head", "num_attention_heads"), 8),
    )


def _falcon(config: dict[str, Any]) -> ModelShape:
    hidden, vocab = size(config, _alias(config, "n_embed", "hidden_size")), size(config, "vocab_size")
    heads = size(config, "num_attention_heads")
    inner = size(config, "ffn_hidden_size", 4 * hidden)
    new, parallel = (
        bool(config.get(key, key == "parallel_attn")) for key in ("new_decoder_architecture", "parallel_attn")
    )
    norms = size(config, "num_ln_in_parallel_attn", 2 if new else 1) if parallel else 2
    if (new and not parallel) or (not new and parallel and norms != 1) or norms not in (1, 2):
        # transformers builds such a model, and then fails in its forward.
        raise ValueError(
            "new_decoder_architecture, parallel_attn and num_ln_in_parallel_attn (they do not go together)"
        )
    head_dim = hidden // heads
    key_value_heads = size(config, "num_kv_heads", heads)
    if not new and not config.get("multi_query", True) and key_value_heads != heads:
        raise ValueError(
            f"num_kv_heads: {key_value_heads}, where without multi_query each of {heads} heads has its own"
        )
    key_value = head_dim if config.get("multi_query", True) else hidden
    if new:
        key_value = key_value_heads * head_dim
    fused = hidden + 2 * key_value
    biases = fused + hidden + inner + hidden if config.get("bias", False) else 0
    tied = bool(config.get("tie_word_embeddings", True))
    return ModelShape(
        model_type="falcon",
        family="falcon",
        num_blocks=block_count(config),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=size(config, "max_position_embeddings", 2048),
        tied_embeddings=tied,
        linears=_fused_linears("self_attention", hidden, fused, inner),
        # Only norms side by side make one input each.
        scalable=("self_attention.query_key_value", "mlp.dense_h_to_4h") if parallel and norms == 2 else (),
        block_other_parameters=norms * 2 * hidden + biases,
        other_parameters=vocab * hidden * (1 if tied else 2) + 2 * hidden,
        # The distance bias comes as a mask of every head.
        score_heads=heads if config.get("alibi") else 0,
    )


_READERS: dict[FamilyName, Callable[[dict[str, Any]], ModelShape]] = {
    "llama": _llama,
    "opt": _opt,
    "gpt2": _gpt2,
    "gemma": _gemma,
    "phi3": _phi3,
    "gpt_neox": _gpt_neox,
    "bloom": _bloom,
    "falcon": _falcon,
    "mixtral": mixture,
    "qwen2_moe": mixture,
    "qwen3_moe": mixture,
}

__all__ = [
    "BLOCK_PREFIXES",
    "MODEL_TYPES",
    "FamilyName",
    "LinearShape",
    "ModelShape",
    "UnsupportedArchitecture",
    "family_of",
    "shape_from_config",
    "stored_name",
]
