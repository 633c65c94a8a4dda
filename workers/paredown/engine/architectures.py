"""Where each family of models keeps its blocks and linears, and a model without weights to run them in.

Pure data and small verbs: no method and no stream knows a family's inside. `contracts.families` knows the same layers
by their sizes only; tests hold the two together.
Shapes: O out_features, I in_features.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from paredown.contracts.families import FamilyName, UnsupportedArchitecture, family_of, stored_name
from paredown.contracts.mixtures import num_experts
from paredown.engine.errors import ArchitectureUnsupported
from paredown.engine.experts import ExpertNames, UnfoldedExperts
from paredown.engine.shuffle import Exchange
from paredown.engine.wide import widen_linears


@dataclass(frozen=True)
class Producer:
    """What makes the input of a group, channel by channel: a scale or an order of its channels can be moved there.

    A norm whose output goes nowhere else; or the rows of a linear with no step between them and the group that mixes
    channels, the last rows where it has more of them (a fused one).
    """

    name: str
    # Linears whose rows are multiplied, through a function, with these: they follow an order, but take no scale. One of
    # the same name is fused with them, and its rows lie before.
    gates: tuple[str, ...] = ()
    # The rows are attention's values: in grouped-query attention several heads, and so several channels, read one row.
    values: bool = False
    # Whether a scale passes what lies between, and a field of the configuration with the value without which none does.
    scalable: bool = True
    when: tuple[str, Any] | None = None
    # Of a norm, what is added to its weight before it multiplies.
    offset: float = 0.0

    def rows(self, config: Any, num_rows: int, num_channels: int) -> Tensor:
        """The row that each input channel of the group reads."""
        blocks, repeats = self.parts(config)
        rows = torch.arange(num_channels // repeats).view(blocks, 1, -1)
        return rows.expand(-1, repeats, -1).flatten() + (num_rows - rows.numel())

    def parts(self, config: Any) -> tuple[int, int]:
        """Equal parts of the rows between which no channel may move, and how often the input repeats each of them."""
        if not self.values:
            return 1, 1
        heads = config.num_attention_heads
        blocks = getattr(config, "num_key_value_heads", None) or heads
        return blocks, heads // blocks


@dataclass(frozen=True)
class Architecture:
    """A family. Names are transformers'; `groups` are the block's linears in order of execution, and the linears of one
    group read the same input."""

    base: str
    blocks: str
    groups: tuple[tuple[str, ...], ...]
    # By the first linear of the group whose input it makes; a group that is not here has none.
    producers: Mapping[str, Producer] = field(default_factory=dict)
    # transformers' Conv1D keeps weight_IO; everything in the engine sees weight_OI.
    transposed: bool = False
    # A block returns (hidden states, attention scores).
    returns_tuple: bool = False
    # Of a mixture: `architecture_of` adds the experts' linears, which follow all others, to what is written above.
    experts: ExpertNames | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group)

    def oriented(self, weight: Tensor) -> Tensor:
        """transformers' orientation → weight_OI, and back: a view."""
        return weight.T if self.transposed else weight


