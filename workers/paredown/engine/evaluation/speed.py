"""Prefill and decode speed of base and artifact, measured in alternation in one run.

Each model lies in its own clean process; they take turns, so that whatever else the machine does meets both alike. What
counts is the median over the turns, after one turn of warming up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from paredown.contracts.artifact import Speed
from paredown.engine.runtimes import RuntimeProcess

Role = Literal["base", "artifact"]


@dataclass(frozen=True)
class SpeedSettings:
    """Sizes of one turn, short enough for a job on two cores: about a second each for a model of 135 M parameters."""

    prompt_tokens: int = 128
    new_tokens: int = 16
    repeats: int = 5

    def within(self, context: int) -> "SpeedSettings":
        """The same, or what fits a model of a short context."""
        new_tokens = max(1, min(self.new_tokens, context // 4))
        return SpeedSettings(max(1, min(self.prompt_tokens, context - new_tokens)), new_tokens, self.repeats)


def measure(processes: dict[Role, RuntimeProcess], prompt: Sequence[int], settings: SpeedSettings) -> dict[Role, Speed]:
    """Time models that are loaded. `prompt` has `settings.prompt_tokens` tokens."""
    assert len(prompt) == settings.prompt_tokens
    times: dict[Role, list[tuple[float, float]]] = {role: [] for role in processes}
    for turn in range(settings.repeats + 1):
        # Who goes first changes each turn as well.
        for role in sorted(processes, reverse=bool(turn % 2)):
            seconds = processes[role].time(prompt, settings.new_tokens)
            if turn > 0:
                times[role].append(seconds)
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
            peak_memory_bytes=process.peak_memory_bytes(),
            threads=process.threads,
        )
        for role, process in processes.items()
    }
