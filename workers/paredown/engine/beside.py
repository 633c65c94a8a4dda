"""The base model's forward beside the pass: what would enter each linear if no layer before it had been compressed.

For `calibration.asymmetry`. It goes in step with the pass, so of each micro-batch only the inputs of the group that is
being gathered are there.
Shapes: T tokens of a micro-batch, I in_features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from paredown.engine.architectures import Skeleton
from paredown.engine.forward import BlockForward, GroupHooks
from paredown.engine.weights import ModelReader


class BaseForward:
    """All micro-batches through the base, one block at a time."""

    def __init__(
        self, model: ModelReader, tokens_NT: Tensor, device: torch.device, dtype: torch.dtype, *, pausing: bool
    ) -> None:
        """Without `pausing` a block runs once more for each group, in the memory of one micro-batch."""
        self._model = model
        self._pausing = pausing
        self._skeleton = Skeleton(model.config, dtype)
        self._skeleton.load_outer(model.tensor, device, model.storage_dtype)
        self._forward = BlockForward(self._skeleton, tokens_NT, device)
        self._skeleton.release_outer()
        self._index = 0
        # Forwards that wait at a group, by micro-batch; without pausing, the group that is asked for and its inputs.
        self._waiting: dict[int, greenlet] = {}
        self._wanted: int | None = None
        self._found: Tensor | None = None

    @property
    def states(self) -> list[Tensor]:
        """What enters the next block, one tensor for each micro-batch."""
        return self._forward.states

    @states.setter
    def states(self, states: list[Tensor]) -> None:
        self._forward.states = states

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        """`inputs` are this block's within, and `states` the next one's afterwards."""
        self._index = index
        dtype = self._model.storage_dtype
        names = self._skeleton.block_names(index)
        self._skeleton.put_from(lambda name: self._model.tensor(name).to(dtype), names, self._forward.device)
        with GroupHooks(self._skeleton, self._skeleton.groups(index), self._arrive):
            try:
                yield
                for micro_batch in range(len(self._forward.tokens)):
                    if self._pausing:
                        self._waiting.pop(micro_batch).switch()
                    else:
                        self._run(micro_batch)
            finally:
                # After a failure: unwind the forwards that still wait, and let go of their activations.
                for paused in self._waiting.values():
                    paused.throw()
                self._waiting.clear()
        self._skeleton.release_block(index)

    def inputs(self, group: int, micro_batch: int) -> Tensor:
        """inputs_TI of a group of linears; of each micro-batch, groups are asked for in their order."""
        if self._pausing:
            if micro_batch not in self._waiting:
                self._waiting[micro_batch] = greenlet(partial(self._run, micro_batch))
            arrived, inputs_TI = self._waiting[micro_batch].switch()
            assert arrived == group, "base and pass go through a block's linears in one order"
        else:
            self._wanted = group
            self._forward.call(self._index, micro_batch)
            inputs_TI, self._wanted, self._found = self._found, None, None
        assert isinstance(inputs_TI, Tensor)
        return inputs_TI

    def _run(self, micro_batch: int) -> None:
        self._forward.keep(micro_batch, self._forward.call(self._index, micro_batch))

    def _arrive(self, group: int, inputs: Tensor) -> None:
        inputs_TI = inputs.flatten(0, -2)
        if self._pausing:
            getcurrent().parent.switch((group, inputs_TI))
        elif group == self._wanted:
            self._found = inputs_TI