_ATTENTION = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
_GATED = (("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
_VALUES = Producer("self_attn.v_proj", values=True)
_LLAMA = {
    "self_attn.q_proj": Producer("input_layernorm"),
    "self_attn.o_proj": _VALUES,
    "mlp.gate_proj": Producer("post_attention_layernorm"),
    "mlp.down_proj": Producer("mlp.up_proj", gates=("mlp.gate_proj",)),
}
# The norm before a mixture's experts makes the router's input too.
_MIXTURE = {"self_attn.q_proj": Producer("input_layernorm"), "self_attn.o_proj": _VALUES}


def _fused(attention: str) -> tuple[tuple[str, ...], ...]:
    """GPT-NeoX and its relatives. Where attention and feed-forward part run side by side, they still run in this order,
    and whether they read the same tensor depends on the configuration; so each has its own statistics."""
    return (
        (f"{attention}.query_key_value",),
        (f"{attention}.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    )


def _fused_producers(attention: str, before_attention: Producer, before_mlp: Producer) -> dict[str, Producer]:
    """Their query_key_value mostly holds each head's queries, keys and values next to each other, so that values cannot
    follow by themselves; between the linears of the feed-forward part lies a function that a scale does not pass."""
    return {
        f"{attention}.query_key_value": before_attention,
        "mlp.dense_h_to_4h": before_mlp,
        "mlp.dense_4h_to_h": Producer("mlp.dense_h_to_4h", scalable=False),
    }


ARCHITECTURES: dict[FamilyName, Architecture] = {
    "llama": Architecture(base="model", blocks="model.layers", groups=_ATTENTION + _GATED, producers=_LLAMA),
    "gemma": Architecture(
        base="model",
        blocks="model.layers",
        groups=_ATTENTION + _GATED,
        producers={
            **_LLAMA,
            "self_attn.q_proj": Producer("input_layernorm", offset=1.0),
            "mlp.gate_proj": Producer("pre_feedforward_layernorm", offset=1.0),
        },
    ),
    "phi3": Architecture(
        base="model",
        blocks="model.layers",
        groups=(("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)),
        producers={
            "self_attn.qkv_proj": Producer("input_layernorm"),
            "self_attn.o_proj": Producer("self_attn.qkv_proj", values=True),
            "mlp.gate_up_proj": Producer("post_attention_layernorm"),
            "mlp.down_proj": Producer("mlp.gate_up_proj", gates=("mlp.gate_up_proj",)),
        },
    ),
    "opt": Architecture(
        base="model",
        blocks="model.decoder.layers",
        groups=(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.out_proj",),
            ("fc1",),
            ("fc2",),
        ),
        # Where the norms come after the blocks' parts, their output is also the residual.
        producers={
            "self_attn.q_proj": Producer("self_attn_layer_norm", when=("do_layer_norm_before", True)),
            "self_attn.out_proj": _VALUES,
            "fc1": Producer("final_layer_norm", when=("do_layer_norm_before", True)),
            "fc2": Producer("fc1", when=("activation_function", "relu")),
        },
    ),
    "gpt2": Architecture(
        base="transformer",
        blocks="transformer.h",
        groups=(("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
        producers={
            "attn.c_attn": Producer("ln_1"),
            "attn.c_proj": Producer("attn.c_attn", values=True),
            "mlp.c_fc": Producer("ln_2"),
            # A scale does not pass the function that lies between.
            "mlp.c_proj": Producer("mlp.c_fc", scalable=False),
        },
        transposed=True,
    ),
    "gpt_neox": Architecture(
        base="gpt_neox",
        blocks="gpt_neox.layers",
        groups=_fused("attention"),
        producers=_fused_producers("attention", Producer("input_layernorm"), Producer("post_attention_layernorm")),
    ),
    "bloom": Architecture(
        base="transformer",
        blocks="transformer.h",
        groups=_fused("self_attention"),
        producers=_fused_producers(
            "self_attention",
            Producer("input_layernorm", when=("apply_residual_connection_post_layernorm", False)),
            Producer("post_attention_layernorm", when=("apply_residual_connection_post_layernorm", False)),
        ),
        returns_tuple=True,
    ),
    "falcon": Architecture(
        base="transformer",
        blocks="transformer.h",
        groups=_fused("self_attention"),
        # Only where attention and feed-forward part have a norm each, side by side.
        producers=_fused_producers("self_attention", Producer("ln_attn"), Producer("ln_mlp")),
        returns_tuple=True,
    ),
    "mixtral": Architecture(
        base="model",
        blocks="model.layers",
        groups=_ATTENTION,
        producers=_MIXTURE,
        experts=ExpertNames(gate="w1", up="w3", down="w2"),
    ),
    "qwen2_moe": Architecture(
        base="model",
        blocks="model.layers",
        groups=(
            *_ATTENTION,
            ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
            ("mlp.shared_expert.down_proj",),
        ),
        producers={
            **_MIXTURE,
            "mlp.shared_expert.down_proj": Producer(
                "mlp.shared_expert.up_proj", gates=("mlp.shared_expert.gate_proj",)
            ),
        },
        experts=ExpertNames(),
    ),
    "qwen3_moe": Architecture(
        base="model",
        blocks="model.layers",
        groups=_ATTENTION,
        # olmoe may clip values, which a scale does not pass.
        producers={**_MIXTURE, "self_attn.o_proj": replace(_VALUES, when=("clip_qkv", None))},
        experts=ExpertNames(),
    ),
}


def architecture_of(config: Any) -> Architecture:
    """The family of a transformers configuration. Raises ArchitectureUnsupported."""
    architecture = ARCHITECTURES[_family_of(config)]
    if architecture.experts is None:
        return architecture
    groups = architecture.experts.groups(num_experts(config.to_dict()))
    # Of an expert's two groups, gate and up make what down reads.
    makers = {down: Producer(up, gates=(gate,)) for (gate, up), (down,) in zip(groups[::2], groups[1::2], strict=True)}
    return replace(architecture, groups=architecture.groups + groups, producers={**architecture.producers, **makers})


def _family_of(config: Any) -> FamilyName:
    try:
        return family_of(config.model_type)
    except UnsupportedArchitecture as error:
        raise ArchitectureUnsupported(f"{error}.", field="model") from error


def _calling_linears(config: Any) -> Any:
    """The configuration without Bloom's wish to multiply slices of a linear in turn, past the linear itself and whoever
    watches it; the sum is the same."""
    if not getattr(config, "slow_but_exact", False):
        return config
    whole = copy.deepcopy(config)
    whole.slow_but_exact = False
    return whole


class Skeleton:
    """A transformers model on the meta device: buffers are real, parameters come and go."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        self.architecture = architecture_of(config)
        self.config = config
        self.dtype = dtype
        self.hidden_size = int(config.hidden_size)
        # Rotary tables and such are computed at construction and are in no file, so buffers are built for real. To
        # draw random weights takes longer than all else, even where there is no memory to draw them into.
        with init_empty_weights(include_buffers=False), no_init_weights():
            # Whatever config.json asks for, transformers' own choice for the family: sdpa, or eager where it must be.
            self.model: nn.Module = AutoModelForCausalLM.from_config(
                _calling_linears(config), dtype=dtype, attn_implementation=None
            )
            blocks = self.model.get_submodule(self.architecture.blocks)
            assert isinstance(blocks, nn.ModuleList)
            self.blocks = blocks
            if names := self.architecture.experts:
                for block in blocks:
                    block.set_submodule(names.module, UnfoldedExperts(block.get_submodule(names.module), names))
        widen_linears(self.model, dtype)
        self.model.tie_weights()
        self.model.eval()

    @property
    def base(self) -> nn.Module:
        """The model without its head."""
        return self.model.get_submodule(self.architecture.base)

    @property
    def head(self) -> nn.Module:
        return self.model.get_submodule("lm_head")

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of the base model's output, in float32."""
        logits: Tensor = self.head(hidden).float()
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def block_prefix(self, index: int) -> str:
        return f"{self.architecture.blocks}.{index}."

    def parameter_shapes(self) -> dict[str, torch.Size]:
        """Every parameter, tied ones once, under transformers' name."""
        return {name: parameter.shape for name, parameter in self.model.named_parameters()}

    def stored_name(self, name: str) -> str:
        """A parameter's name in checkpoints, where transformers changes it while it loads them."""
        return stored_name(_family_of(self.config), name)

    def outer_names(self) -> list[str]:
        """Parameters outside the blocks: embeddings, final norm, head."""
        return [name for name in self.parameter_shapes() if not name.startswith(f"{self.architecture.blocks}.")]

    def embedding_names(self) -> list[str]:
        """Parameters of the input embeddings and the head; tied ones once."""
        model: Any = self.model
        tables = {id(module.weight) for module in (model.get_input_embeddings(), self.head)}
        return [name for name in self.outer_names() if id(self.model.get_parameter(name)) in tables]

    def head_names(self) -> list[str]:
        """Parameters of the head; where it is tied, the embedding's."""
        own = {id(parameter) for parameter in self.head.parameters()}
        return [name for name in self.outer_names() if id(self.model.get_parameter(name)) in own]

    def block_names(self, index: int) -> list[str]:
        """Parameters of one block."""
        prefix = self.block_prefix(index)
        return [prefix + name for name, _ in self.blocks[index].named_parameters()]

    def groups(self, index: int) -> list[list[str]]:
        """The block's linears, those together that read the same input, in order of execution."""
        prefix = self.block_prefix(index)
        return [[prefix + name for name in group] for group in self.architecture.groups]

    def linear_names(self, index: int) -> list[str]:
        """The block's linears, without `.weight`."""
        return [self.block_prefix(index) + name for name in self.architecture.linears]

    def exchange(self, index: int, name: str) -> Exchange | None:
        """Which input channels of a linear may change places; `name` is the architecture's, without the block."""
        producer = self.architecture.producers.get(name)
        if producer is None or producer.name not in self.architecture.linears:
            return None
        prefix = self.block_prefix(index)
        blocks, repeats = producer.parts(self.config)
        rows = self.shape_OI(prefix + name)[1] // repeats
        makers = (*producer.gates, producer.name)
        return Exchange(
            blocks,
            repeats,
            tuple(
                (prefix + maker, self.shape_OI(prefix + maker)[0] - rows * makers[position:].count(maker))
                for position, maker in enumerate(makers)
            ),
        )

    def shape_OI(self, name: str) -> tuple[int, int]:
        """out_features and in_features of a linear."""
        first, second = self.model.get_parameter(f"{name}.weight").shape
        return (second, first) if self.architecture.transposed else (first, second)

    def producer(self, group: int) -> Producer | None:
        """What makes the input of a group of linears and can take a scale, in this configuration."""
        producer = self.architecture.producers.get(self.architecture.groups[group][0])
        if producer is None or not producer.scalable:
            return None
        if producer.when and getattr(self.config, producer.when[0], producer.when[1]) != producer.when[1]:
            return None
        # A norm may have no weight at all.
        parameters = {name for name, _ in self.blocks[0].named_parameters()}
        return producer if f"{producer.name}.weight" in parameters else None

    def all_linear_names(self) -> Iterator[str]:
        for index in range(self.num_blocks):
            yield from self.linear_names(index)

    def put(self, name: str, value: Tensor) -> None:
        """Give a parameter its value; the tensor is not copied."""
        module_name, _, leaf = name.rpartition(".")
        old = self.model.get_parameter(name)
        assert old.shape == value.shape, f"{name} is {tuple(value.shape)}, not {tuple(old.shape)}"
        new = nn.Parameter(value, requires_grad=False)
        if old.is_meta and self._is_tied(name):
            self._replace(old, new)
        self.model.get_submodule(module_name)._parameters[leaf] = new

    def put_from(self, read: Callable[[str], Tensor], names: Iterable[str], device: torch.device) -> None:
        """Give parameters their values in the forward dtype."""
        for name in names:
            self.put(name, read(name).to(device=device, dtype=self.dtype))

    def load_outer(
        self, read: Callable[[str], Tensor], device: torch.device, storage_dtype: torch.dtype | None = None
    ) -> None:
        """Embeddings, final norm and head onto the device; rounded to `storage_dtype` first where one is given."""
        self.put_from(
            lambda name: read(name).to(storage_dtype) if storage_dtype else read(name), self.outer_names(), device
        )
        for module in self.model.modules():
            for leaf, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[leaf] = buffer.to(device)

    def release_block(self, index: int) -> None:
        """Forget a block's weights."""
        for module in self.blocks[index].modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[leaf] = nn.Parameter(torch.empty_like(parameter, device="meta"), False)

    def release_outer(self) -> None:
        """Forget what lies outside the blocks, once the embeddings have run."""
        for name in self.outer_names():
            old = self.model.get_parameter(name)
            self._replace(old, nn.Parameter(torch.empty_like(old, device="meta"), requires_grad=False))

    def _replace(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """In every module that has it: tied parameters stay tied."""
        for module in self.model.modules():
            for leaf, parameter in module._parameters.items():
                if parameter is old:
                    module._parameters[leaf] = new

    def _is_tied(self, name: str) -> bool:
        return not name.startswith(f"{self.architecture.blocks}.")
