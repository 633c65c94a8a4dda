"""Calibration and evaluation text from wherever it lies, as one local UTF-8 file.

Documents are joined by an empty line. JSON lines and Parquet give their text column. Everything is bounded.
"""

import codecs
import io
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal

from paredown.core.errors import TextUnusable
from paredown.core.sources.base import CHUNK_BYTES

Part = Literal["calibration", "evaluation"]

TEXT_LIMIT_BYTES = 256 * 2**20
BUILTIN_PYTHON_DOCS = "python-docs"
_CALIBRATION_SHARE = 0.8
JSON_LINES = (".jsonl", ".ndjson")


@cache
def python_docs(part: Part) -> bytes:
    """The standard library's own help texts: the first 80 % to calibrate on, the rest, held out, to evaluate on.

    Cut at the end of a paragraph. Topics repeat each other in places: what was calibrated on is left out of the rest.
    """
    from pydoc_data.topics import topics  # a large module, read only where it is asked for

    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    cut = text.index("\n\n", int(len(text) * _CALIBRATION_SHARE))
    first = text[:cut]
    if part == "calibration":
        return first.encode()
    seen = set(first.split("\n\n"))
    return "\n\n".join(paragraph for paragraph in text[cut:].split("\n\n") if paragraph not in seen).strip().encode()


def plain_text(data: bytes, name: str) -> bytes:
    """UTF-8 text, or the `text` fields of JSON lines. Raises TextUnusable with the place to blame."""
    data = data.removeprefix(codecs.BOM_UTF8)
    if PurePosixPath(name).suffix in JSON_LINES or _is_json_lines(data):
        return _joined(_json_lines(data, name, "text"), name)
    _check_utf8(data, name)
    if not data.strip():
        raise TextUnusable(f"{name} holds no text.")
    return data


def column_of(data: bytes, name: str, column: str) -> bytes:
    """One column of JSON lines or Parquet, or plain text as it is. Raises TextUnusable."""
    suffix = PurePosixPath(name).suffix
    if suffix == ".parquet":
        return _joined(_parquet(data, name, column), name)
    if suffix in JSON_LINES:
        return _joined(_json_lines(data.removeprefix(codecs.BOM_UTF8), name, column), name)
    return plain_text(data, name)


def bounded(chunks: Iterable[bytes], name: str) -> bytes:
    """All bytes of a stream. Raises TextUnusable past the limit."""
    found = bytearray()
    for chunk in chunks:
        found += chunk
        if len(found) > TEXT_LIMIT_BYTES:
            raise TextUnusable(f"{name} has more than {TEXT_LIMIT_BYTES} bytes; a few megabytes are plenty.")
    return bytes(found)


def _check_utf8(data: bytes, name: str) -> None:
    """Piece by piece: a large text decoded at once would take four times its size."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data), CHUNK_BYTES):
        piece = data[start : start + CHUNK_BYTES]
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=start + CHUNK_BYTES >= len(data))
        except UnicodeDecodeError as error:
            position = start - pending + error.start
            raise TextUnusable(f"{name} is not UTF-8 text (byte {position}); save it as UTF-8.") from error


def _is_json_lines(data: bytes) -> bool:
    """Uploads have no suffix: a first line that is an object with a `text` field is taken for JSON lines."""
    first = data[: data.find(b"\n")] if b"\n" in data else data
    if not first.lstrip().startswith(b"{"):
        return False
    try:
        value = json.loads(first.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "text" in value


def _json_lines(data: bytes, name: str, column: str) -> Iterator[str]:
    # A stream of bytes ends its lines at \n alone; JSON strings may hold U+2028 and its like.
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise TextUnusable(f"{name}, line {number} is not UTF-8 text; save it as UTF-8.") from error
        except (ValueError, RecursionError) as error:
            raise TextUnusable(f"{name}, line {number} is not JSON.") from error
        field = value.get(column) if isinstance(value, dict) else None
        if not isinstance(field, str):
            raise TextUnusable(f"{name}, line {number} has no {column!r} field that is a string.")
        yield field


def _parquet(data: bytes, name: str, column: str) -> Iterator[str]:
    for row in parquet_rows(data, name, column):
        if not isinstance(row[column], str):
            raise TextUnusable(f"The column {column!r} of {name} does not hold strings.")
        yield row[column]


def parquet_rows(data: bytes, name: str, column: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, all columns or one. Raises TextUnusable."""
    try:
        import pyarrow  # optional: only Parquet data sets need it
        from pyarrow import parquet
    except ImportError as error:
        raise TextUnusable(
            f"{name} is Parquet, and pyarrow is not installed here; use a .jsonl or .txt file."
        ) from error
    try:
        table = parquet.ParquetFile(pyarrow.BufferReader(data))
        if column is not None and column not in table.schema_arrow.names:
            raise TextUnusable(
                f"{name} has no column {column!r}; it has {', '.join(table.schema_arrow.names[:20])}. "
                "Name one with ?column=…"
            )
        unpacked = _unpacked_bytes(table.metadata, column)
        if unpacked > TEXT_LIMIT_BYTES:
            raise TextUnusable(f"{name} unpacks to {unpacked} bytes of text; a few megabytes are plenty.")
        for batch in table.iter_batches(batch_size=1024, columns=[column] if column else None):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise TextUnusable(f"{name} is not a readable Parquet file: {str(error)[:200]}.") from error


def _unpacked_bytes(metadata: Any, column: str | None) -> int:
    """What the file says that a column, or all of them, take once unpacked."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(found.total_uncompressed_size for found in columns if column in (None, found.path_in_schema))


def _joined(documents: Iterator[str], name: str) -> bytes:
    found = bytearray()
    for document in documents:
        try:
            found += document.strip("\n").encode() + b"\n\n"
        except UnicodeEncodeError as error:
            raise TextUnusable(f"{name} holds half a character (a lone surrogate), which is not UTF-8.") from error
        # A small compressed file may hold a great deal of text.
        if len(found) > TEXT_LIMIT_BYTES:
            raise TextUnusable(f"{name} holds more than {TEXT_LIMIT_BYTES} bytes of text; a few megabytes are plenty.")
    if not found.strip():
        raise TextUnusable(f"{name} holds no text.")
    return bytes(found.removesuffix(b"\n\n"))
