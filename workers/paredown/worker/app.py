"""The Celery application of a worker. A hint wakes it; what there is to do stands in the database.

Celery's parent forks one child, which supervises one job at a time. A shutdown of the parent reaches the busy child
through a byte of shared memory.
"""

import logging
import mmap
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

import structlog
from celery import signals

from paredown.core.db import Database
from paredown.core.errors import DatabaseUnavailable
from paredown.core.logs import configure_logging
from paredown.core.settings import get_settings
from paredown.core.storage import open_store
from paredown.core.transport import HINT_TASK, create_celery
from paredown.worker.attempt import Worker
from paredown.worker.supervisor import claim_all

log = structlog.get_logger(__name__)

app = create_celery(get_settings())

# Made before the fork, so that parent and child see the same byte: 1 once this worker shuts down.
_shutting_down = mmap.mmap(-1, 1)
_parent = os.getppid()


@app.task(name=HINT_TASK)  # type: ignore[untyped-decorator]  # Celery has no types
def work(pool: str) -> None:
    """Run the pool's due jobs until none is left. Which jobs, the database says."""
    try:
        with _draining_on_terminate():
            claim_all(_worker(), pool)
    except DatabaseUnavailable as error:
        # The dispatcher sends hints as long as work is due.
        log.warning("hint_dropped", pool=pool, reason=error.detail)


def draining() -> bool:
    """Whether this worker is shutting down, or its parent is gone, so that nobody would take further hints."""
    return _shutting_down[0] != 0 or os.getppid() != _parent


@cache
def _worker() -> Worker:
    """Made in the child: connections do not survive a fork."""
    settings = get_settings()
    return Worker(
        database=Database(settings, pool_size=3),
        store=open_store(settings),
        settings=settings,
        name=f"{socket.gethostname()}:{os.getpid()}",
        draining=draining,
    )


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    _shutting_down[0] = 1


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _know_parent(**_: Any) -> None:
    global _parent
    _parent = os.getppid()


@contextmanager
def _draining_on_terminate() -> Iterator[None]:
    """A signal to the whole group or container reaches the busy child too: it drains, it does not die.

    Not from the start of the child: the pool sets handlers of its own after it.
    """

    def on_terminate(_number: int, _frame: FrameType | None) -> None:
        _shutting_down[0] = 1
        # A child that takes no more work is of no use: the parent shuts down too, if it was not told already.
        os.kill(_parent, signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _log_as_we_do(**_: Any) -> None:
    """Connected, so that Celery leaves logging alone."""
    configure_logging(get_settings(), "worker")
    # A line for each hint says nothing: what the hints lead to is logged by the supervisor.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
