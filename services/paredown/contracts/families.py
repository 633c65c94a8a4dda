"""What a model's `config.json` says of its shape, without torch: families, linear layers, parameters.

The engine knows where a family keeps its modules (engine/architectures.py); this file knows only sizes, for plans and
for refusing a recipe before it is queued. Tests hold the two together.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FamilyName = Literal["llama", "opt", "gpt2"]

# transformers' `model_type` → family. Members of a family share names and shapes up to biases and head norms.
MODEL_TYPES: dict[str, FamilyName] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "opt": "opt",
    "gpt2": "gpt2",
}

# Where transformers keeps block k of a family: its linears are f"{prefix}{k}.{name}", which `skip` patterns match.
BLOCK_PREFIXES: dict[FamilyName, str] = {
    "llama": "model.layers.",
    "opt": "model.decoder.layers.",
    "gpt2": "transformer.h.",
}

# What transformers takes where a config.json is silent, by model_type.
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_CONTEXT = {"mistral": 131072, "qwen2": 32768, "qwen3": 32768}


class UnsupportedArchitecture(ValueError):
    """The configuration is not of a model that Pare can compress."""


class LinearShape(BaseModel):
    """One linear layer of every block: `weight_OI` is (out_features, in_features)."""

    model_config = ConfigDict(frozen=True)

    name: str
    out_features: int
    in_features: int
    # Reads the same input as the linear before it, and so shares its statistics.
    shares_input: bool = False

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features


class ModelShape(BaseModel):
    """Sizes of a decoder-only model."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_type: str
    family: FamilyName
    num_blocks: int
    hidden_size: int
    vocab_size: int
    context_length: int
    tied_embeddings: bool
    linears: tuple[LinearShape, ...]
    # Embeddings, positions, norms, biases, head: all that no method of this release touches.
    other_parameters: int
    # Parameters of one block that are not in `linears` (norms, biases).
    block_other_parameters: int
    # A block's number enters what it computes, so no other can take its place.
    numbered_blocks: bool = False

    @property
    def linear_parameters(self) -> int:
        return self.num_blocks * sum(linear.weights for linear in self.linears)

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.num_blocks * self.block_other_parameters + self.other_parameters

    def named_linears(self) -> Iterator[tuple[str, LinearShape]]:
        """Every linear layer of every block under transformers' name, in the order of the model."""
        for block in range(self.num_blocks):
            for linear in self.linears:
                yield f"{BLOCK_PREFIXES[self.family]}{block}.{linear.name}", linear

    def block_linears(self) -> list[list[str]]:
        """The full names of each block's linear layers."""
        names = [name for name, _ in self.named_linears()]
        return [names[start : start + len(self.linears)] for start in range(0, len(names), len(self.linears))]

    def without_blocks(self, count: int) -> "ModelShape":
        """The shape of what is left when so many blocks are dropped."""
        return self.model_copy(update={"num_blocks": self.num_blocks - count})

    @property
    def base_bytes(self) -> int:
        """Parameters × 2, whatever the container: every size ratio is against this."""
        return 2 * self.parameters


