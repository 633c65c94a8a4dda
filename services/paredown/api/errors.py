"""Every failure as application/problem+json (RFC 9457): ours, FastAPI's, the database's, and bugs."""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, cast

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response

from paredown.api.openapi import PROBLEM_MEDIA_TYPE, methods_of
from paredown.contracts.service import FieldProblem, Problem
from paredown.core.errors import (
    DatabaseBusy,
    DatabaseUnavailable,
    Forbidden,
    InternalError,
    MediaTypeUnsupported,
    MethodNotAllowed,
    NotFound,
    PareError,
    PayloadTooLarge,
    RequestInvalid,
    RequestMalformed,
    Unauthenticated,
)

_log = structlog.get_logger("pare.api")

# What the framework itself raises, by status.
_BY_STATUS: dict[int, type[PareError]] = {
    error.status: error
    for error in (RequestMalformed, Unauthenticated, Forbidden, NotFound, MethodNotAllowed, PayloadTooLarge)
} | {415: MediaTypeUnsupported, 422: RequestInvalid}

# SQLSTATEs of a query that lost against a timeout or another transaction: lock_not_available, query_canceled,
# serialization_failure, deadlock_detected.
_BUSY_STATES = frozenset({"55P03", "57014", "40001", "40P01"})
_MAX_FIELD_PROBLEMS = 20


def problem(
    error: PareError,
    request_id: str | None,
    *,
    errors: Iterable[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = Problem(
        type=f"urn:pare:problem:{error.code}",
        title=error.code.replace("_", " ").capitalize(),
        status=error.status,
        code=error.code,
        detail=error.detail,
        field=error.field,
        errors=tuple(errors),
        request_id=request_id,
    )
    extra = dict(headers or {})
    if error.status == HTTPStatus.UNAUTHORIZED:
        extra["WWW-Authenticate"] = 'Bearer realm="pare"'
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        extra["Retry-After"] = "2"
    return Response(body.model_dump_json(), error.status, extra, PROBLEM_MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """The handlers. What none of them takes is a bug; `http.RequestContext` answers it with internal_error."""
    app.add_exception_handler(PareError, _pare_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(PoolTimeout, _database_error)


def request_id_of(request: Request) -> str | None:
    return getattr(request.state, "request_id", None)


async def _pare_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PareError)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.warning("request_failed", code=error.code, detail=error.detail, exc_info=error.__cause__)
    return problem(error, request_id_of(request))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = [detail for detail in error.errors() if not _is_aftermath(detail)]
    if details[0]["type"] == "json_invalid":
        reason = details[0].get("ctx", {}).get("error", "it ends too early")
        return problem(
            RequestMalformed(f"The body is not JSON: {reason} (at character {details[0]['loc'][-1]})."),
            request_id_of(request),
        )
    problems = [_field_problem(detail, error.body) for detail in details[:_MAX_FIELD_PROBLEMS]]
    first = problems[0]
    sentence = f"{first.field}: {first.detail}" if first.field else first.detail
    return problem(RequestInvalid(sentence, field=first.field), request_id_of(request), errors=problems)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, RequestMalformed if error.status_code < 500 else InternalError)
    headers = dict(error.headers or {})
    sentence = str(error.detail)
    if kind is NotFound:
        sentence = f"There is nothing at {request.url.path}; the routes are listed at /docs."
    elif kind is MethodNotAllowed:
        allowed = ", ".join(methods_of(request.app, request.url.path))
        headers["Allow"] = allowed
        sentence = f"{request.method} is not possible at {request.url.path}; it takes {allowed}."
    elif kind is RequestMalformed:
        sentence = f"The request cannot be read: {sentence[:1].lower()}{sentence[1:].rstrip('.')}."
    return problem(kind(sentence), request_id_of(request), headers=headers)


async def _database_error(request: Request, error: Exception) -> Response:
    """Timeouts and lost connections are answered; anything else the database says is a bug of ours."""
    if isinstance(error, PoolTimeout) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return problem(
            DatabaseUnavailable("The database cannot be reached; try again in a moment."), request_id_of(request)
        )
    if getattr(getattr(error, "orig", None), "sqlstate", None) in _BUSY_STATES:
        return problem(
            DatabaseBusy("The database is busy and nothing was changed; send the request again."),
            request_id_of(request),
        )
    raise error


def _is_aftermath(detail: Mapping[str, Any]) -> bool:
    """pydantic counts only a list's valid items: a list with unfit ones is then also "too short"."""
    return detail["type"] == "too_short" and bool(len(detail["input"]) >= detail["ctx"]["min_length"])


def _field_problem(detail: Mapping[str, Any], body: Any) -> FieldProblem:
    """pydantic's finding as a path that a user knows from the request, and a sentence."""
    location = list(detail["loc"])
    place = location.pop(0) if location else "body"
    if place == "body":
        location = _without_markers(location, body, keep_last=detail["type"] == "missing")
        field = ".".join(map(str, location)) or None
    else:
        # query, path and header parameters have one name.
        field = str(location[0]) if location else None
        if field and place == "header":
            field = field.title()
    return FieldProblem(field=field, detail=_sentence(detail))


def _without_markers(location: list[Any], body: Any, *, keep_last: bool) -> list[Any]:
    """pydantic puts a union's tag into its paths (recipe.0.gptq.bits); the request has no such key."""
    path: list[Any] = []
    here = body
    for index, part in enumerate(location):
        last = index == len(location) - 1
        in_object = isinstance(here, dict) and part in here
        in_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if in_object or in_list:
            here = here[part]
        elif not (keep_last and last):
            continue
        path.append(part)
    return path


def _sentence(detail: Mapping[str, Any]) -> str:
    kind, context = detail["type"], cast("dict[str, Any]", detail.get("ctx") or {})
    if kind == "missing":
        return "This is needed."
    if kind == "extra_forbidden":
        return "There is no such field; check its spelling."
    if kind == "union_tag_not_found":
        return f"Say which method with the field {context.get('discriminator', 'method')}."
    if kind == "union_tag_invalid":
        return f"There is no method {context.get('tag')!r}; choose one of {context.get('expected_tags')}."
    message = re.sub(r"^Value error, ", "", str(detail["msg"]))
    message = re.sub(r"^Input should (be|have|match)", r"This must \1", message)
    message = re.sub(r"^(String|Tuple|List|Value|Data|Decimal|URL) should", r"This must", message)
    return message if message.endswith((".", "!", "?")) else f"{message}."
