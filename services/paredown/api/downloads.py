"""Bytes of a file by HTTP's rules: ranges, conditions, and a stream that breaks rather than end short."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import quote
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote as percent_encoded

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from paredown.api.errors import problem, request_id_of
from paredown.api.http import matches
from paredown.api.openapi import header
from paredown.core.errors import RangeUnsatisfiable, StorageUnavailable
from paredown.core.storage import ObjectStore

_BYTES = {"application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}}
# What `serve` answers, but for problems, as OpenAPI has it.
SERVED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The whole file.",
        "content": _BYTES,
        "headers": {"ETag": header("The file's SHA-256, in quotes."), "Accept-Ranges": header("`bytes`")},
    },
    206: {
        "description": "The range that was asked for.",
        "content": _BYTES,
        "headers": {"Content-Range": header("Which bytes of how many.")},
    },
    304: {"description": "You have it already."},
}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class StoredFile:
    """A file in the store. `etag` is strong: equal means the same bytes."""

    key: str
    path: str
    size_bytes: int
    etag: str


def serve(request: Request, store: ObjectStore, file: StoredFile) -> Response:
    """200, 206, 304 or 416. Several ranges in one request are answered with the whole file, as RFC 9110 allows."""
    headers = {
        "ETag": file.etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": _disposition(PurePosixPath(file.path).name),
    }
    if matches(request.headers.get("if-none-match"), file.etag):
        return Response(status_code=304, headers=headers)
    start, length, status = 0, file.size_bytes, 200
    wanted = _wanted(request.headers.get("range", ""))
    # If-Range: the rest is only of use to someone who holds the start of these very bytes.
    if wanted and request.headers.get("if-range", file.etag) == file.etag:
        found = _resolve(*wanted, file.size_bytes)
        if found is None:
            return problem(
                RangeUnsatisfiable(f"{file.path} has {file.size_bytes} bytes; the range begins behind its end."),
                request_id_of(request),
                headers={"Content-Range": f"bytes */{file.size_bytes}"},
            )
        start, length = found
        status = 206
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{file.size_bytes}"
    headers["Content-Length"] = str(length)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    chunks = _exactly(store.read_range(file.key, start, length), length)
    return StreamingResponse(chunks, status, headers, media_type="application/octet-stream")


def _wanted(header: str) -> tuple[int | None, int | None] | None:
    """(first, last) of a single range; None for anything else, which is passed over."""
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None:
        return None
    first, last = (int(part) if part else None for part in match.groups())
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        return None
    return first, last


def _resolve(first: int | None, last: int | None, size: int) -> tuple[int, int] | None:
    """(start, length) in a file of `size` bytes, or None where it has no such bytes."""
    if first is None:
        length = min(last or 0, size)
        return (size - length, length) if length else None
    end = size - 1 if last is None else min(last, size - 1)
    return (first, end - first + 1) if first < size else None


def _exactly(chunks: Iterator[bytes], length: int) -> Iterator[bytes]:
    """An answer that announced its length must not end early without a word."""
    sent = 0
    for chunk in chunks:
        sent += len(chunk)
        yield chunk
    if sent != length:
        raise StorageUnavailable(f"The store gave {sent} of {length} bytes.")


def _disposition(name: str) -> str:
    plain = name.encode("ascii", "replace").decode()
    return f"attachment; filename=\"{quote(plain)}\"; filename*=UTF-8''{percent_encoded(name, safe='')}"
