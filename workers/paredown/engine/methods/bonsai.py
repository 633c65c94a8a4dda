"""Bonsai: drop the MLP channels and heads that sampled sub-models miss least, by forward passes alone.

Paper: Dery et al., "Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes", arXiv:2402.05406. A unit
is an MLP channel, or a key-value head with the query heads that share it. Its prior is the norm of what it adds to the
hidden states: of its activations times its weights, where the channels of a head are taken as uncorrelated. Where D of
a block's units go, those of least prior, 2 D of them, may go; a sub-model goes without D, drawn with a probability of
the largest prior less a unit's own, and a second one goes without the others. Ridge
regression of the sub-models' losses on what they miss, centred on the prior, says what each unit is worth, and those of
least worth go.
The regression is of the difference between the two of a pair, which leaves out what any loss of D units costs; it is in
closed form, over all blocks at once, a worth may stray from the prior in proportion to it, and how far is what leaves
the least error on pairs that were left out, where the paper fits each module alone by gradient descent, with the
penalty of the best rank correlation. Where no penalty does better than the prior alone, the prior alone decides.
The paper goes in rounds of 5 % with 200 sub-models each, may give each block a width of its own, and heals the model
afterwards. Here there are as many rounds as the stage says, every block loses the same number, because stock runtimes
have one width for all blocks, and this stage alone does not heal.
Shapes: L blocks, N units of one kind in a block, P pairs of sub-models, F units that may go in all blocks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from paredown.contracts.pieces import SUBMODELS_AT_ONCE
from paredown.contracts.recipes import Bonsai
from paredown.contracts.report import StageReport
from paredown.engine.architectures import Skeleton
from paredown.engine.checkpoint import Checkpoint
from paredown.engine.depth import check_finite
from paredown.engine.errors import Drained
from paredown.engine.evaluation.perplexity import summed_loss
from paredown.engine.forward import BlockForward
from paredown.engine.method import ModelMethod, ModelWork
from paredown.engine.weights import ModelReader
from paredown.engine.width import Widths, WidthView, narrowed

# Penalties of the ridge, over the mean square of a pair's row.
_PENALTIES = [10.0**power for power in range(-3, 4)]
# Of its prior a unit keeps this much, whatever sub-models say.
_LEAST_FACTOR = 0.01
# The linear that reads a kind's units: what one adds to the hidden states is its columns.
READERS = {"channels": "mlp.down_proj", "heads": "self_attn.o_proj"}

# By kind, LN: True where a unit is there.
Present = Mapping[str, Tensor]


def least(prior_N: Tensor, present_N: Tensor, count: int) -> Tensor:
    """The numbers of the `count` present units of least prior; fewer where fewer are present."""
    hidden_N = prior_N.masked_fill(~present_N, math.inf)
    return hidden_N.topk(min(count, int(present_N.sum())), largest=False).indices


def draw(prior_N: Tensor, present_N: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What the two sub-models of a pair miss, True in N: `count` of those that may go, and the rest of them."""
    may_go = least(prior_N, present_N, 2 * count)
    chance = prior_N[present_N].max() - prior_N[may_go]
    # The one of largest prior can be drawn too, where there is hardly another.
    drawn = torch.multinomial(chance + 1e-6 * chance.max() + 1e-30, count, generator=generator)
    first_N = torch.zeros_like(present_N)
    first_N[may_go[drawn]] = True
    second_N = torch.zeros_like(present_N)
    second_N[may_go] = True
    return first_N, second_N & ~first_N


