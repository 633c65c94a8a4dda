"""Training of adapters on a loss of the model's output: steps, their schedule, and what a resumed run goes on from.

The weights of the whole model stay in memory. Of a batch, what enters each block is kept from a forward pass without
gradients; on the way back each block runs again, so activations are those of one block.
Shapes: N sequences, T tokens of each, B sequences of a batch, H hidden size.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from paredown.contracts.recipes import Training
from paredown.contracts.report import LossPoint, StageReport
from paredown.engine.adapters import Adapters, TunedView
from paredown.engine.architectures import Skeleton
from paredown.engine.checkpoint import Checkpoint
from paredown.engine.data import TokenBlocks
from paredown.engine.errors import Drained, RecipeUnfit, TrainingDiverged
from paredown.engine.forward import BlockForward
from paredown.engine.gradients import Loss, loss_gradient
from paredown.engine.method import ModelWork
from paredown.engine.weights import ModelReader

# Steps after which adapters and the optimizer's state become durable; more where a run would have too many such stops.
_CHECKPOINT_STEPS = 10
_MOST_CHECKPOINTS = 1000
_CURVE_POINTS = 40
_BETAS = (0.9, 0.95)
# The norm over all adapters to which a gradient is shortened.
_LARGEST_NORM = 1.0

# Given a batch's micro-batches of tokens: for each, the sum of the loss over some of its predicted positions.
Objective = Callable[[Sequence[Tensor]], Sequence[Loss]]


class ResidentModel:
    """A model with all of its weights on the device, in the storage dtype's values."""

    def __init__(self, model: ModelReader, device: torch.device, dtype: torch.dtype) -> None:
        self.skeleton = Skeleton(model.config, dtype)
        self.device = device
        self.skeleton.load_outer(model.tensor, device, model.storage_dtype)
        for index in range(self.skeleton.num_blocks):
            self.skeleton.put_from(
                lambda name: model.tensor(name).to(model.storage_dtype), self.skeleton.block_names(index), device
            )

    @torch.no_grad()
    def run(self, tokens_BT: Tensor, entering: list[list[Tensor]] | None = None) -> BlockForward:
        """The forward after its last block; `entering` is given what entered each block in each micro-batch."""
        forward = BlockForward(self.skeleton, tokens_BT, self.device)
        for index in range(self.skeleton.num_blocks):
            if entering is not None:
                entering.append(list(forward.states))
            for micro_batch in range(len(forward.tokens)):
                forward.keep(micro_batch, forward.call(index, micro_batch))
        return forward

    @torch.no_grad()
    def final(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """What the head reads, of each micro-batch."""
        found = []
        for tokens_BT in tokens:
            forward = self.run(tokens_BT)
            found += [forward.final(micro_batch) for micro_batch in range(len(forward.tokens))]
        return found

    def backward(self, tokens_BT: Tensor, objective: Objective, first: int = 0) -> float:
        """Add the gradients of the mean loss per predicted token to what is trained, from block `first` on, and return
        that loss."""
        entering: list[list[Tensor]] = []
        forward = self.run(tokens_BT, entering)
        predicted = tokens_BT.shape[0] * (tokens_BT.shape[1] - 1)
        total = 0.0
        for micro_batch, loss in enumerate(objective(forward.tokens)):
            leaving_BTH = forward.states[micro_batch].to(self.device)
            mean = _divided(loss, predicted)
            value, gradient_BTH = loss_gradient(self.skeleton, forward, micro_batch, leaving_BTH, mean)
            total += value
            for index in reversed(range(first, self.skeleton.num_blocks)):
                entering_BTH = entering[index][micro_batch].to(self.device).requires_grad_(True)
                forward.states[micro_batch] = entering_BTH
                torch.autograd.backward(forward.call(index, micro_batch), gradient_BTH)
                assert entering_BTH.grad is not None
                gradient_BTH = entering_BTH.grad
                entering[index][micro_batch] = gradient_BTH.new_empty(0)
        return total


def _divided(loss: Loss, count: int) -> Loss:
    return lambda logits_PV, part: loss(logits_PV, part) / count


class Steps:
    """AdamW over adapters, with its schedule, and its state as tensors."""

    def __init__(self, parameters: list[nn.Parameter], config: Training) -> None:
        self._parameters = parameters
        self._config = config
        self._optimizer = torch.optim.AdamW(parameters, betas=_BETAS, weight_decay=0.0)
        for parameter in parameters:
            # An expert that a batch does not reach has a gradient of zero, not none, so that all have a state.
            parameter.grad = torch.zeros_like(parameter)

    def take(self, step: int, loss: float, where: str = "") -> None:
        """Step `step`, counted from 0, along the gradients, which are zero afterwards. Raises TrainingDiverged."""
        norm = nn.utils.clip_grad_norm_(self._parameters, _LARGEST_NORM)
        if not math.isfinite(loss) or not bool(norm.isfinite()):
            raise TrainingDiverged(
                f"In step {step + 1} of {self._config.steps}{where} the loss is {loss:g} and its gradient's norm "
                f"{float(norm):g}. Lower learning_rate, or with dtype bfloat16 try float32.",
                field="learning_rate",
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, self._config)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)

    def state(self) -> list[Tensor]:
        """The parameters and the optimizer's moments."""
        moments = [self._optimizer.state[parameter] for parameter in self._parameters]
        parameters = [parameter.detach() for parameter in self._parameters]
        return parameters + [moment[name] for name in ("exp_avg", "exp_avg_sq") for moment in moments]

    @torch.no_grad()
    def restore(self, step: int, state: Sequence[Tensor]) -> None:
        """What `state` gave after so many steps."""
        count = len(self._parameters)
        for index, parameter in enumerate(self._parameters):
            parameter.copy_(state[index])
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": state[count + index].clone(),
                "exp_avg_sq": state[2 * count + index].clone(),
            }


