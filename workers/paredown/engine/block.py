"""One block on its way through a recipe: paused forwards, statistics, stages, and what is left to store.

Shapes: O out_features, I in_features, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from paredown.contracts.job import Calibration
from paredown.contracts.recipes import Stage, WeightGrid
from paredown.contracts.report import LayerReport
from paredown.engine.activations import ActivationGrid, entering
from paredown.engine.architectures import Skeleton
from paredown.engine.beside import BaseForward
from paredown.engine.errors import ExpertsUnreached, FormatRefused, NanFound
from paredown.engine.forward import BlockForward, GroupHooks
from paredown.engine.method import LinearWeight, joined, take_apart
from paredown.engine.methods import METHODS
from paredown.engine.scaling import Fold
from paredown.engine.shuffle import Exchange
from paredown.engine.statistics import InputStatistics, Statistic, all_finite
from paredown.engine.stored import StoredLinear
from paredown.engine.weights import ModelReader


class _Stop(BaseException):
    """Ends a forward early where pausing is off; not an Exception, so that no block's own handler can take it."""


class BlockRun:
    """Compresses one block. `dense`, `quantized` and `layers` are complete afterwards."""

    def __init__(
        self,
        files: ModelReader,
        skeleton: Skeleton,
        index: int,
        recipe: Sequence[Stage | Mapping[str, Stage]],
        device: torch.device,
        calibration: Calibration,
        *,
        keep_zeros: bool,
    ) -> None:
        """A mapping in the place of a stage says, by name, which one each linear has there."""
        self.dense: dict[str, Tensor] = {}
        self.quantized: dict[str, StoredLinear] = {}
        self.layers: list[LayerReport] = []
        self._files = files
        self._skeleton = skeleton
        self._index = index
        self._recipe = recipe
        self._device = device
        self._calibration = calibration
        self._keep_zeros = keep_zeros
        # What the inputs of finished linears go through; the forwards wait with them as they were before any scale.
        self._inputs: dict[str, Callable[[Tensor], Tensor]] = {}
        self._groups = skeleton.groups(index)
        weights = {f"{name}.weight" for name in skeleton.linear_names(index)}
        for name in skeleton.block_names(index):
            if name not in weights:
                self.dense[name] = self._read(name).to(files.storage_dtype)

    def compress_all(self, statistics: Sequence[InputStatistics] | None = None) -> None:
        """Without a forward: for recipes that look at no activations, or whose `statistics` of each group are known."""
        for group in range(len(self._groups)):
            self._compress(group, statistics[group] if statistics else self._statistics(group))

    def stream_through(self, forward: BlockForward, beside: BaseForward | None = None) -> None:
        """Pause every micro-batch's forward at each group, compress the group, and run all of them on.

        `beside` is the base's forward, where calibration has asymmetry.
        """
        self._load_dense()
        gathered: dict[int, InputStatistics] = {}
        waiting: dict[int, tuple[int, greenlet]] = {}
        # Inputs that came before those of an earlier micro-batch, which a mixture's experts bring about.
        early: dict[int, dict[int, Tensor]] = {}

        def run(micro_batch: int) -> None:
            forward.keep(micro_batch, forward.call(self._index, micro_batch))

        def go_on(micro_batch: int, run: greenlet, *args: Any) -> None:
            """Until its next pause; the inputs are taken in while they are warm."""
            arrived = run.switch(*args)
            _check_modes()
            if run.dead:
                waiting.pop(micro_batch, None)
                return
            group, inputs_TI = arrived
            waiting[micro_batch] = (group, run)
            early.setdefault(group, {})[micro_batch] = inputs_TI
            take_in(group)

        def take_in(group: int) -> None:
            """Always in the order of micro-batches, whoever arrives first: sums in another order are other sums."""
            if group not in gathered:
                gathered[group] = self._statistics(group)
            for micro_batch, inputs_TI in sorted(early.get(group, {}).items()):
                if any(at < group for other, (at, _) in waiting.items() if other < micro_batch):
                    break
                gathered[group].add(inputs_TI, beside.inputs(group, micro_batch) if beside else None)
                del early[group][micro_batch]

        def pause(group: int, inputs: Tensor) -> None:
            getcurrent().parent.switch((group, inputs.flatten(0, -2)))

        # The pause comes first: what a linear's input goes through is known when its group is compressed.
        with GroupHooks(self._skeleton, self._groups, pause), self._entering(), _block(beside, self._index):
            try:
                for micro_batch in range(len(forward.tokens)):
                    go_on(micro_batch, greenlet(run), micro_batch)
                for group in range(len(self._groups)):
                    # A micro-batch that skips a group waits at a later one and holds nobody up.
                    take_in(group)
                    self._compress(group, gathered.pop(group))
                    for micro_batch, (at, paused) in list(waiting.items()):
                        if at == group:
                            go_on(micro_batch, paused)
                assert not waiting, "groups are in order of execution"
            finally:
                # After a failure: unwind the forwards that still wait, and let go of their activations.
                for _, paused in waiting.values():
                    paused.throw()
        self._check_states(forward)

    def rerun_through(self, forward: BlockForward, beside: BaseForward | None = None) -> None:
        """The same work in the same order without pauses: the block starts again for each group. For little memory."""
        self._load_dense()
        with _block(beside, self._index):
            for target in range(len(self._groups)):
                statistics = self._statistics(target)
                for micro_batch in range(len(forward.tokens)):
                    base_TI = beside.inputs(target, micro_batch) if beside else None
                    gather = partial(_gather_and_stop, target, statistics, base_TI)
                    with GroupHooks(self._skeleton, self._groups, gather), self._entering():
                        try:
                            forward.call(self._index, micro_batch)
                        except _Stop:
                            _check_modes()
                self._compress(target, statistics)
        with self._entering():
            for micro_batch in range(len(forward.tokens)):
                forward.keep(micro_batch, forward.call(self._index, micro_batch))
        self._check_states(forward)

    def _entering(self) -> AbstractContextManager[None]:
        return entering(self._skeleton.model, self._skeleton.linear_names(self._index), self._inputs)

    def _load_dense(self) -> None:
        self._skeleton.put_from(self.dense.__getitem__, list(self.dense), self._device)

    def _read(self, name: str) -> Tensor:
        tensor = self._files.tensor(name)
        if not all_finite(tensor):
            raise NanFound(f"{name} holds values that are not finite; the source checkpoint is damaged.", field="model")
        return tensor

    def _own(self, linear: str) -> list[Stage]:
        """The recipe as it is for a linear, and for all that share its input."""
        return [entry[linear] if isinstance(entry, Mapping) else entry for entry in self._recipe]

    def _stages(self, linear: str) -> list[Stage]:
        return [stage for stage in self._own(linear) if not stage.skips(linear)]

    def _needs(self, group: int) -> set[Statistic]:
        """What the stages look at that do not skip all of a group. Dense statistics hold more."""
        stages = [stage for name in self._groups[group] for stage in self._stages(name)]
        return set[Statistic]().union(*(METHODS[stage.method].needs for stage in stages))

    def _statistics(self, group: int) -> InputStatistics:
        names, needs = self._groups[group], self._needs(group)
        if needs and self._calibration.asymmetry:
            needs |= {Statistic.HESSIAN, Statistic.SHIFT}
        _, in_features = self._skeleton.shape_OI(names[0])
        return InputStatistics(", ".join(names), in_features, needs, self._device)

    def _compress(self, group: int, statistics: InputStatistics) -> None:
        """All stages on all linears of a group; then the linears can run."""
        statistics.complete()
        needs = self._needs(group)
        unreached = bool(needs) and self._is_unreached(group, statistics)
        if unreached:
            statistics.assume_uniform()
        oriented = self._skeleton.architecture.oriented
        storage_dtype, storage = self._files.storage_dtype, self._files.source.storage
        linears = [
            LinearWeight(
                name,
                oriented(self._read(f"{name}.weight")).to(self._device, torch.float32, copy=True).contiguous(),
                storage.scale_dtype or storage_dtype,
                wide=storage.wide,
            )
            for name in self._groups[group]
        ]
        if self._keep_zeros:
            for linear in linears:
                linear.pruned_OI = linear.weight_OI == 0
        # No token may have reached an expert that the recipe leaves alone.
        known = statistics.has_hessian and not unreached and statistics.num_tokens > 0
        originals = [linear.weight_OI.clone() if known else None for linear in linears]
        left_out = unreached and self._calibration.unreached_experts == "dense"
        recipe = [
            stage for stage in self._own(self._groups[group][0]) if not (left_out and METHODS[stage.method].needs)
        ]
        if Statistic.SHIFT in statistics.needs:
            for linear in linears:
                # What no stage looks at stays as it is.
                if any(METHODS[stage.method].needs for stage in self._stages(linear.name)):
                    linear.aim(statistics.toward_base(linear.weight_OI, self._calibration.asymmetry))
        for stage, following in zip_longest(recipe, recipe[1:]):
            self._apply(stage, following, group, linears, statistics)
        if linears[0].fold is not None and linears[0].scale_I is not None:
            linears[0].fold.divide(linears[0].scale_I)
        for linear, original_OI in zip(linears, originals, strict=True):
            weight_name = f"{linear.name}.weight"
            if linear.quantized is not None:
                stored_OI = linear.quantized.dequantized()
                if not all_finite(stored_OI):
                    raise FormatRefused(
                        f"Weights of {linear.name} are too large for the format's scales, which are float16; set "
                        "format to compressed-tensors or native, or skip that layer.",
                        field="format",
                    )
                running_OI = linear.in_place(linear.weight_OI)
                self.quantized[linear.name] = linear.quantized.to(torch.device("cpu"))
                self._inputs[linear.name] = partial(_entered, linear.scale_I, linear.quantized.activations)
            else:
                stored_OI = linear.weight_OI.to(storage_dtype)
                running_OI = linear.in_place(stored_OI.float())
                self.dense[weight_name] = oriented(stored_OI).cpu()
            # The forward goes on in the model's own order of channels; only the artifact's is another.
            forward_OI = linear.in_place(stored_OI.to(self._skeleton.dtype))
            self._skeleton.put(weight_name, oriented(forward_OI).contiguous())
            self.layers.append(
                LayerReport(
                    name=linear.name,
                    weights=stored_OI.numel(),
                    zeros=int((stored_OI == 0).count_nonzero()),
                    bits=linear.quantized.stored_bits if linear.quantized else 16.0,
                    error=None if original_OI is None else _output_error(original_OI, running_OI, statistics),
                    scaled=linear.scale_I is not None if self._scales(linear.name, recipe) else None,
                    tokens=statistics.num_tokens if self._is_expert(group) and needs else None,
                )
            )
            if linear.order_BC is not None:
                self._follow(linear)

    def _is_expert(self, group: int) -> bool:
        experts = self._skeleton.architecture.experts
        return experts is not None and f".{experts.module}." in self._groups[group][0]

    def _is_unreached(self, group: int, statistics: InputStatistics) -> bool:
        """Whether there are too few activations to look at. Raises ExpertsUnreached, if that ends it."""
        wanted = self._calibration.min_expert_tokens
        if statistics.num_tokens >= wanted:
            return False
        if not self._is_expert(group):
            assert statistics.num_tokens > 0, f"no token reached {statistics.name}"
            return False
        if self._calibration.unreached_experts == "fail":
            raise ExpertsUnreached(
                f"{statistics.num_tokens} calibration tokens reached {statistics.name}, fewer than the {wanted} asked "
                "for. Calibrate on more or more varied text, or set unreached_experts to uniform or dense.",
                field="calibration.unreached_experts",
            )
        return True

    def _apply(
        self,
        stage: Stage,
        following: Stage | None,
        group: int,
        linears: list[LinearWeight],
        statistics: InputStatistics,
    ) -> None:
        """One stage on all linears that it does not skip; with the one that follows, where both are solved at once."""
        method = METHODS[stage.method]
        # A weight is quantized once: one that already is was solved with the stage before.
        chosen = [linear for linear in linears if linear.quantized is None and stage in self._stages(linear.name)]
        if following is not None and (solve := method.joint.get(following.method)):
            for linear in [linear for linear in chosen if following in self._stages(linear.name)]:
                solve(linear, linear.inputs(statistics), stage, _for_layer(following, linear))
                chosen.remove(linear)
        if method.scales and len(chosen) == len(linears):
            fold = self._fold(stage, group, linears)
            for linear in linears:
                linear.fold = fold
        if method.rowwise and len(chosen) > 1:
            joint = joined(chosen)
            method.compress(joint, statistics, _for_layer(stage, joint))
            take_apart(joint, chosen)
        else:
            for linear in chosen:
                if linear.order_BC is None:
                    linear.exchange = self._exchange(stage, linear.name)
                method.compress(linear, linear.inputs(statistics), _for_layer(stage, linear))

    def _exchange(self, stage: Stage, name: str) -> Exchange | None:
        """Which input channels of a linear a stage may reorder: not where it skips one of the linears that follow."""
        prefix = self._skeleton.block_prefix(self._index)
        exchange = self._skeleton.exchange(self._index, name.removeprefix(prefix))
        if exchange is None or any(stage not in self._stages(producer) for producer, _ in exchange.producers):
            return None
        return exchange

    def _follow(self, linear: LinearWeight) -> None:
        """Store the rows of a linear's producers in the order of its input channels: the artifact computes the same."""
        assert linear.exchange is not None
        assert linear.order_BC is not None
        order_R = linear.exchange.rows(linear.order_BC).cpu()
        oriented = self._skeleton.architecture.oriented
        for name, first in linear.exchange.producers:
            order_O = torch.arange(self._skeleton.shape_OI(name)[0])
            order_O[first : first + len(order_R)] = first + order_R
            if name in self.quantized:
                self.quantized[name] = self.quantized[name].reordered(order_O)
            else:
                self.dense[f"{name}.weight"] = oriented(oriented(self.dense[f"{name}.weight"])[order_O])
            if f"{name}.bias" in self.dense:
                self.dense[f"{name}.bias"] = self.dense[f"{name}.bias"][order_O]

    def _fold(self, stage: Stage, group: int, linears: list[LinearWeight]) -> Fold | None:
        """What can take a scale of the group's input; a linear that the stage skips is left as it is."""
        producer = self._skeleton.producer(group)
        # A producer's rows can follow a new order of channels or a scale of them, not both.
        if producer is None or any(linear.order_BC is not None for linear in linears):
            return None
        in_features = linears[0].weight_OI.shape[1]
        name = self._skeleton.block_prefix(self._index) + producer.name
        is_linear = producer.name in self._skeleton.architecture.linears
        if is_linear and stage not in self._stages(name):
            return None
        num_rows = self._skeleton.shape_OI(name)[0] if is_linear else in_features
        rows_I = producer.rows(self._skeleton.config, num_rows, in_features)
        return Fold(name, rows_I, self.dense, self.quantized, producer.offset)

    def _scales(self, linear: str, recipe: Sequence[Stage]) -> bool:
        return any(METHODS[stage.method].scales for stage in recipe if stage in self._stages(linear))

    def _check_states(self, forward: BlockForward) -> None:
        if not all(all_finite(state) for state in forward.states):
            raise NanFound(
                f"The hidden states that leave block {self._index} ({self._groups[-1][-1]}) are not finite. With dtype "
                "bfloat16 try float32; else the source checkpoint is damaged.",
                field="dtype",
            )


