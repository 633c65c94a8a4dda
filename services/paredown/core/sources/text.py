"""Calibration and evaluation text from wherever it lies, as one local UTF-8 file.

Documents are joined by an empty line. JSON lines and Parquet give their text column. Everything is bounded.
"""

import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Literal

from paredown.core.errors import TextUnusable

Part = Literal["calibration", "evaluation"]

TEXT_LIMIT_BYTES = 256 * 2**20
BUILTIN_PYTHON_DOCS = "python-docs"
_CALIBRATION_SHARE = 0.8


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
    """UTF-8 text, or the `text` fields of JSON lines. Raises TextUnusable with the line to blame."""
    text = _decoded(data, name)
    if PurePosixPath(name).suffix in (".jsonl", ".ndjson") or _is_json_lines(text):
        return _joined(_json_lines(text, name, "text"), name)
    if not text.strip():
        raise TextUnusable(f"{name} holds no text.")
    return text.encode()


def column_of(data: bytes, name: str, column: str) -> bytes:
    """One column of JSON lines or Parquet, or plain text as it is. Raises TextUnusable."""
    suffix = PurePosixPath(name).suffix
    if suffix == ".parquet":
        return _joined(_parquet(data, name, column), name)
    if suffix in (".jsonl", ".ndjson"):
        return _joined(_json_lines(_decoded(data, name), name, column), name)
    return plain_text(data, name)


def bounded(chunks: Iterable[bytes], name: str) -> bytes:
    """All bytes of a stream. Raises TextUnusable past the limit."""
    found = bytearray()
    for chunk in chunks:
        found += chunk
        if len(found) > TEXT_LIMIT_BYTES:
            raise TextUnusable(f"{name} has more than {TEXT_LIMIT_BYTES} bytes; a few megabytes are plenty.")
    return bytes(found)


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextUnusable(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


def _is_json_lines(text: str) -> bool:
    """Uploads have no suffix: a first line that is an object with a `text` field is taken for JSON lines."""
    first = text.lstrip().split("\n", 1)[0]
    if not first.startswith("{"):
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "text" in value


def _json_lines(text: str, name: str, column: str) -> Iterator[str]:
    # Not splitlines: JSON strings may hold U+2028 and its like.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextUnusable(f"{name}, line {number} is not JSON.") from error
        field = value.get(column) if isinstance(value, dict) else None
        if not isinstance(field, str):
            raise TextUnusable(f"{name}, line {number} has no {column!r} field that is a string.")
        yield field


def _parquet(data: bytes, name: str, column: str) -> Iterator[str]:
    try:
        import pyarrow  # optional: only Parquet data sets need it
        from pyarrow import parquet
    except ImportError as error:
        raise TextUnusable(
            f"{name} is Parquet, and pyarrow is not installed here; use a .jsonl or .txt file."
        ) from error
    try:
        table = parquet.ParquetFile(pyarrow.BufferReader(data))
        if column not in table.schema_arrow.names:
            raise TextUnusable(
                f"{name} has no column {column!r}; it has {', '.join(table.schema_arrow.names[:20])}. "
                "Name one with ?column=…"
            )
        index = table.schema_arrow.names.index(column)
        groups = range(table.metadata.num_row_groups)
        unpacked = sum(table.metadata.row_group(group).column(index).total_uncompressed_size for group in groups)
        if unpacked > TEXT_LIMIT_BYTES:
            raise TextUnusable(f"{name} unpacks to {unpacked} bytes of text; a few megabytes are plenty.")
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).to_pylist():
                if not isinstance(value, str):
                    raise TextUnusable(f"The column {column!r} of {name} does not hold strings.")
                yield value
    except (pyarrow.ArrowException, OSError) as error:
        raise TextUnusable(f"{name} is not a readable Parquet file: {str(error)[:200]}.") from error


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