def learning_rate(step: int, config: Training) -> float:
    """Rises along a line, then falls along half a cosine; step 0 is not at zero, nor is the last."""
    rising = int(config.warmup * config.steps)
    if step < rising:
        return config.learning_rate * (step + 1) / (rising + 1)
    share = (step - rising) / (config.steps - rising)
    return config.learning_rate * (1 + math.cos(math.pi * share)) / 2


def checkpoint_steps(config: Training) -> int:
    return max(_CHECKPOINT_STEPS, -(-config.steps // _MOST_CHECKPOINTS))


def curve(losses: Sequence[float]) -> tuple[LossPoint, ...]:
    """The first step's loss, and the means of equal stretches of the others."""
    points = [LossPoint(step=1, loss=losses[0])]
    stretches = min(_CURVE_POINTS, len(losses) - 1)
    start = 1
    for stretch in range(stretches):
        end = 1 + (len(losses) - 1) * (stretch + 1) // stretches
        points.append(LossPoint(step=end, loss=math.fsum(losses[start:end]) / (end - start)))
        start = end
    return tuple(points)


def trained_linears(skeleton: Skeleton, config: Training, blocks: Sequence[int]) -> list[str]:
    """The full names of those that get an adapter."""
    return [name for index in blocks for name in skeleton.linear_names(index) if not config.skips(name)]


def check_trained(names: Sequence[str], config: Training) -> None:
    """Raises RecipeUnfit where no linear gets an adapter."""
    if not names:
        raise RecipeUnfit(f"Skipping {', '.join(config.skip)} leaves {config.title} nothing to train.", field="skip")


def train(
    model: ModelReader, work: ModelWork, config: Training, objective: Callable[[], Objective], *, measure: str
) -> tuple[TunedView, StageReport]:
    """Adapters trained on the whole model's output; `objective` is made only where there is a step left to take.

    Raises RecipeUnfit, TrainingDiverged, and Drained between two steps.
    """
    length = checkpoint_steps(config)
    segments = math.ceil(config.steps / length)
    # The checkpoint counts segments of steps as it does blocks, and what enters one is the state of training.
    checkpoint = Checkpoint(work.directory, work.identity, segments, sequential=True)
    names = trained_linears(Skeleton(model.config, torch.float32), config, range(int(model.config.num_hidden_layers)))
    check_trained(names, config)
    work.on_progress(min(len(checkpoint.finished) * length, config.steps), config.steps)
    if len(checkpoint.finished) < segments:
        _train(model, work, config, objective(), checkpoint, names)
    losses = [float(loss) for segment in range(segments) for loss in checkpoint.block(segment).dense("losses")]
    view = TunedView(model, config.alpha / config.rank, dict.fromkeys(names, checkpoint.block(segments - 1)))
    return view, training_report(work, config, losses, measure=measure)


def training_report(work: ModelWork, config: Training, losses: Sequence[float], *, measure: str) -> StageReport:
    points = curve(losses)
    return StageReport(
        stage=work.stage,
        method=config.method,
        summary=f"{config.steps} steps of {config.batch_size} × {config.sequence_length} tokens brought the loss from "
        f"{points[0].loss:.4g} to {points[-1].loss:.4g}.",
        measure=measure,
        losses=points,
        tokens_sha256=TokenBlocks.of(work.tokens_NT).sha256,
    )


def _train(
    model: ModelReader,
    work: ModelWork,
    config: Training,
    objective: Objective,
    checkpoint: Checkpoint,
    names: Sequence[str],
) -> None:
    resident = ResidentModel(model, work.device, work.dtype)
    adapters = Adapters(resident.skeleton, names, config, work.device)
    steps = Steps(adapters.parameters, config)
    # Where the first blocks are skipped, the way back ends before them.
    blocks = range(resident.skeleton.num_blocks)
    lowest = next(index for index in blocks if names[0] in resident.skeleton.linear_names(index))
    length = checkpoint_steps(config)
    first = len(checkpoint.finished) * length
    if state := checkpoint.hidden(len(checkpoint.finished), work.device):
        steps.restore(first, state)
    batches = torch.split(work.tokens_NT, config.batch_size)
    losses: list[float] = []
    with adapters.attached():
        for step in range(first, config.steps):
            if work.should_drain():
                raise Drained
            losses.append(resident.backward(batches[step], objective, lowest))
            steps.take(step, losses[-1])
            done = step + 1
            if done % length == 0 or done == config.steps:
                found = {"losses": torch.tensor(losses, dtype=torch.float64)}
                last = done == config.steps
                checkpoint.save(
                    step // length,
                    found | adapters.tensors() if last else found,
                    {},
                    (),
                    None if last else steps.state(),
                )
                losses = []
            work.on_progress(done, config.steps)
