"""Calls that may block for long, such as a download, without losing sight of whether to go on."""

import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

T = TypeVar("T")

CHECK_SECONDS = 0.1
LINGER_SECONDS = 2.0
RETRY_SECONDS = 0.5


class Abandoned(Exception):
    """Raised inside the call: nobody waits for its result any more."""


def attended(call: Callable[[Callable[[], None]], T], check: Callable[[], None]) -> T:
    """Run `call` in a thread and `check` about ten times a second here; what `check` raises passes through at once.

    `call` is given a function to call between its steps: it raises Abandoned once nobody waits. A call that hangs in
    the network stays behind until its own timeout, and then ends there.
    """
    future: Future[T] = Future()
    abandoned = threading.Event()

    def step() -> None:
        if abandoned.is_set():
            raise Abandoned

    def run() -> None:
        try:
            result = call(step)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            future.set_exception(error)
        else:
            future.set_result(result)

    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(run), name="blocking-call", daemon=True)
    thread.start()
    try:
        while True:
            try:
                return future.result(CHECK_SECONDS)
            except FutureTimeoutError:
                if future.done():
                    # It ended this very moment, or with a timeout of its own.
                    return future.result()
            check()
    except BaseException:
        abandoned.set()
        thread.join(LINGER_SECONDS)
        raise


def retried(
    call: Callable[[], T], errors: type[Exception] | tuple[type[Exception], ...], until: Callable[[], None]
) -> T:
    """Call again and again while it raises one of `errors`, until `until` raises."""
    while True:
        try:
            return call()
        except errors:
            until()
            time.sleep(RETRY_SECONDS)
            until()
