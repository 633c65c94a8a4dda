"""Jobs in progress, for people: bars on a terminal, plain lines elsewhere. All of it on standard error."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import TypeVar
from uuid import UUID

from pydantic import ValidationError
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from paredown.client import wording
from paredown.client.client import PareClient
from paredown.client.downloads import DownloadProgress
from paredown.client.errors import ExitCode
from paredown.client.output import say, stderr
from paredown.contracts.job import Canary, JobEvent, JobState, JobView, Progress
from paredown.contracts.search import SearchDetails
from paredown.contracts.sweep import SweepDetails

# Without a terminal, a job says something new at most this often within one phase.
LINE_SECONDS = 10.0
# Sweeps and searches have no stream of events of their own.
POLL_SECONDS = 2.0
Many = TypeVar("Many", SweepDetails, SearchDetails)
_STATE_OF_EVENT = {
    "queued": JobState.QUEUED,
    "claimed": JobState.RUNNING,
    "progress": JobState.RUNNING,
    "requeued": JobState.QUEUED,
    "retried": JobState.QUEUED,
    "succeeded": JobState.SUCCEEDED,
    "rejected": JobState.REJECTED,
    "failed": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}


def exit_code(job: JobView) -> ExitCode:
    """What a pipeline is told of a job."""
    match job.state:
        case JobState.REJECTED:
            return ExitCode.REJECTED
        case JobState.FAILED:
            return ExitCode.PROBLEM
        case JobState.CANCELLED:
            return ExitCode.CANCELLED
        case _:
            return ExitCode.OK


class _Remaining(ProgressColumn):
    """The worker's own estimate: it knows the phases, a moving average does not."""

    def render(self, task: Task) -> Text:
        seconds = task.fields.get("eta_seconds")
        if seconds is None or task.finished:
            return Text("")
        return Text(f"{timedelta(seconds=round(seconds))} left", style="dim")


class JobBoard:
    """Shows any number of jobs until it is closed. A context manager."""

    def __init__(self) -> None:
        console = stderr()
        self._live = console.is_terminal
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[what]}"),
            _Remaining(),
            console=console,
        )
        self._tasks: dict[UUID, TaskID] = {}
        self._said: dict[UUID, tuple[str, str, float]] = {}

    def __enter__(self) -> "JobBoard":
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def show(self, job_id: UUID, name: str, state: JobState, progress: Progress | None, note: str = "") -> None:
        if self._live:
            self._draw(job_id, name, state, progress, note)
        else:
            self._tell(job_id, name, state, progress, note)

    def _draw(self, job_id: UUID, name: str, state: JobState, progress: Progress | None, note: str) -> None:
        if job_id not in self._tasks:
            self._tasks[job_id] = self._bars.add_task(name, total=1.0, what="", eta_seconds=None)
        fraction = 1.0 if state in (JobState.SUCCEEDED, JobState.REJECTED) else progress.fraction if progress else 0.0
        what = wording.step(progress) if state is JobState.RUNNING and progress else str(state)
        self._bars.update(
            self._tasks[job_id],
            completed=fraction,
            what=f"{what}  {note}".strip(),
            eta_seconds=progress.eta_seconds if progress and state is JobState.RUNNING else None,
        )

    def _tell(self, job_id: UUID, name: str, state: JobState, progress: Progress | None, note: str) -> None:
        heading = str(state) if state is not JobState.RUNNING or progress is None else str(progress.phase)
        parts = [f"{progress.fraction:.0%}", wording.step(progress)] if state is JobState.RUNNING and progress else []
        if parts and progress and progress.eta_seconds is not None:
            parts.append(f"{wording.duration(progress.eta_seconds)} left")
        line = "  ".join([name, *(parts or [str(state)]), *([note] if note else [])])
        before = self._said.get(job_id)
        now = time.monotonic()
        if before is None or before[0] != heading or (before[1] != line and now - before[2] >= LINE_SECONDS):
            say(line)
            self._said[job_id] = (heading, line, now)


def watch(client: PareClient, job: JobView, on_event: Callable[[JobEvent], None] | None = None) -> JobView:
    """Follow one job to its end, shown on standard error."""
    with JobBoard() as board:

        def follow(event: JobEvent) -> None:
            if on_event:
                on_event(event)
            if found := canary_of(event):
                say(wording.canary(found))
            state = _STATE_OF_EVENT.get(event.type)
            if state is not None:
                board.show(job.id, job.recipe_name, state, progress_of(event))

        return client.wait(job.id, follow)


def follow(what: str, view: Many, again: Callable[[UUID], Many], spoken: Callable[[Many], str]) -> Many:
    """A sweep or a search to its end; a line on standard error whenever it has something new to say."""
    said = ""
    try:
        while True:
            line = f"{view.progress:.0%}  {spoken(view)}"
            if line != said:
                say(line)
                said = line
            if view.state.terminal:
                return view
            time.sleep(POLL_SECONDS)
            view = again(view.id)
    except KeyboardInterrupt:
        say(f"The {what} goes on. Follow it: pare {what} watch {view.id}; stop it: pare {what} cancel {view.id}")
        raise


def progress_of(event: JobEvent) -> Progress | None:
    if event.type != "progress":
        return None
    try:
        return Progress.model_validate(event.data, extra="ignore")
    except ValidationError:
        return None


def canary_of(event: JobEvent) -> Canary | None:
    if event.type != "canary":
        return None
    try:
        return Canary.model_validate(event.data, extra="ignore")
    except ValidationError:
        return None


class DownloadBars(AbstractContextManager["DownloadBars"]):
    """One bar for each file on a terminal; one line for each file elsewhere."""

    def __init__(self, verb: str) -> None:
        from rich.progress import DownloadColumn, TransferSpeedColumn

        console = stderr()
        self._live = console.is_terminal
        self._verb = verb
        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "DownloadBars":
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    @property
    def callback(self) -> DownloadProgress:
        return self._update

    def _update(self, path: str, received: int, total: int) -> None:
        if path not in self._tasks:
            self._tasks[path] = self._bars.add_task(path, total=total)
            if not self._live:
                say(f"{self._verb} {path} ({wording.size(total)})")
        self._bars.update(self._tasks[path], completed=received)