def _for_layer(stage: Stage, linear: LinearWeight) -> Stage:
    return stage.for_width(linear.weight_OI.shape[1]) if isinstance(stage, WeightGrid) else stage


def _entered(scale_I: Tensor | None, activations: ActivationGrid | None, inputs: Tensor) -> Tensor:
    """A linear's input as its stored weight takes it."""
    if scale_I is not None:
        inputs = (inputs / scale_I).to(inputs.dtype)
    return inputs if activations is None else activations.rounded(inputs)


def _block(beside: BaseForward | None, index: int) -> AbstractContextManager[None]:
    return nullcontext() if beside is None else beside.block(index)


def _gather_and_stop(
    target: int, statistics: InputStatistics, base_TI: Tensor | None, group: int, inputs: Tensor
) -> None:
    if group == target:
        statistics.add(inputs.flatten(0, -2), base_TI)
    if group >= target:
        raise _Stop


def _check_modes() -> None:
    """A forward that pauses inside a mode of its own would leak it into the others: torch's modes are the thread's."""
    assert torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cuda")


def _output_error(original_OI: Tensor, stored_OI: Tensor, statistics: InputStatistics) -> float:
    """‖X(W-W')ᵀ‖² / ‖XWᵀ‖² from the Hessian."""
    total = statistics.output_energy(original_OI)
    return statistics.output_energy(original_OI - stored_OI) / total if total > 0 else 0.0
