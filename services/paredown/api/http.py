"""What every request passes: an id, the access log, the figures; a bounded, readable body; conditional answers."""

import json
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import uuid4

import structlog
from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from sse_starlette.sse import SendTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paredown.api.auth import authenticate
from paredown.api.errors import problem
from paredown.api.metrics import Metrics
from paredown.contracts.job import content_hash
from paredown.core.errors import InternalError, MediaTypeUnsupported, PayloadTooLarge, RequestMalformed

JSON_LIMIT_BYTES = 2**20
MAX_JSON_DEPTH = 32

_log = structlog.get_logger("pare.api")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# A length with more digits is not worth parsing.
_MAX_DIGITS = 18
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


class RequestContext:
    """Outermost of our middleware: request id, access log, metrics, and the answer to a bug."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        structlog.contextvars.clear_contextvars()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                if unreadable := _unreadable_address(scope):
                    await problem(unreadable, request_id)(scope, receive, send_with_id)
                else:
                    await self.app(scope, receive, send_with_id)
            except ClientDisconnect:
                _log.info("client_left", path=scope["path"])
            except SendTimeoutError:
                # A stream whose reader takes nothing; it resumes with Last-Event-ID when it comes back.
                _log.info("stream_reader_stuck", path=scope["path"])
            except Exception:
                _log.exception("request_crashed", method=scope["method"], path=scope["path"])
                if status:
                    # Half an answer is out. Ending it cleanly would make it look whole, so the connection must break.
                    raise
                bug = InternalError("Something went wrong on our side; the log has the details under this request id.")
                await problem(bug, request_id)(scope, receive, send_with_id)
            finally:
                self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        template = getattr(route, "path_format", None) or getattr(route, "path", None) or "unmatched"
        self.metrics.observe(scope["method"], template, status, seconds)
        if scope["path"] in _QUIET_PATHS:
            return
        principal = scope["state"].get("principal")
        # The query stays out of the log: signed addresses carry their signature there.
        _log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            route=template,
            status=status,
            milliseconds=round(seconds * 1000, 1),
            project=principal.project if principal else None,
            job_id=scope["state"].get("job_id") or scope.get("path_params", {}).get("job_id"),
        )


def _request_id(given: str | None) -> str:
    return given if given and _REQUEST_ID.fullmatch(given) else uuid4().hex


def _unreadable_address(scope: Scope) -> RequestMalformed | None:
    """PostgreSQL's text holds no NUL, and a path or query that is not UTF-8 means nothing."""
    raw = (
        unquote_to_bytes(scope.get("raw_path") or scope["path"].encode())
        + b"?"
        + unquote_to_bytes(scope["query_string"])
    )
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return RequestMalformed("The address is not UTF-8 once its % escapes are resolved.")
    return RequestMalformed("The address holds a NUL character.") if "\0" in text else None


class ApiRoute(APIRoute):
    """Checks the key before anything of the body is read, then the body before FastAPI parses it.

    FastAPI alone parses first: a stranger could make us read a megabyte, and would be told of his JSON's mistakes.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            request.state.principal = await run_in_threadpool(authenticate, request)
            if self.body_field is not None:
                request = await _with_checked_json(request)
            return await handle(request)

        return guarded


async def _with_checked_json(request: Request) -> Request:
    body = await read_bounded(request, JSON_LIMIT_BYTES)
    if body:
        media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if media_type != "application/json":
            raise MediaTypeUnsupported(
                f"This takes application/json, not {media_type or 'a body without Content-Type'}."
            )
        _check_json(body)

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, replay)


async def read_bounded(request: Request, limit_bytes: int) -> bytes:
    """The body. Raises PayloadTooLarge as soon as it is known to be longer."""
    receive = bounded_stream(request, limit_bytes)
    chunks = []
    while (message := await receive())["type"] == "http.request":
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)
    raise ClientDisconnect


def bounded_stream(request: Request, limit_bytes: int) -> Receive:
    """The request's `receive` that raises PayloadTooLarge as soon as the body is known to be longer."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and (len(announced) > _MAX_DIGITS or int(announced) > limit_bytes):
        raise too_large(limit_bytes)
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > limit_bytes:
            raise too_large(limit_bytes)
        return message

    return receive


def too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body may be at most {limit_bytes:,} bytes.")


def _check_json(body: bytes) -> None:
    """Refuses what no field may hold, whatever its schema. Malformed JSON is left to FastAPI, which says where."""
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RequestMalformed(f"The body is not UTF-8 (byte {error.start}).") from error
    except json.JSONDecodeError:
        return
    except (RecursionError, ValueError) as error:
        if isinstance(error, RecursionError):
            raise _too_deep() from error
        raise RequestMalformed(f"The body is not JSON: {error}.") from error
    _check_texts(value)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _too_deep() -> RequestMalformed:
    return RequestMalformed(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.")


def _check_texts(value: Any, depth: int = 0) -> None:
    if depth > MAX_JSON_DEPTH:
        raise _too_deep()
    if isinstance(value, str):
        if "\0" in value:
            raise RequestMalformed("The body holds a NUL character (\\u0000).")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RequestMalformed("The body holds half of a surrogate pair (\\ud800 to \\udfff).") from error
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_texts(key, depth + 1)
            _check_texts(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item, depth + 1)


def etag_of(view: BaseModel) -> str:
    return f'"{content_hash(view.model_dump(mode="json"))[:32]}"'


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-Match or If-None-Match header names this ETag."""
    if header is None:
        return False
    names = [name.strip().removeprefix("W/") for name in header.split(",")]
    return "*" in names or etag in names


def tagged(view: BaseModel, if_none_match: str | None, etag: str | None = None) -> Response:
    """The view with its ETag, or 304 when the caller has it already."""
    etag = etag or etag_of(view)
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(view.model_dump_json(), headers=headers, media_type="application/json")