def worth(missing_PF: Tensor, prior_F: Tensor, loss_P: Tensor) -> tuple[Tensor, bool]:
    """(each unit's worth, in prior's unit, whether the regression says more than the prior alone).

    `missing_PF` is 1 where a pair's first sub-model misses a unit, −1 where its second does; `loss_P` by how much more
    the first one's loss is.
    """
    row_PF = missing_PF.double() * prior_F.double()
    expected_P = row_PF.sum(1)
    gram_PP = row_PF @ row_PF.T
    loss_P = loss_P.double()
    # A unit of the prior in losses: as the prior's own predictions fit them; and where the two of each pair miss about
    # the same of it, so that these say little, as if units were worth their prior, more or less as much again.
    energy = expected_P.square().sum()
    fitted = float((loss_P @ expected_P / energy).clamp(min=0)) if energy > 0 else 0.0
    sized = float(loss_P.norm() / (energy + gram_PP.trace()).sqrt())
    if not 0 < sized < math.inf:
        return prior_F.double(), False
    # What the prior alone leaves unexplained.
    smallest, dual_P = float((loss_P - fitted * expected_P).square().sum()), torch.zeros_like(loss_P)
    for penalty in _PENALTIES:
        inverse_PP = torch.linalg.inv(gram_PP + penalty * gram_PP.trace() / len(gram_PP) * torch.eye(len(gram_PP)))
        for scale in (fitted, sized):
            if scale == 0:
                continue
            solved_P = inverse_PP @ (loss_P / scale - expected_P)
            # A pair's error in the fit without it.
            error = float((scale * solved_P / inverse_PP.diagonal()).square().sum())
            if error < smallest * (1 - 1e-9):
                smallest, dual_P = error, solved_P
    # What adds nothing is worth nothing, and goes before what a few pairs speak against.
    factor_F = (1 + row_PF.T @ dual_P).clamp(min=_LEAST_FACTOR)
    return prior_F.double() * factor_F, bool(dual_P.any())


