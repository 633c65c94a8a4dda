"""Uploaded text: streamed to disk, hashed on the way, checked to be text, then put into the store."""

import codecs
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from paredown.api.http import too_large
from paredown.contracts.tasks import TASKS
from paredown.core.errors import TextUnusable

CHUNK_BYTES = 2**20
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Upload:
    """A checked text on the local disk."""

    path: Path
    sha256: str
    size_bytes: int


def receive(source: BinaryIO, path: Path, filename: str, limit_bytes: int) -> Upload:
    """Copy an upload to `path`. Raises PayloadTooLarge, or TextUnusable with the place to blame."""
    digest, size = hashlib.sha256(), 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    blank = True
    with path.open("wb") as target:
        while chunk := source.read(CHUNK_BYTES):
            try:
                text = decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(size + error.start) from error
            if "\0" in text:
                raise TextUnusable("The file holds NUL characters, so it is not text.", field="file")
            blank = blank and not text.strip("\ufeff \t\r\n")
            size += len(chunk)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            digest.update(chunk)
            target.write(chunk)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(size) from error
    if blank:
        raise TextUnusable("The file holds no text.", field="file")
    _check_json_lines(path, must=filename.lower().endswith(_JSON_LINES))
    return Upload(path, digest.hexdigest(), size)


def _not_utf8(position: int) -> TextUnusable:
    return TextUnusable(f"The file is not UTF-8 text (near byte {position}); save it as UTF-8.", field="file")


def _check_json_lines(path: Path, *, must: bool) -> None:
    """A file is JSON lines by its name, or when its first line is an object with a `text` field.

    Or its lines are rows of a task, of which a job checks every field when it reads them.
    """
    as_rows = None
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip(b"\xef\xbb\xbf \t\r\n"):
                continue
            value, problem = _parsed(line)
            if as_rows is None:
                as_rows = _is_task_row(value)
            if problem is None and not as_rows:
                problem = _text_problem(value)
            if problem is None:
                must = True
            elif must:
                raise TextUnusable(f"Line {number} {problem}", field="file")
            else:
                return


def _parsed(line: bytes) -> tuple[Any, str | None]:
    try:
        return json.loads(line.removeprefix(codecs.BOM_UTF8)), None
    except (ValueError, RecursionError):
        return None, "is not JSON; each line must be an object with a `text` field, or a row of a task."


def _text_problem(value: Any) -> str | None:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        return "has no `text` field that is a string, and is no row of a task either."
    return None


def _is_task_row(value: Any) -> bool:
    """Of a task that reads other fields than `text`."""
    if not isinstance(value, dict) or "text" in value:
        return False
    return any(set(task.row.model_fields) <= set(value) for task in TASKS.values())
