"""Mixed precision: GPTQ with the bits of each layer chosen for the least foretold loss under a budget of stored bits.

After Dumitru et al., "Layer-Wise Quantization", arXiv:2406.17415, which gives bits to layers by their importance, and
Yao et al., "HAWQ-V3", arXiv:2011.10680, which chooses them by an integer program. What a layer y = Wx with an error E
in its weights adds to the mean loss is foretold to second order, with the squares of the loss's gradients at y in the
place of its curvature (the empirical Fisher), as if they did not depend on the inputs:

    1/2 P sum_o (sum_t g_to²) e_o / T        e_o = sum_t (E_o x_t)²

where P tokens are predicted and T reach the layer. GPTQ's error of a row is known before GPTQ runs: settling column i
wrong by r costs r² / U_ii², where UᵀU is the inverse of the damped Hessian in the order of work, and what the columns
after it make up for is in that. So a rounding to nearest for each choice, which says how large r is, foretells it. All
of it is of the dense model, before any pruning of the same recipe.
Then one integer program takes one choice for each set of layers: those that share an input get the same bits, because
runtimes join them, and so do a block's experts. It is solved to optimality, by HiGHS.
Shapes: O out_features, I in_features, C choices, N sets of a block.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import highspy
import torch
from torch import Tensor

from paredown.contracts.pieces import TRIED_ROWS
from paredown.contracts.recipes import Gptq, Mixed
from paredown.contracts.report import StageReport
from paredown.engine.architectures import Skeleton
from paredown.engine.columns import channel_importance, restored
from paredown.engine.depth import stage_report, survey
from paredown.engine.errors import RecipeUnfit
from paredown.engine.gradients import backward
from paredown.engine.grid import nearest
from paredown.engine.method import AssigningMethod, LinearWeight, ModelWork
from paredown.engine.statistics import InputStatistics, Statistic
from paredown.engine.weights import ModelReader


def foretold_losses_C(linear: LinearWeight, inputs: InputStatistics, per_error_O: Tensor, config: Mixed) -> Tensor:
    """What each choice adds to the loss; `per_error_O` is the loss for a squared output error of 1 in a row."""
    weight_OI, cost_I = linear.weight_OI, column_costs_I(inputs, config)
    whole_O = (weight_OI.square() @ cost_I) * per_error_O
    # Only the rows that matter most are rounded. How much a row matters and how large it is are known of all, and they
    # differ little in how well they round.
    tried_R = whole_O.topk(min(len(whole_O), TRIED_ROWS)).indices
    tried = replace(linear, weight_OI=weight_OI[tried_R])
    sampled = whole_O[tried_R].sum()
    losses_C = foretold_errors_CO(tried, inputs, config) @ per_error_O[tried_R]
    return losses_C * (whole_O.sum() / sampled) if bool(sampled > 0) else losses_C


def column_costs_I(inputs: InputStatistics, config: Mixed) -> Tensor:
    """What settling each column wrong by 1 costs in squared output error, once later columns made up for it."""
    upper_II, order_I = inputs.inverse_factor(config.damping, config.activation_order)
    cost_I = restored(upper_II.diagonal().square().reciprocal(), order_I)
    # A channel that was never active has a damping of its own, which costs nothing.
    return cost_I.masked_fill(inputs.energy_I == 0, 0)


def foretold_errors_CO(linear: LinearWeight, inputs: InputStatistics, config: Mixed) -> Tensor:
    """GPTQ's squared output error of each row over the calibration tokens, at each choice."""
    cost_I = column_costs_I(inputs, config)
    importance_I = channel_importance(inputs.energy_I)
    errors = []
    for bits in config.choices:
        stage = config.at(bits).for_width(linear.weight_OI.shape[1])
        rounded = nearest(linear.weight_OI, stage, linear.storage_dtype, linear.name, importance_I, wide=linear.wide)
        errors.append((linear.weight_OI - rounded.dequantized().float()).square_() @ cost_I)
    return torch.stack(errors)


