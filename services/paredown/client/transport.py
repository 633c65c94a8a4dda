"""One HTTP call to the API: the key, the retries, and answers turned into contracts or errors."""

import random
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from paredown.client.errors import UNREACHABLE, PareApiError, from_response

T = TypeVar("T")

MAX_TRIES = 5
# "Not now": too many requests, a proxy without a backend, a restart, or a first create that is still under way.
_BUSY_STATUS = frozenset({429, 502, 503, 504})
_BUSY_CODES = frozenset({"idempotency_key_busy"})


def _user_agent() -> str:
    try:
        return f"paredown/{version('paredown')}"
    except PackageNotFoundError:
        return "paredown"


class Transport:
    """Sends requests. Calls that may be repeated without harm are, with growing pauses."""

    def __init__(
        self,
        base_url: str,
        key: str | None,
        timeout: float,
        *,
        tries: int = MAX_TRIES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.tries = tries
        self.sleep = sleep
        headers = {"User-Agent": _user_agent(), "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.http = httpx.Client(
            base_url=self.base_url, headers=headers, timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0))
        )

    def close(self) -> None:
        self.http.close()

    def call(
        self, method: str, path: str, *, idempotent: bool | None = None, tries: int | None = None, **options: Any
    ) -> httpx.Response:
        """The answer, if it is 2xx or 3xx. Raises PareApiError.

        A call that may not be repeated is tried again only where the server surely did not act on it: it could not
        be connected to, or said 429.
        """
        repeatable = method in ("GET", "HEAD", "DELETE") if idempotent is None else idempotent
        tries = tries or self.tries
        for attempt in range(1, tries + 1):
            try:
                response = self.http.request(method, path, **options)
            except httpx.TransportError as error:
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if attempt == tries or not (repeatable or unsent):
                    raise self.unreachable(error) from error
                self.sleep(pause_seconds(attempt))
                continue
            if not response.is_error:
                return response
            problem = from_response(response)
            busy = response.status_code in _BUSY_STATUS or problem.code in _BUSY_CODES
            if attempt == tries or not busy or not (repeatable or response.status_code == 429):
                raise problem
            self.sleep(pause_seconds(attempt, response.headers.get("retry-after")))
        raise AssertionError("the last try returns or raises")

    def read(self, adapter: TypeAdapter[T], method: str, path: str, **options: Any) -> T:
        """The answer's body as a contract."""
        return parse(adapter, self.call(method, path, **options).content)

    def unreachable(self, error: Exception) -> PareApiError:
        reason = str(error) or type(error).__name__
        return PareApiError(UNREACHABLE, f"The service at {self.base_url} cannot be reached ({reason}).")


def parse(adapter: TypeAdapter[T], content: bytes | str) -> T:
    """Fields that a newer server added are left out, so that an older client goes on working."""
    try:
        return adapter.validate_json(content, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "its body"
        raise PareApiError(
            "answer_unreadable",
            f"The service's answer does not fit this client ({place}: {first['msg']}); "
            "check that the address is Pare's API, and that both are of the same release.",
        ) from error


def pause_seconds(attempt: int, retry_after: str | None = None) -> float:
    """0.25 s doubling to 8 s, or what the server asked if that is more; jitter keeps clients from returning at once."""
    asked = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
    backoff: float = min(8.0, 0.25 * 2 ** (attempt - 1))
    return max(min(asked, 60.0), backoff * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, guards nothing
