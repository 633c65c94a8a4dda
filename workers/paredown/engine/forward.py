"""Forward passes through a model one block at a time, for every micro-batch, with only one block's weights present.

Shapes: N sequences, T tokens of each, B sequences of a micro-batch, H hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paredown.contracts.pieces import MICRO_BATCH_TOKENS
from paredown.engine.architectures import Skeleton

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Recorder(nn.Module):
    """Stands in for a block: notes how it is called, and returns what it was given, or `answer` where that is set."""

    def __init__(self, returns_tuple: bool, answer: Tensor | None = None) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple
        self.answer = answer
        self.hidden: Tensor | None = None
        self.call: _Call = ((), {})

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        self.hidden = hidden_states
        self.call = (args, kwargs)
        answer = hidden_states if self.answer is None else self.answer
        return (answer, None) if self.returns_tuple else answer


class BlockForward:
    """Hidden states of all micro-batches, and how each block is called.

    Masks and position tables depend on a micro-batch's shape only (there is no padding), so micro-batches share them.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        tokens: Tensor | Sequence[Tensor],
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        """Runs the embeddings; the skeleton's outer weights must be present.

        `tokens` are sequences of one length, cut into micro-batches of `batch_size` here, or micro-batches of any.
        """
        self.device = device
        self._skeleton = skeleton
        self._returns_tuple = skeleton.architecture.returns_tuple
        self._calls: dict[torch.Size, list[_Call]] = {}
        if isinstance(tokens, Tensor):
            tokens = torch.split(tokens, batch_size or max(1, MICRO_BATCH_TOKENS // tokens.shape[1]))
        self.tokens = tuple(tokens)
        hidden_bytes = sum(map(Tensor.numel, self.tokens)) * skeleton.hidden_size * skeleton.dtype.itemsize
        self.states_device = states_device(device, hidden_bytes)
        self.states: list[Tensor] = [self._embed(tokens_BT) for tokens_BT in self.tokens]

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        recorders = [_Recorder(self._returns_tuple) for _ in self._skeleton.blocks]
        with _standing_in(self._skeleton.blocks, recorders):
            self._skeleton.base(input_ids=tokens_BT.to(self.device), use_cache=False)
        self._calls.setdefault(tokens_BT.shape, [recorder.call for recorder in recorders])
        hidden = recorders[0].hidden
        assert hidden is not None
        return hidden.to(self.states_device)

    def call(self, block: int, micro_batch: int) -> Tensor:
        """The block's output for one micro-batch."""
        args, kwargs = self._calls[self.tokens[micro_batch].shape][block]
        output = self._skeleton.blocks[block](self.states[micro_batch].to(self.device), *args, **kwargs)
        hidden = output[0] if self._returns_tuple else output
        assert isinstance(hidden, Tensor)
        return hidden

    def keep(self, micro_batch: int, output: Tensor) -> None:
        """Make a block's output the next block's input."""
        self.states[micro_batch] = output.to(self.states_device)

    def final(self, micro_batch: int) -> Tensor:
        """What the head reads, once the last block is through: the base model's own steps after its blocks."""
        answer = self.states[micro_batch].to(self.device)
        recorders = [_Recorder(self._returns_tuple, answer) for _ in self._skeleton.blocks]
        with _standing_in(self._skeleton.blocks, recorders):
            output = self._skeleton.base(input_ids=self.tokens[micro_batch].to(self.device), use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden


@contextmanager
def _standing_in(blocks: nn.ModuleList, others: Sequence[nn.Module]) -> Iterator[None]:
    real = list(blocks)
    try:
        for index, other in enumerate(others):
            blocks[index] = other
        yield
    finally:
        for index, block in enumerate(real):
            blocks[index] = block


def states_device(device: torch.device, hidden_bytes: int) -> torch.device:
    """The device where hidden states fit beside a few times as much in activations, else RAM."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if 6 * hidden_bytes < free else torch.device("cpu")


class GroupHooks:
    """Calls `pause` when a forward reaches the first linear of a group."""

    def __init__(self, skeleton: Skeleton, groups: list[list[str]], pause: Any) -> None:
        self._skeleton = skeleton
        self._groups = groups
        self._pause = pause
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for group, names in enumerate(self._groups):
            module = self._skeleton.model.get_submodule(names[0])
            self._handles.append(module.register_forward_pre_hook(partial(self._arrive, group)))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _arrive(self, group: int, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._pause(group, args[0])
