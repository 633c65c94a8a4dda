"""Calls that block, and somebody who may have enough of waiting."""

import threading
import time
from collections.abc import Callable

import pytest

from paredown.worker.blocking import Abandoned, attended, retried


def never() -> None:
    """Nobody has enough."""


def test_the_result_and_the_error_are_the_call_s_own() -> None:
    assert attended(lambda _step: 3, never) == 3
    with pytest.raises(ZeroDivisionError):
        attended(lambda _step: 1 // 0, never)

    def times_out(_step: Callable[[], None]) -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        attended(times_out, never)


def test_whoever_has_enough_does_not_wait_for_a_call_that_hangs() -> None:
    hanging = threading.Event()
    seen: list[str] = []

    def call(step: Callable[[], None]) -> None:
        hanging.wait(30)
        try:
            step()
        except Abandoned:
            seen.append("abandoned")
            raise

    def enough() -> None:
        raise InterruptedError

    started = time.monotonic()
    with pytest.raises(InterruptedError):
        attended(call, enough)
    assert time.monotonic() - started < 10
    hanging.set()
    deadline = time.monotonic() + 10
    while not seen:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_call_is_tried_again_until_somebody_has_enough() -> None:
    tries = iter((ConnectionError(), ConnectionError(), None))

    def call() -> str:
        error = next(tries)
        if error:
            raise error
        return "done"

    assert retried(call, ConnectionError, never) == "done"

    def refused() -> None:
        raise ConnectionError

    def enough() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        retried(refused, ConnectionError, enough)