class _Passes:
    """Forward passes in which several sub-models run side by side; each block of each pass is durable.

    They come in the same order in every run, so their place tells which they are.
    """

    def __init__(self, model: ModelReader, work: ModelWork, config: Bonsai) -> None:
        self._model = model
        self._work = work
        self._skeleton = Skeleton(model.config, work.dtype)
        self.num_blocks = self._skeleton.num_blocks
        self._few_NT = work.tokens_NT[: config.samples]
        waves = -(-config.submodels // SUBMODELS_AT_ONCE)
        # What a block of each pass costs, in sequences.
        self._costs = config.rounds * [
            len(work.tokens_NT),
            *[
                min(SUBMODELS_AT_ONCE, config.submodels - wave * SUBMODELS_AT_ONCE) * len(self._few_NT)
                for wave in range(waves)
            ],
        ]
        steps = len(self._costs) * self.num_blocks
        self._checkpoint = Checkpoint(work.directory, work.identity, steps, sequential=True)
        self._started = 0
        self._has_outer = False
        self._report()

    def priors(self, present: Present) -> dict[str, Tensor]:
        """By kind, LN: the norm of what each unit adds to the hidden states, over all calibration tokens."""

        def observe(block: nn.Module, run: Callable[[], None]) -> dict[str, Tensor]:
            with _energies(block) as energy_I:
                run()
            return {kind: _added(_reader(block, kind), energy_I[kind], present[kind]) for kind in READERS}

        start = self._run(self._work.tokens_NT, [present], observe)
        shards = [self._checkpoint.block(start + block) for block in range(self.num_blocks)]
        return {kind: torch.stack([shard.dense(kind) for shard in shards]) for kind in READERS}

    def losses(self, submodels: Sequence[Present]) -> list[float]:
        """The mean loss per predicted token of each, on the first `samples` sequences."""
        found: list[float] = []
        for first in range(0, len(submodels), SUBMODELS_AT_ONCE):
            start = self._run(self._few_NT, submodels[first : first + SUBMODELS_AT_ONCE], None)
            found += self._checkpoint.block(start + self.num_blocks - 1).dense("losses").tolist()
        return found

    def _run(
        self,
        tokens_NT: Tensor,
        submodels: Sequence[Present],
        observe: Callable[[nn.Module, Callable[[], None]], dict[str, Tensor]] | None,
    ) -> int:
        """One pass; the number of its first block in the checkpoint. Raises NanFound, and Drained between blocks."""
        work, skeleton = self._work, self._skeleton
        start = self._started * self.num_blocks
        self._started += 1
        forward: BlockForward | None = None
        states: list[list[Tensor]] = []
        for index in range(self.num_blocks):
            step = start + index
            if step in self._checkpoint.finished:
                continue
            if work.should_drain():
                raise Drained
            with torch.inference_mode():
                if forward is None:
                    if not self._has_outer:
                        skeleton.load_outer(self._model.tensor, work.device, self._model.storage_dtype)
                        self._has_outer = True
                    forward = BlockForward(skeleton, tokens_NT, work.device)
                    saved = self._checkpoint.hidden(step, forward.states_device) if index else None
                    states = _of_each(saved, forward, len(submodels))
                dtype = self._model.storage_dtype
                skeleton.put_from(
                    lambda name: self._model.tensor(name).to(dtype),  # noqa: B023
                    skeleton.block_names(index),
                    work.device,
                )
                found: dict[str, Tensor] = {}
                for number, present in enumerate(submodels):
                    forward.states = states[number]
                    with _without(skeleton.blocks[index], present, index):
                        if observe is None:
                            _through(forward, index, check=False)
                        else:
                            found = observe(
                                skeleton.blocks[index],
                                lambda: _through(forward, index, check=True),  # noqa: B023
                            )
                    states[number] = forward.states
                skeleton.release_block(index)
                is_last = index + 1 == self.num_blocks
                if is_last and observe is None:
                    found = {"losses": torch.stack([_loss(skeleton, forward, own) for own in states])}
            # Nothing enters the next pass, but a file without tensors cannot be read.
            hidden = [torch.zeros(1)] if is_last else [state for own in states for state in own]
            self._checkpoint.save(step, found, {}, (), hidden)
            self._report()
        return start

    def _report(self) -> None:
        done = len(self._checkpoint.finished)
        passed, blocks = divmod(done, self.num_blocks)
        spent = sum(self._costs[:passed]) * self.num_blocks + (blocks * self._costs[passed] if blocks else 0)
        self._work.on_progress(spent, sum(self._costs) * self.num_blocks)


def _of_each(saved: list[Tensor] | None, forward: BlockForward, count: int) -> list[list[Tensor]]:
    """What enters a block in each of so many sub-models; without `saved`, what enters the first."""
    if saved is None:
        return [list(forward.states) for _ in range(count)]
    batches = len(forward.tokens)
    return [saved[number * batches : (number + 1) * batches] for number in range(count)]


def _reader(block: nn.Module, kind: str) -> nn.Linear:
    linear = block.get_submodule(READERS[kind])
    assert isinstance(linear, nn.Linear)
    return linear


def _through(forward: BlockForward, index: int, *, check: bool) -> None:
    # What was there stays: sub-models enter the first block with the same states.
    forward.states = list(forward.states)
    for micro_batch in range(len(forward.tokens)):
        leaving_BTH = forward.call(index, micro_batch)
        if check:
            check_finite(leaving_BTH, index)
        forward.keep(micro_batch, leaving_BTH)


def _loss(skeleton: Skeleton, forward: BlockForward, states: list[Tensor]) -> Tensor:
    forward.states = states
    total = sum(
        summed_loss(skeleton, forward.final(micro_batch), tokens_BT.to(forward.device))
        for micro_batch, tokens_BT in enumerate(forward.tokens)
    )
    mean = total / sum(tokens_BT[:, 1:].numel() for tokens_BT in forward.tokens)
    # A sub-model that overflows is as bad as can be: twice as bad as one that knows nothing.
    worst = 2 * math.log(skeleton.config.vocab_size)
    return torch.tensor(min(mean, worst) if math.isfinite(mean) else worst, dtype=torch.float64)


@contextmanager
def _without(block: nn.Module, present: Present, index: int) -> Iterator[None]:
    """The block while some of its units are silent: zero where they enter the linear that reads them."""
    hooks = []
    for kind in READERS:
        if bool(present[kind][index].all()):
            continue
        linear = _reader(block, kind)
        lines = linear.weight.shape[1] // present[kind].shape[1]
        there_I = present[kind][index].repeat_interleave(lines).to(linear.weight)
        hooks.append(linear.register_forward_pre_hook(lambda _linear, given, there_I=there_I: (given[0] * there_I,)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _energies(block: nn.Module) -> Iterator[dict[str, Tensor]]:
    """By kind, the sum of squares of each input of the linear that reads its units."""
    readers = {kind: _reader(block, kind) for kind in READERS}
    energy_I = {kind: torch.zeros(linear.in_features, device=linear.weight.device) for kind, linear in readers.items()}

    def watch(kind: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_linear: nn.Module, given: tuple[Tensor, ...]) -> None:
            energy_I[kind] += given[0].float().square().flatten(0, -2).sum(0)

        return note

    hooks = [linear.register_forward_pre_hook(watch(kind)) for kind, linear in readers.items()]
    try:
        yield energy_I
    finally:
        for hook in hooks:
            hook.remove()


def _added(linear: nn.Linear, energy_I: Tensor, present_LN: Tensor) -> Tensor:
    """Each unit's norm of inputs times that of its columns, over its inputs."""
    square_I = energy_I * linear.weight.float().square().sum(0)
    return square_I.view(present_LN.shape[1], -1).sum(1).sqrt().cpu()


def apply(model: ModelReader, work: ModelWork, config: Bonsai) -> tuple[WidthView, StageReport]:
    """Raises RecipeUnfit, NanFound, Drained."""
    widths = Widths.of(model.config, config)
    # In each round something goes.
    most = max(whole - widths.left[kind] for kind, whole in widths.whole.items())
    config = config.model_copy(update={"rounds": min(config.rounds, most)})
    passes = _Passes(model, work, config)
    blocks = range(passes.num_blocks)
    present = {kind: torch.ones(passes.num_blocks, count, dtype=torch.bool) for kind, count in widths.whole.items()}
    importance: dict[str, Tensor] = {}
    every_loss: list[float] = []
    told = 0
    for turn in range(config.rounds):
        going = {
            kind: int(present[kind][0].sum()) - (whole - (whole - widths.left[kind]) * (turn + 1) // config.rounds)
            for kind, whole in widths.whole.items()
        }
        prior = passes.priors(present)
        importance = importance or prior
        pairs = [
            _pair(prior, present, going, torch.Generator().manual_seed(number)) for number in _numbers(config, turn)
        ]
        losses = passes.losses([submodel for pair in pairs for submodel in pair])
        every_loss += losses
        value, more = _worths(prior, present, going, pairs, torch.tensor(losses, dtype=torch.float64))
        told += more
        for kind, count in going.items():
            for block in blocks:
                may_go = least(prior[kind][block], present[kind][block], 2 * count)
                gone = may_go[value[kind][block][may_go].topk(count, largest=False).indices]
                present[kind][block][gone] = False
    return narrowed(
        model,
        work,
        config,
        widths,
        [{kind: present[kind][block].nonzero().flatten() for kind in READERS} for block in blocks],
        [{kind: importance[kind][block] for kind in READERS} for block in blocks],
        measure="the sum of the norms of what a block's channels and heads add to the hidden states",
        more=f" {len(every_loss)} sub-models had a mean loss of {min(every_loss):.3f} to {max(every_loss):.3f}; in "
        f"{told} of {config.rounds} rounds they told more than the prior alone."
        if every_loss
        else " The prior alone decided.",
    )


def _numbers(config: Bonsai, turn: int) -> range:
    """Of a round's pairs, among all."""
    pairs = config.submodels // 2
    return range(turn * pairs, (turn + 1) * pairs)


def _pair(
    prior: Mapping[str, Tensor], present: Present, going: Mapping[str, int], generator: torch.Generator
) -> tuple[Present, Present]:
    """Two sub-models that miss complementary units, in all blocks at once."""
    first, second = ({kind: present_LN.clone() for kind, present_LN in present.items()} for _ in range(2))
    for kind, count in going.items():
        for block in range(len(present[kind])) if count else ():
            one_N, other_N = draw(prior[kind][block], present[kind][block], count, generator)
            first[kind][block] &= ~one_N
            second[kind][block] &= ~other_N
    return first, second


def _worths(
    prior: Mapping[str, Tensor],
    present: Present,
    going: Mapping[str, int],
    pairs: Sequence[tuple[Present, Present]],
    losses: Tensor,
) -> tuple[dict[str, Tensor], bool]:
    """(by kind, LN: worth of the units that may go; whether the sub-models told more than the prior)."""
    value = {kind: prior_LN.double().clone() for kind, prior_LN in prior.items()}
    if not pairs:
        return value, False
    places, priors, missing = [], [], []
    for kind, count in going.items():
        for block in range(len(present[kind])) if count else ():
            may_go = least(prior[kind][block], present[kind][block], 2 * count)
            places.append((kind, block, may_go))
            # As the paper: what a module's units are worth sums to one.
            total = prior[kind][block][present[kind][block]].double().sum().clamp(min=1e-30)
            priors.append(prior[kind][block][may_go].double() / total)
            missing.append(
                torch.stack(
                    [
                        second[kind][block][may_go].float() - first[kind][block][may_go].float()
                        for first, second in pairs
                    ]
                )
            )
    found_F, more = worth(torch.cat(missing, dim=1), torch.cat(priors), losses[0::2] - losses[1::2])
    parts = torch.split(found_F, [len(may_go) for _, _, may_go in places])
    for (kind, block, may_go), found_N in zip(places, parts, strict=True):
        value[kind][block][may_go] = found_N
    return value, more


METHOD = ModelMethod(config=Bonsai, apply=apply, passes=Bonsai.passes)