def choose(losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int) -> list[int]:
    """For each set of layers the number of its choice: least sum of losses with a sum of sizes of at most `budget`."""
    unit = math.gcd(*(size for row in sizes for size in row))
    largest = max(loss for row in losses for loss in row) or 1.0
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    # It must end with the same choice wherever it runs again, and with the best one.
    for option, value in {"output_flag": False, "threads": 1, "mip_rel_gap": 0.0, "mip_abs_gap": 0.0}.items():
        solver.setOptionValue(option, value)
    # HiGHS's tolerances are absolute: sizes are whole numbers, losses of some size.
    picks = [[solver.addBinary(obj=1000 * loss / largest) for loss in row] for row in losses]
    for row in picks:
        solver.addConstr(solver.qsum(row) == 1)
    pairs = [
        (pick, size)
        for row, all_sizes in zip(picks, sizes, strict=True)
        for pick, size in zip(row, all_sizes, strict=True)
    ]
    solver.addConstr(solver.qsum(pick * float(size // unit) for pick, size in pairs) <= float(budget // unit))
    solver.minimize()
    status = solver.getModelStatus()
    assert status == highspy.HighsModelStatus.kOptimal, f"HiGHS ended as {solver.modelStatusToString(status)}"
    chosen = [int(solver.vals(row).argmax()) for row in picks]
    assert sum(row[pick] for row, pick in zip(sizes, chosen, strict=True)) <= budget
    return chosen


def _sets(skeleton: Skeleton, index: int) -> list[list[list[str]]]:
    """A block's linears: sets that get the same bits, of groups that share an input. Experts are one set."""
    prefix, experts = skeleton.block_prefix(index), skeleton.architecture.experts
    sets: list[list[list[str]]] = []
    together: list[list[str]] = []
    for group in skeleton.architecture.groups:
        names = [prefix + name for name in group]
        if experts is not None and group[0].startswith(f"{experts.module}."):
            together.append(names)
        else:
            sets.append([names])
    return [*sets, together] if together else sets


class _LossWatch:
    """Foretells what each choice for each set of a block's linears adds to the loss: `losses`, one row for each set."""

    def __init__(
        self, skeleton: Skeleton, index: int, config: Mixed, scale_dtype: torch.dtype, predicted: int, *, wide: bool
    ) -> None:
        self._skeleton = skeleton
        self._config = config
        self._scale_dtype, self._wide = scale_dtype, wide
        self._predicted = predicted
        self._sets = _sets(skeleton, index)
        self._inputs: dict[str, InputStatistics] = {}
        self._squares_O: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        for group in (group for groups in self._sets for group in groups):
            if quantized := [name for name in group if not config.skips(name)]:
                self._look_at(quantized)

    def _look_at(self, names: list[str]) -> None:
        device = self._skeleton.model.get_parameter(f"{names[0]}.weight").device
        rows_columns = [self._skeleton.shape_OI(name) for name in names]
        statistics = InputStatistics(", ".join(names), rows_columns[0][1], {Statistic.HESSIAN}, device)

        def arrive(_module: Any, args: tuple[Tensor, ...]) -> None:
            statistics.add(args[0].detach().flatten(0, -2))

        def leave(squares_O: Tensor, _module: Any, _args: Any, output: Tensor) -> None:
            output.register_hook(partial(self._add, squares_O))  # type: ignore[no-untyped-call]

        self._handles.append(self._skeleton.model.get_submodule(names[0]).register_forward_pre_hook(arrive))
        for name, (rows, _) in zip(names, rows_columns, strict=True):
            self._inputs[name] = statistics
            self._squares_O[name] = torch.zeros(rows, device=device)
            module = self._skeleton.model.get_submodule(name)
            self._handles.append(module.register_forward_hook(partial(leave, self._squares_O[name])))

    @staticmethod
    def _add(squares_O: Tensor, gradient: Tensor) -> None:
        squares_O += gradient.detach().flatten(0, -2).float().square().sum(0)

    def passed(self) -> None:
        """Sums are taken in as the tensors pass."""

    def found(self) -> dict[str, Tensor]:
        for handle in self._handles:
            handle.remove()
        for statistics in dict.fromkeys(self._inputs.values()):
            statistics.complete()
        rows = [
            sum((self._loss_C(name) for group in groups for name in group if name in self._inputs), self._nothing_C)
            for groups in self._sets
        ]
        return {"losses": torch.stack(rows)}

    @property
    def _nothing_C(self) -> Tensor:
        return torch.zeros(len(self._config.choices))

    def _loss_C(self, name: str) -> Tensor:
        statistics = self._inputs[name]
        if statistics.num_tokens == 0:
            # An expert that no token reaches moves no loss.
            return self._nothing_C
        weight_OI = self._skeleton.architecture.oriented(self._skeleton.model.get_parameter(f"{name}.weight"))
        linear = LinearWeight(name, weight_OI.detach().float().contiguous(), self._scale_dtype, wide=self._wide)
        share = self._predicted / statistics.num_tokens / 2
        return foretold_losses_C(linear, statistics, self._squares_O[name] * share, self._config).cpu()


def assign(model: ModelReader, work: ModelWork, config: Mixed) -> tuple[Mapping[str, Gptq], StageReport]:
    """Raises RecipeUnfit, GroupSizeUnfit, HessianSingular, NanFound, Drained."""
    skeleton = Skeleton(model.config, torch.float32)
    storage = model.source.storage
    layers = [skeleton.shape_OI(name) for name in skeleton.all_linear_names() if not config.skips(name)]
    if reason := config.budget_refusal(layers, wide=storage.wide):
        raise RecipeUnfit(reason[0].upper() + reason[1:], field="average_bits")
    weights = sum(rows * columns for rows, columns in layers)
    samples, length = work.tokens_NT.shape

    def watcher(running: Skeleton, block: int) -> _LossWatch:
        scale_dtype = storage.scale_dtype or model.storage_dtype
        return _LossWatch(running, block, config, scale_dtype, samples * (length - 1), wide=storage.wide)

    entering = survey(model, work.tokens_NT, work, lambda before_BTH, _after: before_BTH, part_of=2)
    read = backward(model, work.tokens_NT, work, entering, watcher)
    # What is not in the program is skipped, whatever its stage.
    stages = dict.fromkeys(skeleton.all_linear_names(), config.at(config.choices[0]))
    grids = [config.at(bits) for bits in config.choices]
    sets: list[list[str]] = []
    losses: list[list[float]] = []
    sizes: list[list[int]] = []
    importance: list[float] = []
    for block in range(skeleton.num_blocks):
        found_NC = read(block)["losses"].tolist()
        importance.append(sum(losses_C[0] for losses_C in found_NC))
        for groups, losses_C in zip(_sets(skeleton, block), found_NC, strict=True):
            names = [name for group in groups for name in group]
            shapes = [skeleton.shape_OI(name) for name in names if not config.skips(name)]
            if shapes:
                sets.append(names)
                losses.append(losses_C)
                sizes.append([sum(grid.stored_bits(*one, wide=storage.wide) for one in shapes) for grid in grids])
    chosen = choose(losses, sizes, int(config.average_bits * weights))
    for names, pick in zip(sets, chosen, strict=True):
        stages |= dict.fromkeys(names, config.at(config.choices[pick]))
    counts = Counter(
        stage.for_width(skeleton.shape_OI(name)[1]).bits for name, stage in stages.items() if not config.skips(name)
    )
    average = sum(row[pick] for row, pick in zip(sizes, chosen, strict=True)) / weights
    added = sum(row[pick] for row, pick in zip(losses, chosen, strict=True))
    report = stage_report(
        work,
        config,
        range(len(importance)),
        importance,
        summary=f"{', '.join(f'{count} layers have {bits} bits' for bits, count in sorted(counts.items()))}: "
        f"{average:.3f} bits for each weight with scales, of {config.average_bits:g} allowed. This was foretold to add "
        f"{added:.2g} to the mean loss of a token.",
        measure=f"what {config.choices[0]} bits for the whole block were foretold to add to the mean loss of a token",
    )
    return stages, report


METHOD = AssigningMethod(config=Mixed, assign=assign, passes=5)
