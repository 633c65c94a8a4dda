"""Rows of a task from wherever they lie, checked one by one, as JSON lines of the fields that the task reads.

JSON lines, CSV with a header and Parquet are told apart by their names; without one, by their first bytes.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from paredown.contracts.tasks import TASKS, Row, TaskName
from paredown.core.errors import TaskRowsUnusable
from paredown.core.sources.text import JSON_LINES, parquet_rows

_PARQUET_MAGIC = b"PAR1"
_GONE = object()


def task_rows(data: bytes, name: str, task: TaskName) -> bytes:
    """JSON lines, in the order in which they are measured. Raises TaskRowsUnusable with the row and the field to blame.

    Rows that are of several kinds take turns, so that the first rows of a task are of all of them.
    """
    definition = TASKS[task]
    rows = [_checked(number, row, name, task) for number, row in enumerate(_rows(data, name), start=1)]
    if not rows:
        raise TaskRowsUnusable(f"{name} holds no rows.")
    if definition.group:
        kinds: dict[Any, list[Row]] = {}
        for row in rows:
            kinds.setdefault(getattr(row, definition.group), []).append(row)
        turns = chain.from_iterable(zip_longest(*kinds.values(), fillvalue=_GONE))
        rows = [row for row in turns if isinstance(row, Row)]
    return b"".join(json.dumps(row.model_dump(), ensure_ascii=False).encode() + b"\n" for row in rows)


def _checked(number: int, row: Any, name: str, task: TaskName) -> Row:
    try:
        return TASKS[task].row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise TaskRowsUnusable(
            f"Row {number} of {name} is no row of {task}{f', field {field}' if field else ''}: {reason}."
        ) from error


def _rows(data: bytes, name: str) -> Iterator[Any]:
    suffix = PurePosixPath(name).suffix
    if suffix == ".parquet" or data.startswith(_PARQUET_MAGIC):
        yield from parquet_rows(data, name)
        return
    data = data.removeprefix(codecs.BOM_UTF8)
    if suffix in JSON_LINES or data.lstrip().startswith(b"{"):
        yield from _json_lines(data, name)
    else:
        yield from _csv(data, name)


def _json_lines(data: bytes, name: str) -> Iterator[Any]:
    for number, line in enumerate(io.BytesIO(data), start=1):
        if line.strip():
            try:
                yield json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise TaskRowsUnusable(f"{name}, line {number} is not JSON.") from error


def _csv(data: bytes, name: str) -> Iterator[Any]:
    try:
        yield from csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TaskRowsUnusable(f"{name} is neither JSON lines nor Parquet nor CSV in UTF-8: {error}.") from error
