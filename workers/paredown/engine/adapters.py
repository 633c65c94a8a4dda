"""Low-rank adapters beside a model's linears, and the model that is left when they are merged.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. A linear gives W x + s B A x
with s = alpha / rank; A starts random, B at zero, so training starts from the model as it is.
An adapter is added to what leaves a linear, whatever family the linear is of: fused projections, Conv1D and each of a
mixture's experts have adapters of their own.
Shapes: O out_features, I in_features, R rank.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from paredown.contracts.recipes import Training
from paredown.engine.architectures import Skeleton
from paredown.engine.checkpoint import BlockShard
from paredown.engine.errors import RecipeUnfit
from paredown.engine.weights import ModelReader


def merged(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
    """W + s B A in float32."""
    return torch.addmm(weight_OI.float(), up_OR, down_RI, alpha=scale)


class Adapters:
    """Adapters in float32 of some linears, named in full without `.weight`."""

    def __init__(self, skeleton: Skeleton, linears: Iterable[str], config: Training, device: torch.device) -> None:
        """Raises RecipeUnfit where a linear is smaller than the rank."""
        self.scale = config.alpha / config.rank
        self._skeleton = skeleton
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name in linears:
            rows, columns = skeleton.shape_OI(name)
            if config.rank > min(rows, columns):
                raise RecipeUnfit(
                    f"{name} has {rows} × {columns} weights, which an adapter of rank {config.rank} does not fit; "
                    f"lower rank to {min(rows, columns)}, or skip that layer.",
                    field="rank",
                )
            # Of the name, so that a block's adapters start alike whether they are trained alone or with all others.
            generator = torch.Generator().manual_seed(_seed_of(config.seed, name))
            down_RI = (torch.rand(config.rank, columns, generator=generator) * 2 - 1) / math.sqrt(columns)
            up_OR = torch.zeros(rows, config.rank, device=device)
            self._pairs[name] = (nn.Parameter(down_RI.to(device)), nn.Parameter(up_OR))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for pair in self._pairs.values() for parameter in pair]

    def tensors(self) -> dict[str, Tensor]:
        """What a shard stores of them; `TunedView` reads it."""
        return {
            f"{name}.{leaf}": parameter.detach()
            for name, pair in self._pairs.items()
            for leaf, parameter in zip(("down", "up"), pair, strict=True)
        }

    @torch.no_grad()
    def merge_into_skeleton(self, storage_dtype: torch.dtype) -> None:
        """The linears become what `TunedView` reads."""
        oriented, dtype = self._skeleton.architecture.oriented, self._skeleton.dtype
        for name, (down_RI, up_OR) in self._pairs.items():
            weight_OI = oriented(self._skeleton.model.get_parameter(f"{name}.weight"))
            merged_OI = merged(weight_OI, down_RI, up_OR, self.scale).to(storage_dtype)
            self._skeleton.put(f"{name}.weight", oriented(merged_OI.to(dtype)).contiguous())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The skeleton computes with them."""
        handles = [
            self._skeleton.model.get_submodule(name).register_forward_hook(partial(_add, self.scale, *pair))
            for name, pair in self._pairs.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")


def _add(
    scale: float, down_RI: Tensor, up_OR: Tensor, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    inputs = args[0]
    low_rank = functional.linear(inputs, down_RI.to(inputs.dtype))
    return output + scale * functional.linear(low_rank, up_OR.to(inputs.dtype))


class TunedView:
    """A model with adapters merged into its linears. Reads like the model it is made of, and lets it keep the weights;
    a merged weight is computed when it is read."""

    def __init__(self, model: ModelReader, scale: float, shards: Mapping[str, BlockShard]) -> None:
        """`shards`: for each linear with an adapter, where that is stored."""
        self.config = model.config
        self.names = model.names
        self.storage_dtype = model.storage_dtype
        self.source = model.source
        self._model = model
        self._scale = scale
        self._shards = shards
        self._oriented = Skeleton(model.config, torch.float32).architecture.oriented

    def tensor(self, name: str) -> Tensor:
        value = self._model.tensor(name)
        linear = name.removesuffix(".weight")
        shard = self._shards.get(linear) if name.endswith(".weight") else None
        if shard is None:
            return value
        down_RI, up_OR = (shard.dense(f"{linear}.{leaf}") for leaf in ("down", "up"))
        # Training saw the weight as it is stored.
        weight_OI = self._oriented(value.to(self.storage_dtype))
        return self._oriented(merged(weight_OI, down_RI, up_OR, self._scale)).to(self.storage_dtype).contiguous()
