"""Narrower blocks: the model that is left when channels and heads go.

Shapes: C MLP channels, G key-value heads.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paredown.engine.architectures import Skeleton
from paredown.engine.weights import ModelReader

# Which side of a linear the block's MLP channels lie on, and its heads: 0 rows, 1 columns.
CHANNELS = {"mlp.gate_proj": 0, "mlp.up_proj": 0, "mlp.down_proj": 1}
HEADS = {"self_attn.q_proj": 0, "self_attn.k_proj": 0, "self_attn.v_proj": 0, "self_attn.o_proj": 1}


class WidthView:
    """A model of narrower blocks. Reads like the model it is made of, and lets it keep the weights."""

    def __init__(self, model: ModelReader, channels: Sequence[Tensor], heads: Sequence[Tensor]) -> None:
        """`channels` and `heads`: the numbers of those that stay, in order, for each block."""
        self.config = _narrowed(model.config, len(channels[0]), len(heads[0]))
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


def _narrowed(config: Any, channels: int, kv_heads: int) -> Any:
    narrower = copy.deepcopy(config)
    narrower.intermediate_size = channels
    if kv_heads != config.num_key_value_heads:
        # Without it, transformers takes the hidden size over the number of heads.
        head_dim = getattr(config, "head_dim", None)
        narrower.head_dim = head_dim or config.hidden_size // config.num_attention_heads
        narrower.num_attention_heads = config.num_attention_heads // config.num_key_value_heads * kv_heads
        narrower.num_key_value_heads = kv_heads
    return narrower
