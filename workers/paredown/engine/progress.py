"""How far a run is: fractions and the time left over the whole job, and what each part of it took."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from paredown.contracts.job import Phase, Progress
from paredown.engine.errors import Drained

# Fetching comes before the engine and uploading after it; what lies between is the engine's.
ENGINE_STARTS, ENGINE_ENDS = 0.02, 0.97


@dataclass(frozen=True)
class Part:
    """A stretch of the run. `cost` is in any unit that all parts share."""

    phase: Phase
    cost: float
    message: str


class Journey:
    """Reports progress through `parts` in their order, and asks at every step whether to drain."""

    def __init__(
        self, parts: Mapping[str, Part], report: Callable[[Progress], None], should_drain: Callable[[], bool]
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._parts = parts
        self._report = report
        self._should_drain = should_drain
        self._total = sum(part.cost for part in parts.values())
        self._behind = 0.0
        self._current: Part | None = None
        self._started = time.monotonic()
        # What an earlier run had done already took none of this run's time.
        self._inherited = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part and report its start. Raises Drained where that was asked for."""
        self.stop_if_asked()
        self._current = self._parts[name]
        started = time.monotonic()
        self._send(0, None, None)
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)
        self._behind += self._current.cost
        self._current = None

    def step(self, done: int, total: int) -> None:
        """So many of this part's blocks are finished."""
        self._send(done / total, done, total)

    def step_or_stop(self, done: int, total: int) -> None:
        """The same, where stopping between two steps loses nothing but this part. Raises Drained."""
        self.step(done, total)
        if done < total:
            self.stop_if_asked()

    def resumed(self, done: int, total: int) -> None:
        """An earlier run did so much of this part."""
        assert self._current is not None
        self._inherited += self._current.cost * done / total

    def asked_to_stop(self) -> bool:
        return self._should_drain()

    def stop_if_asked(self) -> None:
        if self._should_drain():
            raise Drained

    def _send(self, share: float, block: int | None, num_blocks: int | None) -> None:
        part = self._current
        assert part is not None, "progress outside of any part"
        done = self._behind + part.cost * share
        earned = done - self._inherited
        elapsed = time.monotonic() - self._started
        # The first moments say nothing of the rest.
        known = earned > 0.02 * self._total
        self._report(
            Progress(
                phase=part.phase,
                fraction=ENGINE_STARTS + (ENGINE_ENDS - ENGINE_STARTS) * done / self._total,
                block=block,
                num_blocks=num_blocks,
                eta_seconds=round(elapsed / earned * (self._total - done), 1) if known else None,
                message=part.message,
            )
        )
