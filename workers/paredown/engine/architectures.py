"""Where each family of models keeps its blocks and linears, and a model without weights to run them in.

Pure data and small verbs: no method and no stream knows a family's inside. `contracts.families` knows the same layers
by their sizes only; tests hold the two together.
Shapes: O out_features, I in_features.
"""

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


@dataclass(frozen=True)
class Architecture:
    """A family. Names are transformers'; `groups` are the block's linears in order of execution, and the linears of one
    group read the same input."""

    base: str
    blocks: str
    groups: tuple[tuple[str, ...], ...]
    # transformers' Conv1D keeps weight_IO; everything in the engine sees weight_OI.
    transposed: bool = False
    # Linears whose input channels are the output rows of others, one by one: nothing between them mixes channels. Of a
    # fused producer they are the last rows.
    produced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Of these, those that read attention's heads: channels stay within their head.
    in_heads: frozenset[str] = frozenset()
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
_PRODUCED_HEADS = {"self_attn.o_proj": ("self_attn.v_proj",)}
_PRODUCED = {**_PRODUCED_HEADS, "mlp.down_proj": ("mlp.gate_proj", "mlp.up_proj")}
_IN_HEADS = frozenset({"self_attn.o_proj"})
# Heads' rows of a fused projection that lie between those of others cannot be reordered by themselves.
_PRODUCED_FUSED = {"mlp.dense_4h_to_h": ("mlp.dense_h_to_4h",)}


def _fused(attention: str) -> tuple[tuple[str, ...], ...]:
    """GPT-NeoX and its relatives. Where attention and feed-forward part run side by side, they still run in this order,
    and whether they read the same tensor depends on the configuration; so each has its own statistics."""
    return (
        (f"{attention}.query_key_value",),
        (f"{attention}.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    )


ARCHITECTURES: dict[FamilyName, Architecture] = {
    "llama": Architecture(
        base="model",
        blocks="model.layers",
        groups=_ATTENTION + _GATED,
        produced=_PRODUCED,
        in_heads=_IN_HEADS,
    ),
    "gemma": Architecture(
        base="model",
        blocks="model.layers",
        groups=_ATTENTION + _GATED,
        produced=_PRODUCED,
        in_heads=_IN_HEADS,
    ),
    "phi3": Architecture(
        base="model",
        blocks="model.layers",
        groups=(("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)),
        produced={"self_attn.o_proj": ("self_attn.qkv_proj",)},
        in_heads=_IN_HEADS,
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
        produced={"self_attn.out_proj": ("self_attn.v_proj",), "fc2": ("fc1",)},
        in_heads=frozenset({"self_attn.out_proj"}),
    ),
    "gpt2": Architecture(
        base="transformer",
        blocks="transformer.h",
        groups=(("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
        transposed=True,
        produced={"attn.c_proj": ("attn.c_attn",), "mlp.c_proj": ("mlp.c_fc",)},
        in_heads=frozenset({"attn.c_proj"}),
    ),
    "gpt_neox": Architecture(
        base="gpt_neox", blocks="gpt_neox.layers", groups=_fused("attention"), produced=_PRODUCED_FUSED
    ),
    "bloom": Architecture(
        base="transformer",
        blocks="transformer.h",
        groups=_fused("self_attention"),
        produced=_PRODUCED_FUSED,
        returns_tuple=True,
    ),
    "falcon": Architecture(
        base="transformer",
        blocks="transformer.h",
        groups=_fused("self_attention"),
        produced=_PRODUCED_FUSED,
        returns_tuple=True,
    ),
    "mixtral": Architecture(
        base="model",
        blocks="model.layers",
        groups=_ATTENTION,
        produced=_PRODUCED_HEADS,
        in_heads=_IN_HEADS,
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
        produced={
            **_PRODUCED_HEADS,
            "mlp.shared_expert.down_proj": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        },
        in_heads=_IN_HEADS,
        experts=ExpertNames(),
    ),
    "qwen3_moe": Architecture(
        base="model",
        blocks="model.layers",
        groups=_ATTENTION,
        produced=_PRODUCED_HEADS,
        in_heads=_IN_HEADS,
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
    produced = {down: makers for makers, (down,) in zip(groups[::2], groups[1::2], strict=True)}
    return replace(architecture, groups=architecture.groups + groups, produced={**architecture.produced, **produced})


def _family_of(config: Any) -> FamilyName:
    try:
        return family_of(config.model_type)
    except UnsupportedArchitecture as error:
        raise ArchitectureUnsupported(f"{error}.", field="model") from error


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
            self.model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=None)
            blocks = self.model.get_submodule(self.architecture.blocks)
            assert isinstance(blocks, nn.ModuleList)
            self.blocks = blocks
            if names := self.architecture.experts:
                for block in blocks:
                    block.set_submodule(names.module, UnfoldedExperts(block.get_submodule(names.module), names))
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

    def block_names(self, index: int) -> list[str]:
        """Parameters of one block."""
        prefix = self.block_prefix(index)
        return [prefix + name for name, _ in self.blocks[index].named_parameters()]

    def linear_names(self, index: int) -> list[str]:
        """The block's linears, without `.weight`."""
        return [self.block_prefix(index) + name for name in self.architecture.linears]

    def exchange(self, index: int, name: str) -> Exchange | None:
        """Which input channels of a linear may change places; `name` is the architecture's, without the block."""
        producers = self.architecture.produced.get(name)
        if producers is None:
            return None
        prefix = self.block_prefix(index)
        _, in_features = self.shape_OI(prefix + name)
        heads = blocks = 1
        if name in self.architecture.in_heads:
            heads = self.config.num_attention_heads
            blocks = getattr(self.config, "num_key_value_heads", None) or heads
        rows = in_features // heads * blocks
        return Exchange(
            blocks,
            heads // blocks,
            tuple((prefix + producer, self.shape_OI(prefix + producer)[0] - rows) for producer in producers),
        )

    def shape_OI(self, name: str) -> tuple[int, int]:
        """out_features and in_features of a linear."""
        first, second = self.model.get_parameter(f"{name}.weight").shape
        return (second, first) if self.architecture.transposed else (first, second)

    def all_linear_names(self) -> Iterator[str]:
        for index in range(self.num_blocks):
            yield from self.linear_names(index)

    def put(self, name: str, value: Tensor) -> None:
        """Give a parameter its value; the tensor is not copied."""
        module_name, _, leaf = name.rpartition(".")
        old = self.model.get_parameter(name)
        assert old.shape == value.shape, f"{name} is {tuple(value.shape)}, not {tuple(old.shape)}"
        new = nn.Parameter(value, requires_grad=False)
        for module in self.model.modules() if old.is_meta and self._is_tied(name) else ():
            for key, parameter in module._parameters.items():
                if parameter is old:
                    module._parameters[key] = new
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

    def _is_tied(self, name: str) -> bool:
        return not name.startswith(f"{self.architecture.blocks}.")
