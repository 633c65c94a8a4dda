"""Sizes of mixtures of experts. Every expert's linears are counted and named one by one, as checkpoints keep them.

A router sends each token to `num_experts_per_tok` of a block's experts, so an expert's linears see that share of them.
"""

from typing import Any

from paredown.contracts.shapes import (
    FamilyName,
    LinearShape,
    ModelShape,
    UnsupportedArchitecture,
    attention_linears,
    attention_widths,
    block_count,
    gated_linears,
    size,
)

# A plan walks over every expert of every block; the largest released models have some 25 000.
_MAX_EXPERTS = 2**16
# What transformers takes where a config.json is silent, by model_type.
_EXPERTS = {"mixtral": 8, "qwen2_moe": 60, "qwen3_moe": 128, "olmoe": 64}
_EXPERTS_PER_TOKEN = {"mixtral": 2, "qwen2_moe": 4, "qwen3_moe": 8, "olmoe": 8}
_KV_HEADS = {"mixtral": 8, "qwen2_moe": 16, "qwen3_moe": 4}
_CONTEXT = {"mixtral": 131072, "qwen2_moe": 32768, "qwen3_moe": 32768, "olmoe": 4096}
_MIXTRAL_NAMES = ("w1", "w3", "w2")


def num_experts(config: dict[str, Any]) -> int:
    """Experts of one block; the field has two names."""
    key = "num_experts" if config.get("num_experts") is not None else "num_local_experts"
    return size(config, key, _EXPERTS[config["model_type"]], limit=_MAX_EXPERTS + 1)


def mixture(config: dict[str, Any]) -> ModelShape:
    """mixtral, qwen2_moe, qwen3_moe and olmoe."""
    model_type = config["model_type"]
    hidden, vocab = size(config, "hidden_size"), size(config, "vocab_size")
    blocks, experts = block_count(config), num_experts(config)
    if blocks * experts > _MAX_EXPERTS:
        raise ValueError(f"num_experts ({blocks} blocks of {experts} experts)")
    if config.get("mlp_only_layers") or size(config, "decoder_sparse_step", 1) != 1:
        raise UnsupportedArchitecture(
            f"this {model_type} model has blocks without experts between the others (mlp_only_layers, "
            "decoder_sparse_step), and this release takes models whose blocks are alike"
        )
    query, key_value, head_dim = attention_widths(config, hidden, kv_heads=_KV_HEADS.get(model_type))
    tied = bool(config.get("tie_word_embeddings", False))
    norms, biases = 2 * hidden, 0
    match model_type:
        case "qwen2_moe":
            biases = query + 2 * key_value if config.get("qkv_bias", True) else 0
        case "qwen3_moe" | "olmoe":
            norms += 2 * head_dim if model_type == "qwen3_moe" else hidden + key_value
            biases = query + 2 * key_value + hidden if config.get("attention_bias") else 0
    shared = _shared_expert(config, hidden)
    linears = attention_linears(hidden, query, key_value) + shared + _expert_linears(config, hidden, experts)
    # The norm before the experts makes the router's input too; olmoe may clip values, which a scale does not pass.
    scalable = [one.name for one in linears if one.name.endswith(("q_proj", "k_proj", "v_proj", "down_proj", ".w2"))]
    if config.get("clip_qkv") is None:
        scalable.append("self_attn.o_proj")
    return ModelShape(
        model_type=model_type,
        family=_FAMILIES[model_type],
        num_blocks=blocks,
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=size(config, "max_position_embeddings", _CONTEXT[model_type]),
        tied_embeddings=tied,
        linears=linears,
        scalable=tuple(scalable),
        # The router, and the gate of a shared expert, are a few rows that decide much; they stay as they are.
        block_other_parameters=norms + biases + experts * hidden + (hidden if shared else 0),
        other_parameters=vocab * hidden * (1 if tied else 2) + hidden,
    )


_FAMILIES: dict[str, FamilyName] = {
    "mixtral": "mixtral",
    "qwen2_moe": "qwen2_moe",
    "qwen3_moe": "qwen3_moe",
    "olmoe": "qwen3_moe",
}


def _shared_expert(config: dict[str, Any], hidden: int) -> tuple[LinearShape, ...]:
    """The expert that every token goes through."""
    if config["model_type"] != "qwen2_moe":
        return ()
    return gated_linears("mlp.shared_expert", hidden, size(config, "shared_expert_intermediate_size", 5632))


def _expert_linears(config: dict[str, Any], hidden: int, experts: int) -> tuple[LinearShape, ...]:
    model_type = config["model_type"]
    used = size(config, "num_experts_per_tok", _EXPERTS_PER_TOKEN[model_type])
    if used > experts:
        raise ValueError(f"num_experts_per_tok ({used} of {experts} experts)")
    if model_type in ("qwen2_moe", "qwen3_moe"):
        inner = size(config, "moe_intermediate_size", 1408 if model_type == "qwen2_moe" else 768)
    else:
        inner = size(config, "intermediate_size")
    names = _MIXTRAL_NAMES if model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    return tuple(
        linear
        for expert in range(experts)
        for linear in gated_linears(f"mlp.experts.{expert}", hidden, inner, names, used / experts)
    )
