"""The dispatcher's loop. It holds no state that matters: it may be killed at any moment, and several may run."""

import threading
import time

import structlog
from celery import Celery

from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.errors import DatabaseUnavailable
from paredown.core.settings import Settings
from paredown.core.storage import ObjectStore
from paredown.core.transport import TRANSPORT_ERRORS, send_hint
from paredown.dispatcher.housekeeping import keep_house
from paredown.dispatcher.searching import advance

log = structlog.get_logger(__name__)

MAX_BACKOFF_SECONDS = 15.0


class Dispatcher:
    """One dispatcher. `turned_at` is time.monotonic() of the last turn that reached the database."""

    def __init__(self, settings: Settings, database: Database, store: ObjectStore, celery: Celery) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._celery = celery
        self._redis_down = False
        self.turned_at = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop. Nothing ends it but that: what fails is logged and tried again."""
        house = threading.Thread(target=self._keep_house, args=(stop,), name="housekeeping", daemon=True)
        house.start()
        failures = 0
        while not stop.is_set():
            try:
                self.turn()
            except DatabaseUnavailable as error:
                # Said once; the next lines are of use only when something changes.
                if failures == 0:
                    log.warning("database_unavailable", error=str(error.__cause__))
                failures += 1
            except Exception:
                log.exception("dispatcher_turn_failed")
                failures += 1
            else:
                if failures:
                    log.info("dispatcher_recovered")
                failures = 0
            backoff = self._settings.dispatch_seconds * 2 ** min(failures, 10)
            stop.wait(min(backoff, max(MAX_BACKOFF_SECONDS, self._settings.dispatch_seconds)))

    def turn(self) -> None:
        """Lost and late jobs first, so that the hints already speak of them. Raises DatabaseUnavailable."""
        with self._database.transaction() as session:
            rescued = jobs.rescue(session, self._settings)
        with self._database.transaction() as session:
            late = jobs.expire_deadlines(session)
        with self._database.transaction() as session:
            due = jobs.due_pools(session)
        if rescued:
            log.warning("leases_expired", jobs=[str(job_id) for job_id in rescued])
        if late:
            log.info("deadlines_exceeded", jobs=[str(job_id) for job_id in late])
        self.turned_at = time.monotonic()
        self._hint(list(due))
        # Last: nobody waits for an optimizer. What it queues is hinted at with the next turn.
        advance(self._database)

    def _hint(self, pools: list[str]) -> None:
        """Redis may be away for as long as it likes: as long as work is due, each turn tries again."""
        try:
            for pool in pools:
                send_hint(self._celery, pool)
        except TRANSPORT_ERRORS as error:
            if not self._redis_down:
                log.warning("redis_unavailable", error=str(error))
            self._redis_down = True
        else:
            if self._redis_down and pools:
                log.info("redis_available")
                self._redis_down = False

    def _keep_house(self, stop: threading.Event) -> None:
        """In a thread of its own: listing a large store takes minutes, and lost jobs do not wait for it."""
        while not stop.is_set():
            keep_house(self._database, self._store, self._settings, stop)
            stop.wait(self._settings.housekeeping_seconds)
