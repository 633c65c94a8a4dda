"""Safetensors headers, read within strict bounds. Any bytes at all give a header or SafetensorsInvalid, never a crash.

Layout: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' bytes. The format itself demands that
tensors lie back to back from the first byte after the header to the last of the file; every check here follows from it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from paredown.core.errors import SafetensorsInvalid

# As in the reference implementation.
HEADER_LIMIT_BYTES = 100_000_000
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 8

# Bits, because newer dtypes pack several values in a byte.
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
}


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as its file describes it; offsets count from the first byte after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors_header(path: Path) -> dict[str, TensorHeader]:
    """Header of a local file, checked against the file's size. Raises SafetensorsInvalid."""
    with path.open("rb") as stream:

        def read(start: int, length: int) -> bytes:
            stream.seek(start)
            return stream.read(length)

        return parse_safetensors_header(read, path.stat().st_size, path.name)


def parse_safetensors_header(read: Callable[[int, int], bytes], file_bytes: int, name: str) -> dict[str, TensorHeader]:
    """Header from `read(start, length)`. `file_bytes` is the size of the whole file; `name` is for the sentence."""
    if file_bytes < 10:
        raise SafetensorsInvalid(f"{name} has {file_bytes} bytes, too few for a safetensors file; download it again.")
    length = int.from_bytes(read(0, 8), "little")
    if length > HEADER_LIMIT_BYTES:
        raise SafetensorsInvalid(f"{name} claims a header of {length} bytes; no safetensors file has one so large.")
    if length > file_bytes - 8:
        raise SafetensorsInvalid(f"{name} ends inside its own header: it is cut short; download it again.")
    raw = read(8, length)
    if len(raw) != length:
        raise SafetensorsInvalid(f"{name} ends inside its own header: it is cut short; download it again.")
    header = parse_json_object(raw, f"the header of {name}")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise SafetensorsInvalid(f"{name} lists {len(header)} tensors; the limit is {MAX_TENSORS}.")
    tensors = {key: _tensor(key, entry, name) for key, entry in header.items()}
    _check_layout(tensors, file_bytes - 8 - length, name)
    return tensors


def parse_json_object(raw: bytes, what: str) -> dict[str, Any]:
    """JSON that must be an object without repeated keys. Raises SafetensorsInvalid, whatever the bytes."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise SafetensorsInvalid(f"{what} is not valid JSON: {_short(error)}.") from error
    if not isinstance(value, dict):
        raise SafetensorsInvalid(f"{what} is JSON, but not an object.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _short(error: BaseException) -> str:
    return str(error)[:200]


def _tensor(key: str, entry: Any, name: str) -> TensorHeader:
    def broken(why: str) -> SafetensorsInvalid:
        return SafetensorsInvalid(f"{name}: tensor {key[:200]!r} {why}.")

    if not isinstance(entry, dict):
        raise broken("is not described by an object")
    dtype, shape, offsets = (entry.get(part) for part in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise broken(f"has the unknown dtype {str(dtype)[:40]!r}")
    if not _natural_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise broken("has a shape that is not a list of sizes")
    if not _natural_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken("has data_offsets that are not two ordered numbers")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise broken(f"has shape {tuple(shape)} of {dtype}, but {offsets[1] - offsets[0]} bytes")
    return TensorHeader(name=key, dtype=dtype, shape=tuple(shape), start=offsets[0], end=offsets[1])


def _natural_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63 for number in value
    )


def _check_layout(tensors: dict[str, TensorHeader], data_bytes: int, name: str) -> None:
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end))
    if ordered and ordered[0].start:
        raise SafetensorsInvalid(f"{name}: {ordered[0].start} bytes before the first tensor belong to nothing.")
    for before, after in pairwise(ordered):
        if before.end != after.start:
            raise SafetensorsInvalid(
                f"{name}: tensors {before.name[:200]!r} and {after.name[:200]!r} overlap or leave a gap."
            )
    described = ordered[-1].end if ordered else 0
    if described > data_bytes:
        raise SafetensorsInvalid(
            f"{name} is cut short: its header describes {described} bytes of tensors, but {data_bytes} are there; "
            "download it again."
        )
    if described < data_bytes:
        raise SafetensorsInvalid(f"{name} has {data_bytes - described} bytes after its last tensor that nothing names.")
