"""What can go wrong for a caller of the API: one exception, with the API's own stable code."""

import json
from enum import IntEnum

import httpx

UNREACHABLE = "service_unreachable"


class PareApiError(Exception):
    """A problem the API named (RFC 9457), or one met on the way to it (`status` is 0 then).

    `code` is stable; docs/errors.md lists the API's. The SDK's own: service_unreachable, answer_unreadable,
    stream_ended, download_incomplete, download_corrupt, target_differs, no_credentials.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int = 0,
        field: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status
        self.field = field
        self.request_id = request_id


def from_response(response: httpx.Response) -> PareApiError:
    """The error in an answer of 4xx or 5xx; a proxy's page without a problem document gets a code of its own."""
    try:
        problem = json.loads(response.content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or not isinstance(problem.get("code"), str):
        return PareApiError(
            f"http_{response.status_code}",
            f"{response.url.host} answered {response.status_code} {response.reason_phrase} without saying why.",
            status=response.status_code,
            request_id=response.headers.get("x-request-id"),
        )
    return PareApiError(
        problem["code"],
        str(problem.get("detail") or problem.get("title") or problem["code"]),
        status=response.status_code,
        field=problem.get("field"),
        request_id=problem.get("request_id") or response.headers.get("x-request-id"),
    )


class ExitCode(IntEnum):
    """What `pare` tells a pipeline; `pare --help` lists them. They never change."""

    OK = 0  # done; the job succeeded
    PROBLEM = 1  # refused by the service, the job failed, or an artifact is damaged
    USAGE = 2  # wrong arguments or a bad recipe file
    REJECTED = 3  # the job missed its budget; the evidence is in the catalogue
    CANCELLED = 4  # the job was cancelled
    UNREACHABLE = 5  # no service is known, or it does not answer
    INTERRUPTED = 130  # Ctrl-C


class CommandFailed(Exception):
    """Ends a command with a sentence for its user; raised by what runs on this machine rather than behind the API."""

    def __init__(
        self, detail: str, *, code: str = "command_failed", field: str | None = None, exit_code: int = ExitCode.PROBLEM
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.field = field
        self.exit_code = exit_code
