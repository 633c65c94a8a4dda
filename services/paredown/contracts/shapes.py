"""Sizes of a decoder-only model: its blocks, their linear layers, and how many parameters are in none of them."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FamilyName = Literal[
    "llama",
    "opt",
    "gpt2",
    "gemma",
    "phi3",
    "gpt_neox",
    "bloom",
    "falcon",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
]

# Where transformers keeps block k of a family: its linears are f"{prefix}{k}.{name}", which `skip` patterns match.
BLOCK_PREFIXES: dict[FamilyName, str] = {
    "llama": "model.layers.",
    "opt": "model.decoder.layers.",
    "gpt2": "transformer.h.",
    "gemma": "model.layers.",
    "phi3": "model.layers.",
    "gpt_neox": "gpt_neox.layers.",
    "bloom": "transformer.h.",
    "falcon": "transformer.h.",
    "mixtral": "model.layers.",
    "qwen2_moe": "model.layers.",
    "qwen3_moe": "model.layers.",
}

# Parts of names that transformers changes while it loads a checkpoint: (transformers', the checkpoint's).
_RENAMED: dict[FamilyName, tuple[tuple[str, str], ...]] = {
    "gpt_neox": (("lm_head.", "embed_out."),),
    "mixtral": ((".mlp.", ".block_sparse_moe."),),
}


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
    # Has a bias, noted where rows can be cut; it is counted in `block_other_parameters`.
    bias: bool = False
    # Share of the tokens that reach it: below 1 for a mixture's experts.
    share: float = 1.0

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features

    @property
    def of_expert(self) -> bool:
        """Whether a router decides which tokens it sees."""
        return ".experts." in self.name


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
    # Width of the embeddings where it is not the model's.
    embedding_size: int | None = None
    linears: tuple[LinearShape, ...]
    # Linears whose input comes from something that can take a scale of it.
    scalable: tuple[str, ...] = ()
    # Embeddings, positions, norms, biases, head: all that no method of this release touches.
    other_parameters: int
    # Parameters of one block that are not in `linears` (norms, biases).
    block_other_parameters: int
    # A block's number enters what it computes, so no other can take its place.
    numbered_blocks: bool = False
    # Heads whose scores of every pair of tokens lie in memory, where the family's attention is not one fused kernel.
    score_heads: int = 0
    # Key-value heads, where heads and the channels of a gated MLP can be cut; else 0.
    kv_heads: int = 0

    @property
    def query_heads(self) -> int:
        """Heads that read, where `kv_heads` is known."""
        rows = {linear.name.rpartition(".")[2]: linear.out_features for linear in self.linears}
        return rows["q_proj"] * self.kv_heads // rows["k_proj"]

    @property
    def has_experts(self) -> bool:
        """Whether a router sends each token to some of many experts."""
        return any(linear.of_expert for linear in self.linears)

    @property
    def linear_parameters(self) -> int:
        return self.num_blocks * sum(linear.weights for linear in self.linears)

    @property
    def active_parameters(self) -> float:
        """Of `linear_parameters`, those that one token goes through."""
        return self.num_blocks * sum(linear.weights * linear.share for linear in self.linears)

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.num_blocks * self.block_other_parameters + self.other_parameters

    @property
    def embedding_parameters(self) -> int:
        """Of the input embeddings and the head, tied ones once; part of `other_parameters`."""
        return self.vocab_size * (self.embedding_size or self.hidden_size) * (1 if self.tied_embeddings else 2)

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
    def mlp_channels(self) -> int:
        """Channels of the gated MLP; 0 where there is none."""
        return next((linear.out_features for linear in self.linears if linear.name == "mlp.gate_proj"), 0)

    def narrowed(self, channels: int, kv_heads: int) -> "ModelShape":
        """The shape with so many MLP channels and key-value heads left in every block."""

        def narrower(linear: LinearShape) -> LinearShape:
            rows, columns = linear.out_features, linear.in_features
            match linear.name.rpartition(".")[2]:
                case "q_proj" | "k_proj" | "v_proj":
                    rows = rows // self.kv_heads * kv_heads
                case "o_proj":
                    columns = columns // self.kv_heads * kv_heads
                case "gate_proj" | "up_proj":
                    rows = channels
                case "down_proj":
                    columns = channels
            return linear.model_copy(update={"out_features": rows, "in_features": columns})

        linears = tuple(narrower(linear) for linear in self.linears)
        pairs = zip(self.linears, linears, strict=True)
        biases = sum(old.out_features - new.out_features for old, new in pairs if old.bias)
        return self.model_copy(
            update={
                "linears": linears,
                "kv_heads": kv_heads,
                "score_heads": self.score_heads // self.kv_heads * kv_heads,
                "block_other_parameters": self.block_other_parameters - biases,
            }
        )

    @property
    def base_bytes(self) -> int:
        """Parameters × 2, whatever the container: every size ratio is against this."""
        return 2 * self.parameters


def stored_name(family: FamilyName, name: str) -> str:
    """transformers' name of a parameter → its name in checkpoints."""
    for ours, stored in _RENAMED.get(family, ()):
        name = name.replace(ours, stored, 1)
    return name


