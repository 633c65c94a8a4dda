"""Narrower blocks: the model that is left when channels and heads go.

Shapes: C MLP channels, G key-value heads.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paredown.contracts.recipes import Width
from paredown.contracts.report import StageReport
from paredown.engine.architectures import Skeleton
from paredown.engine.depth import stage_report
from paredown.engine.errors import RecipeUnfit
from paredown.engine.method import ModelWork
from paredown.engine.weights import ModelReader

# Which side of a linear the block's MLP channels lie on, and its heads: 0 rows, 1 columns.
CHANNELS = {"mlp.gate_proj": 0, "mlp.up_proj": 0, "mlp.down_proj": 1}
HEADS = {"self_attn.q_proj": 0, "self_attn.k_proj": 0, "self_attn.v_proj": 0, "self_attn.o_proj": 1}


@dataclass(frozen=True)
class Widths:
    """How many `channels` and `heads` a block has, and how many a stage leaves of them."""

    whole: Mapping[str, int]
    left: Mapping[str, int]

    @classmethod
    def of(cls, config: Any, stage: Width) -> "Widths":
        """Raises RecipeUnfit where a block would lose nothing, or all."""
        channels, heads = int(config.intermediate_size), int(config.num_key_value_heads)
        channels_left, heads_left = stage.channels_left(channels), heads - stage.head_groups
        if heads_left < 1 or channels_left > channels or (channels_left, heads_left) == (channels, heads):
            raise RecipeUnfit(
                f"Blocks of {channels} MLP channels and {heads} key-value heads cannot become blocks of "
                f"{channels_left} and {heads_left}.",
                field="head_groups" if heads_left < 1 else "mlp_share",
            )
        return cls({"channels": channels, "heads": heads}, {"channels": channels_left, "heads": heads_left})


def most(importance: Tensor, left: int) -> Tensor:
    """The numbers, in order, of so many that matter most."""
    return importance.topk(left).indices.sort().values


def narrowed(
    model: ModelReader,
    work: ModelWork,
    stage: Width,
    widths: Widths,
    kept: Sequence[Mapping[str, Tensor]],
    importance: Sequence[Mapping[str, Tensor]],
    *,
    measure: str,
    more: str = "",
) -> "tuple[WidthView, StageReport]":
    """The model that is left of each block's `kept` channels and heads, and what is told of it, `more` at the end."""
    totals = [sum(float(found.sum()) for found in block.values()) for block in importance]
    stays = sum(
        float(found[kind][numbers].sum())
        for found, block in zip(importance, kept, strict=True)
        for kind, numbers in block.items()
    )
    channels, heads = widths.whole["channels"], widths.whole["heads"]
    report = stage_report(
        work,
        stage,
        range(len(totals)),
        totals,
        summary=f"Every block has {widths.left['channels']} of {channels} MLP channels and {widths.left['heads']} of "
        f"{heads} key-value heads. With the others went {max(0.0, 1 - stays / max(sum(totals), 1e-30)):.1%} of all "
        f"importance.{more}",
        measure=measure,
    )
    return WidthView(model, [block["channels"] for block in kept], [block["heads"] for block in kept]), report


class WidthView:
    """A model of narrower blocks. Reads like the model it is made of, and lets it keep the weights."""

    def __init__(self, model: ModelReader, channels: Sequence[Tensor], heads: Sequence[Tensor]) -> None:
        """`channels` and `heads`: the numbers of those that stay, in order, for each block."""
        self.config = _narrower(model.config, len(channels[0]), len(heads[0]))
        self.names = model.names
        self.storage_dtype = model.storage_dtype
        self.source = model.source
        self._model = model
        self._channels = channels
        self._heads = heads
        self._kv_heads = int(model.config.num_key_value_heads)
        self._prefix = Skeleton(model.config, torch.float32).architecture.blocks + "."

    def tensor(self, name: str) -> Tensor:
        value = self._model.tensor(name)
        number, _, leaf = name.removeprefix(self._prefix).partition(".")
        linear = leaf.rpartition(".")[0]
        if not name.startswith(self._prefix) or linear not in CHANNELS | HEADS:
            return value
        block, side = int(number), (CHANNELS | HEADS)[linear]
        if value.ndim == 1 and side == 1:
            # A bias belongs to what leaves the linear.
            return value
        if linear in CHANNELS:
            return value.index_select(side, self._channels[block])
        width = value.shape[side] // self._kv_heads
        lines = self._heads[block].unsqueeze(1) * width + torch.arange(width)
        return value.index_select(side, lines.flatten())


def _narrower(config: Any, channels: int, kv_heads: int) -> Any:
    narrower = copy.deepcopy(config)
    narrower.intermediate_size = channels
    if kv_heads != config.num_key_value_heads:
        # Without it, transformers takes the hidden size over the number of heads.
        head_dim = getattr(config, "head_dim", None)
        narrower.head_dim = head_dim or config.hidden_size // config.num_attention_heads
        narrower.num_attention_heads = config.num_attention_heads // config.num_key_value_heads * kv_heads
        narrower.num_key_value_heads = kv_heads
    return narrower