def shape_from_config(config: dict[str, Any]) -> ModelShape:
    """Read a `config.json`. Raises UnsupportedArchitecture with a sentence for the user."""
    model_type = config.get("model_type")
    family = MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedArchitecture(
            f"model_type {model_type!r} is not supported; this release takes {', '.join(sorted(MODEL_TYPES))}"
        )
    try:
        return _READERS[family](config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedArchitecture(f"config.json of this {model_type} model lacks or garbles {error}") from error


# No released model is near this deep; a plan walks over every block, so a hostile count must not reach it.
_MAX_BLOCKS = 4096


def _size(config: dict[str, Any], key: str, default: int | None = None, limit: int = 2**31) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < limit:
        raise ValueError(f"{key} (found {value!r})")
    return value


def _llama(config: dict[str, Any]) -> ModelShape:
    model_type = config["model_type"]
    hidden, inner, vocab = (_size(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    heads = _size(config, "num_attention_heads")
    # Mistral, qwen2 and qwen3 fill a missing count with a fixed number; an explicit null means "as many as heads".
    kv_default = heads if "num_key_value_heads" in config else _KV_HEADS.get(model_type, heads)
    kv_heads = _size(config, "num_key_value_heads", kv_default)
    head_dim = _size(config, "head_dim", 128 if model_type == "qwen3" else hidden // heads)
    if heads % kv_heads:
        raise ValueError(f"num_attention_heads: {heads} heads cannot share {kv_heads} key-value heads")
    query, key_value = heads * head_dim, kv_heads * head_dim
    # llama and qwen3 write the switch down; qwen2 always has biases on q, k and v; mistral never has any.
    attention_bias = bool(config.get("attention_bias", False)) and model_type in ("llama", "qwen3")
    norms = 2 * hidden + (2 * head_dim if model_type == "qwen3" else 0)
    biases = (query + 2 * key_value if attention_bias or model_type == "qwen2" else 0) + hidden * attention_bias
    if config.get("mlp_bias") and model_type == "llama":
        biases += 2 * inner + hidden
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(
        model_type=model_type,
        family="llama",
        num_blocks=_size(config, "num_hidden_layers", limit=_MAX_BLOCKS),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=_size(config, "max_position_embeddings", _CONTEXT.get(model_type, 2048)),
        tied_embeddings=tied,
        linears=(
            LinearShape(name="self_attn.q_proj", out_features=query, in_features=hidden),
            LinearShape(name="self_attn.k_proj", out_features=key_value, in_features=hidden, shares_input=True),
            LinearShape(name="self_attn.v_proj", out_features=key_value, in_features=hidden, shares_input=True),
            LinearShape(name="self_attn.o_proj", out_features=hidden, in_features=query),
            LinearShape(name="mlp.gate_proj", out_features=inner, in_features=hidden),
            LinearShape(name="mlp.up_proj", out_features=inner, in_features=hidden, shares_input=True),
            LinearShape(name="mlp.down_proj", out_features=hidden, in_features=inner),
        ),
        block_other_parameters=norms + biases,
        other_parameters=vocab * hidden * (1 if tied else 2) + hidden,
    )


def _opt(config: dict[str, Any]) -> ModelShape:
    hidden, inner, vocab = (_size(config, key) for key in ("hidden_size", "ffn_dim", "vocab_size"))
    context = _size(config, "max_position_embeddings", 2048)
    embedding = _size(config, "word_embed_proj_dim", hidden)
    bias = bool(config.get("enable_bias", True))
    affine = bool(config.get("layer_norm_elementwise_affine", True))
    tied = bool(config.get("tie_word_embeddings", True))
    norm = 2 * hidden if affine else 0
    projections = 2 * embedding * hidden if embedding != hidden else 0
    has_final_norm = bool(config.get("do_layer_norm_before", True)) and not config.get(
        "_remove_final_layer_norm", False
    )
    return ModelShape(
        model_type="opt",
        family="opt",
        num_blocks=_size(config, "num_hidden_layers", limit=_MAX_BLOCKS),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=context,
        tied_embeddings=tied,
        linears=(
            LinearShape(name="self_attn.k_proj", out_features=hidden, in_features=hidden),
            LinearShape(name="self_attn.v_proj", out_features=hidden, in_features=hidden, shares_input=True),
            LinearShape(name="self_attn.q_proj", out_features=hidden, in_features=hidden, shares_input=True),
            LinearShape(name="self_attn.out_proj", out_features=hidden, in_features=hidden),
            LinearShape(name="fc1", out_features=inner, in_features=hidden),
            LinearShape(name="fc2", out_features=hidden, in_features=inner),
        ),
        block_other_parameters=2 * norm + (5 * hidden + inner if bias else 0),
        # OPT's learned positions carry an offset of two rows.
        other_parameters=vocab * embedding * (1 if tied else 2)
        + (context + 2) * hidden
        + projections
        + (norm if has_final_norm else 0),
    )


def _gpt2(config: dict[str, Any]) -> ModelShape:
    hidden, vocab = _size(config, "n_embd"), _size(config, "vocab_size")
    inner = _size(config, "n_inner", 4 * hidden)
    context = _size(config, "n_positions", 1024)
    tied = bool(config.get("tie_word_embeddings", True))
    return ModelShape(
        model_type="gpt2",
        family="gpt2",
        num_blocks=_size(config, "n_layer", limit=_MAX_BLOCKS),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=context,
        tied_embeddings=tied,
        linears=(
            LinearShape(name="attn.c_attn", out_features=3 * hidden, in_features=hidden),
            LinearShape(name="attn.c_proj", out_features=hidden, in_features=hidden),
            LinearShape(name="mlp.c_fc", out_features=inner, in_features=hidden),
            LinearShape(name="mlp.c_proj", out_features=hidden, in_features=inner),
        ),
        block_other_parameters=4 * hidden + 3 * hidden + hidden + inner + hidden,
        other_parameters=vocab * hidden * (1 if tied else 2) + context * hidden + 2 * hidden,
        numbered_blocks=bool(config.get("scale_attn_by_inverse_layer_idx", False)),
    )


_READERS = {"llama": _llama, "opt": _opt, "gpt2": _gpt2}