# No released model is near this deep; a plan walks over every block, so a hostile count must not reach it.
_MAX_BLOCKS = 4096


def size(config: dict[str, Any], key: str, default: int | None = None, limit: int = 2**31) -> int:
    """A positive number of a configuration. Raises ValueError that names the field."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < limit:
        raise ValueError(f"{key} (found {value!r})")
    return value


def block_count(config: dict[str, Any], key: str = "num_hidden_layers") -> int:
    return size(config, key, limit=_MAX_BLOCKS)


def linear(
    name: str,
    out_features: int,
    in_features: int,
    *,
    shares_input: bool = False,
    bias: bool = False,
    share: float = 1.0,
) -> LinearShape:
    return LinearShape(
        name=name,
        out_features=out_features,
        in_features=in_features,
        shares_input=shares_input,
        bias=bias,
        share=share,
    )


def attention_widths(
    config: dict[str, Any], hidden: int, *, kv_heads: int | None = None, head_dim: int | None = None
) -> tuple[int, int, int]:
    """(queries, keys, of one head): channels. `kv_heads` and `head_dim` stand in where the configuration is silent.

    An explicit null for the count of key-value heads means "as many as heads".
    """
    heads = size(config, "num_attention_heads")
    kv_default = heads if kv_heads is None or "num_key_value_heads" in config else kv_heads
    key_value_heads = size(config, "num_key_value_heads", kv_default)
    if heads % key_value_heads:
        raise ValueError(f"num_attention_heads: {heads} heads cannot share {key_value_heads} key-value heads")
    width = size(config, "head_dim", head_dim or hidden // heads)
    return heads * width, key_value_heads * width, width


def attention_linears(hidden: int, query: int, key_value: int, *, bias: bool = False) -> tuple[LinearShape, ...]:
    """Queries, keys, values and output as most families keep them; `bias` is of the first three."""
    return (
        linear("self_attn.q_proj", query, hidden, bias=bias),
        linear("self_attn.k_proj", key_value, hidden, shares_input=True, bias=bias),
        linear("self_attn.v_proj", key_value, hidden, shares_input=True, bias=bias),
        linear("self_attn.o_proj", hidden, query),
    )


def gated_linears(
    prefix: str,
    hidden: int,
    inner: int,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    share: float = 1.0,
    *,
    bias: bool = False,
) -> tuple[LinearShape, ...]:
    """A gated feed-forward part: gate and up read the same input; `bias` is of these two."""
    gate, up, down = names
    return (
        linear(f"{prefix}.{gate}", inner, hidden, bias=bias, share=share),
        linear(f"{prefix}.{up}", inner, hidden, shares_input=True, bias=bias, share=share),
        linear(f"{prefix}.{down}", hidden, inner, share=share),
    )
