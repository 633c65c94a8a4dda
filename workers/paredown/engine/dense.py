"""Statistics of the uncompressed model, gathered once and kept on disk: for `calibration.statistics: dense`.

Each layer's inputs are then those of the base, not those that the compressed layers before it leave, so they are the
same for every recipe. Runs that share a directory share the pass; a run that finds it finished does no forward at all.
What is kept serves every method, whatever the recipe that asked first: only entropy, which costs most, is kept apart.
Shapes: N sequences, T tokens of each.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from paredown.engine.architectures import Skeleton
from paredown.engine.checkpoint import Checkpoint, identity_hash
from paredown.engine.depth import check_finite, through_block
from paredown.engine.errors import Drained
from paredown.engine.forward import BlockForward, GroupHooks
from paredown.engine.statistics import InputStatistics, Statistic
from paredown.engine.weights import ModelReader

_ALWAYS = frozenset(Statistic) - {Statistic.ENTROPY, Statistic.SHIFT}
_LOCKED_WAIT_SECONDS = 0.2


class DenseStatistics:
    """Of every group of every block; complete once made.

    `identity` is the hash of the model, the tokens and all else that decides the figures. Runs that meet in a directory
    take turns. Raises NanFound, DiskFull, and Drained at a block boundary.
    """

    def __init__(
        self,
        model: ModelReader,
        tokens_NT: Tensor,
        *,
        device: torch.device,
        dtype: torch.dtype,
        needs: AbstractSet[Statistic],
        directory: Path,
        identity: str,
        on_progress: Callable[[int, int], None],
        should_drain: Callable[[], bool],
    ) -> None:
        self._skeleton = skeleton = Skeleton(model.config, dtype)
        self._device = device
        self._needs = _ALWAYS | needs
        key = identity_hash(identity, sorted(self._needs))
        directory /= key
        num_blocks = skeleton.num_blocks
        with _alone(directory, should_drain):
            self._checkpoint = checkpoint = Checkpoint(directory, key, num_blocks, sequential=True)
            on_progress(len(checkpoint.finished), num_blocks)
            forward: BlockForward | None = None
            for index in range(len(checkpoint.finished), num_blocks):
                if should_drain():
                    raise Drained
                if forward is None:
                    skeleton.load_outer(model.tensor, device, model.storage_dtype)
                    forward = BlockForward(skeleton, tokens_NT, device)
                    skeleton.release_outer()
                    forward.states = checkpoint.hidden(index, forward.states_device) or forward.states
                kept = self._gather(model, forward, index)
                checkpoint.save(index, kept, {}, (), forward.states if index + 1 < num_blocks else None)
                on_progress(index + 1, num_blocks)

    def of(self, block: int) -> list[InputStatistics]:
        """One for each group of the block's linears, read from disk."""
        shard = self._checkpoint.block(block)
        figures: dict[int, dict[str, Tensor]] = {}
        for name in shard.dense_names:
            number, _, figure = name.partition(".")
            figures.setdefault(int(number), {})[figure] = shard.dense(name).to(self._device)
        statistics = self._empty(block)
        for group, each in enumerate(statistics):
            each.restore(figures[group])
        return statistics

    def _gather(self, model: ModelReader, forward: BlockForward, index: int) -> dict[str, Tensor]:
        statistics = self._empty(index)

        def add(group: int, inputs: Tensor) -> None:
            statistics[group].add(inputs.flatten(0, -2))

        with GroupHooks(self._skeleton, self._skeleton.groups(index), add):
            for _, _, after_BTH in through_block(model, self._skeleton, forward, index):
                check_finite(after_BTH, index)
        for each in statistics:
            each.complete()
        return {
            f"{group}.{figure}": tensor.cpu()
            for group, each in enumerate(statistics)
            for figure, tensor in each.figures().items()
        }

    def _empty(self, block: int) -> list[InputStatistics]:
        skeleton = self._skeleton
        return [
            InputStatistics(", ".join(names), skeleton.shape_OI(names[0])[1], self._needs, self._device)
            for names in skeleton.groups(block)
        ]


@contextmanager
def _alone(directory: Path, should_drain: Callable[[], bool]) -> Iterator[None]:
    """The directory's lock, which ends with its process. Raises Drained."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if should_drain():
                    raise Drained from None
                time.sleep(_LOCKED_WAIT_SECONDS)
        yield
