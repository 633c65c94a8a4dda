"""Holding a job: heartbeats in a thread, and the reasons to let go of it.

The lease is judged by our own monotonic clock as well, from before the last heartbeat that the database confirmed. So
a supervisor that was paused, or that lost the database, stops its engine no later than another worker may start one.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from paredown.contracts.job import Phase, Progress
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.errors import LeaseLost
from paredown.core.jobs import Claim
from paredown.core.settings import Settings

log = structlog.get_logger(__name__)

JOIN_SECONDS = 5


class CancelRequested(Exception):
    """A person asked for the job's end."""


class DrainRequested(Exception):
    """This worker is shutting down; the job goes back to the queue."""


class Lease:
    """One claim of one job, kept alive while the context is open."""

    def __init__(
        self,
        database: Database,
        claim: Claim,
        settings: Settings,
        *,
        claimed_at: float,
        draining: Callable[[], bool],
    ) -> None:
        """`claimed_at` is time.monotonic() from before the claim was made."""
        self._database = database
        self._claim = claim
        self._settings = settings
        self._draining = draining
        self._valid_until = claimed_at + settings.lease_seconds
        self._cancel_requested = claim.cancel_requested
        self._lost: str | None = None
        self._progress: Progress | None = None
        self._on_beat: Callable[[], None] | None = None
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def report(self, progress: Progress) -> None:
        """Carried by the next heartbeat, which comes at once when the phase has changed."""
        changed = self._progress is None or self._progress.phase is not progress.phase
        self._progress = progress
        if changed:
            self._wake.set()

    def on_beat(self, call: Callable[[], None] | None) -> None:
        """What to call after each heartbeat that the database confirmed: the engine's tick."""
        self._on_beat = call

    def check(self) -> None:
        """Raises LeaseLost, CancelRequested or DrainRequested. Cheap: call it often."""
        self.check_held()
        if self._cancel_requested:
            raise CancelRequested
        if self.draining and self.phase is not Phase.UPLOAD:
            # An upload is the end of hours of work, and no block boundary lies ahead of it: it is brought to its end.
            raise DrainRequested

    def check_held(self) -> None:
        """Raises LeaseLost when the job is, or may by now be, somebody else's."""
        if self._lost is None and time.monotonic() >= self._valid_until:
            self._lost = "no heartbeat was confirmed for the length of the lease"
        if self._lost is not None:
            raise LeaseLost(f"The lease of job {self._claim.job.id} epoch {self._claim.epoch} is lost: {self._lost}.")

    @property
    def cancel_requested(self) -> bool:
        return self._cancel_requested

    @property
    def draining(self) -> bool:
        return self._draining()

    @property
    def progress(self) -> Progress | None:
        """The last that was reported."""
        return self._progress

    @property
    def phase(self) -> Phase | None:
        return self._progress.phase if self._progress else None

    def stop(self) -> None:
        """No more heartbeats; what is left of the lease still holds."""
        self._stopped.set()
        self._wake.set()
        # A heartbeat that hangs in a lost network is left to its timeout: all it could do is prolong this very lease.
        self._thread.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _beat(self) -> None:
        settings = self._settings
        with structlog.contextvars.bound_contextvars(job_id=str(self._claim.job.id), epoch=self._claim.epoch):
            wait = settings.heartbeat_seconds
            while True:
                self._wake.wait(wait)
                self._wake.clear()
                if self._stopped.is_set() or self._lost is not None:
                    return
                wait = settings.heartbeat_seconds if self._heartbeat() else min(1.0, settings.heartbeat_seconds)

    def _heartbeat(self) -> bool:
        """One heartbeat; False when it was not answered and must be tried again soon."""
        sent_at = time.monotonic()
        try:
            with self._database.transaction() as session:
                cancel = jobs.heartbeat(session, self._claim.job.id, self._claim.epoch, self._progress, self._settings)
        except LeaseLost as error:
            self._lost = error.detail
            return True
        except Exception as error:  # noqa: BLE001 - whatever keeps the database from answering, the lease's end decides
            log.warning("heartbeat_failed", error=str(error), seconds_left=self._valid_until - time.monotonic())
            return False
        self._cancel_requested = self._cancel_requested or cancel
        self._valid_until = sent_at + self._settings.lease_seconds
        if self._on_beat is not None:
            self._on_beat()
        return True
