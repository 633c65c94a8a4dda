"""Prefill and decode speed of base and artifact, measured in alternation in one run.

Each model lies in its own clean process; they take turns, so that whatever else the machine does meets both alike. What
counts is the median over the turns, after one turn of warming up; the spread is the middle half of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import Literal, TypeVar

from paredown.contracts.report import BatchSpeed, Energy, Speed, Spread
from paredown.engine.evaluation.energy import Meter, meter_of
from paredown.engine.runtimes import RuntimeProcess

Role = Literal["base", "artifact"]
T = TypeVar("T")


@dataclass(frozen=True)
class SpeedSettings:
    """Sizes of one turn, short enough for a job on two cores: about a second each for a model of 135 M parameters.

    A batch's turn reads `sequences` prompts of `batch_prompt_tokens` and decodes `batch_new_tokens` of each at once.
    """

    prompt_tokens: int = 128
    new_tokens: int = 16
    repeats: int = 5
    sequences: int = 8
    batch_prompt_tokens: int = 8
    batch_new_tokens: int = 8
    batch_repeats: int = 3

    def within(self, context: int) -> "SpeedSettings":
        """The same, or what fits a model of a short context."""
        new_tokens = max(1, min(self.new_tokens, context // 4))
        prompt_tokens = max(1, min(self.prompt_tokens, context - new_tokens))
        return replace(
            self,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            batch_prompt_tokens=min(self.batch_prompt_tokens, prompt_tokens),
            batch_new_tokens=min(self.batch_new_tokens, new_tokens),
        )


def measure(processes: dict[Role, RuntimeProcess], prompt: Sequence[int], settings: SpeedSettings) -> dict[Role, Speed]:
    """Time models that are loaded. `prompt` has `settings.prompt_tokens` tokens."""
    assert len(prompt) == settings.prompt_tokens
    times = _in_turns(processes, lambda process: process.time(prompt, settings.new_tokens), settings.repeats)
    # Before a batch takes more: this is what serving one sequence takes.
    peaks = {role: process.peak_memory_bytes() for role, process in processes.items()}
    length = settings.batch_prompt_tokens
    # Each prompt is turned by one token more, so that no runtime shares what it has read among them.
    prompts = [[*prompt[turn % length : length], *prompt[: turn % length]] for turn in range(settings.sequences)]
    batches = _in_turns(
        processes, lambda process: process.time_batch(prompts, settings.batch_new_tokens), settings.batch_repeats
    )
    decoded = settings.sequences * settings.batch_new_tokens
    meter = meter_of(next(iter(processes.values())).device)
    energies = measure_energy(processes, prompts, settings, meter) if meter else {}
    return {
        role: Speed(
            runtime=f"{process.name} {process.version}",
            device=process.device,
            prefill_tokens_per_second=settings.prompt_tokens / median(prefill for prefill, _ in times[role]),
            decode_tokens_per_second=settings.new_tokens / median(decode for _, decode in times[role]),
            prompt_tokens=settings.prompt_tokens,
            new_tokens=settings.new_tokens,
            repeats=settings.repeats,
            load_seconds=process.load_seconds,
            peak_memory_bytes=peaks[role],
            threads=process.threads,
            decode_spread=_spread([settings.new_tokens / decode for _, decode in times[role]]),
            first_token_spread=_spread([prefill for prefill, _ in times[role]]),
            batch=BatchSpeed(
                sequences=settings.sequences,
                decode_tokens_per_second=decoded / median(batches[role]),
                spread=_spread([decoded / seconds for seconds in batches[role]]),
                repeats=settings.batch_repeats,
            ),
            energy=energies.get(role),
        )
        for role, process in processes.items()
    }


def measure_energy(
    processes: dict[Role, RuntimeProcess], prompts: Sequence[Sequence[int]], settings: SpeedSettings, meter: Meter
) -> dict[Role, Energy]:
    """Joules of a decoded token, at batch 1 and of all prompts at once; nothing where the counter shows no difference.

    A runtime reads its prompt before it decodes, and no counter can be read in between: so each turn decodes many
    tokens and then one, and the difference is what the others took.
    """

    def decoding(process: RuntimeProcess, sequences: int, new_tokens: int) -> float | None:
        def joules(count: int) -> float | None:
            if sequences == 1:
                return meter.over(lambda: process.time(prompts[0], count))
            return meter.over(lambda: process.time_batch(prompts, count))

        long, short = joules(1 + new_tokens), joules(1)
        return None if long is None or short is None else (long - short) / (sequences * new_tokens)

    single = _in_turns(processes, lambda process: decoding(process, 1, settings.new_tokens), settings.batch_repeats)
    batch = _in_turns(
        processes,
        lambda process: decoding(process, settings.sequences, settings.batch_new_tokens),
        settings.batch_repeats,
    )
    found: dict[Role, Energy] = {}
    for role in processes:
        of_one, of_batch = _joules(single[role]), _joules(batch[role])
        if of_one is not None:
            found[role] = Energy(
                joules_per_token=of_one,
                batch_joules_per_token=of_batch,
                sequences=settings.sequences,
                repeats=settings.batch_repeats,
                counter=meter.counter,
                covers=meter.covers,
            )
    return found


def _joules(turns: Sequence[float | None]) -> float | None:
    """The median, where every turn was counted and took something."""
    counted = [turn for turn in turns if turn is not None]
    middle = median(counted) if len(counted) == len(turns) else 0.0
    return middle if middle > 0 else None


def _in_turns(
    processes: dict[Role, RuntimeProcess], work: Callable[[RuntimeProcess], T], repeats: int
) -> dict[Role, list[T]]:
    """What each process answers in each turn but the first."""
    answers: dict[Role, list[T]] = {role: [] for role in processes}
    for turn in range(repeats + 1):
        # Who goes first changes each turn as well.
        for role in sorted(processes, reverse=bool(turn % 2)):
            answer = work(processes[role])
            if turn > 0:
                answers[role].append(answer)
    return answers


def _spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(low=values[0], high=values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(low=low, high=high)


def not_faster(speeds: dict[Role, Speed], size_ratio: float) -> str | None:
    """A sentence where the artifact does not decode faster than its base by more than the repeats spread."""
    base, artifact = speeds.get("base"), speeds.get("artifact")
    if base is None or artifact is None or base.decode_spread is None or artifact.decode_spread is None:
        return None
    spread = max(base.decode_spread.width, artifact.decode_spread.width)
    if artifact.decode_tokens_per_second - base.decode_tokens_per_second > spread:
        return None
    return (
        f"{'Smaller but not faster' if size_ratio < 1 else 'Not faster'}: it decodes "
        f"{artifact.decode_tokens_per_second:.1f} tokens/s in {artifact.runtime} on {artifact.device}, the base "
        f"{base.decode_tokens_per_second:.1f} in {base.runtime}; the middle half of the repeats spans up to "
        f"{spread:.1f} tokens/s."
    )
