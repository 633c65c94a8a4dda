"""What every source of models gives: a listing, bytes by range, and nothing that runs code from the model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from paredown.contracts.artifact import Ancestor, BaseModelRecord, JsonObject
from paredown.contracts.families import ModelShape
from paredown.contracts.recipes import Stage
from paredown.core.errors import SourceUnreachable

Progress = Callable[[int, int], None]  # (bytes present, bytes in all)
Cancelled = Callable[[], bool]
Container = Literal["safetensors", "gguf"]

# Small files are read whole; a larger one is not what it says it is.
CONFIG_LIMIT_BYTES = 4 * 2**20
INDEX_LIMIT_BYTES = 64 * 2**20
SMALL_FILE_LIMIT_BYTES = 256 * 2**20  # tokenizers

CHUNK_BYTES = 2**20


class FetchCancelled(Exception):
    """`cancelled` said so; what was downloaded stays, and the next fetch resumes there."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a model. `identity` changes when its bytes do: an ETag, a commit, a modification time."""

    path: str
    size_bytes: int
    identity: str | None = None
    # Where the source tells it beforehand.
    sha256: str | None = None


@dataclass(frozen=True)
class ModelDescription:
    """What is known of a model before its weights are fetched."""

    uri: str
    revision: str
    config: JsonObject
    shape: ModelShape
    files: tuple[SourceFile, ...]
    container: Container
    gguf_file: str | None
    # Of an artifact: the model that it was made of in the first place, and the stages that lie between.
    base: BaseModelRecord | None = None
    earlier: tuple[Stage, ...] = ()

    @property
    def base_bytes(self) -> int:
        """What every size is compared with."""
        return self.base.base_bytes if self.base else self.shape.base_bytes

    @property
    def download_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Lease(Protocol):
    """Holds a directory of the cache against eviction. Let go by close(), or when it is garbage-collected."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class FetchedModel:
    """A verified model on the local disk. It cannot be evicted while this object lives or until close().

    Where it is an artifact, `record` is of the model that this was made of, and `lineage` ends with the artifact.
    """

    directory: Path
    record: BaseModelRecord
    config: JsonObject
    gguf_file: str | None
    lease: Lease = field(repr=False, compare=False)
    lineage: tuple[Ancestor, ...] = ()

    @property
    def earlier(self) -> tuple[Stage, ...]:
        """The stages between base and model."""
        return tuple(stage for ancestor in self.lineage for stage in ancestor.recipe)

    def close(self) -> None:
        self.lease.close()


class SourceChanged(SourceUnreachable):
    """The place gives other bytes than when it was described, so the rest of a download would not fit its beginning."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} changed while it was fetched; retry.")


class ModelSource(Protocol):
    """One model at one place. Made by core.sources.open_source, which has checked that the place is allowed."""

    @property
    def revision(self) -> str | None:
        """A commit or a version; None where the source has neither."""

    @property
    def gguf_file(self) -> str | None:
        """Set when the address names one GGUF file; else the source is a directory."""

    def files(self) -> dict[str, SourceFile]:
        """Files by plain name. Bounded; may leave out what no model needs."""

    def stream(self, file: SourceFile, start: int, length: int | None = None) -> Iterator[bytes]:
        """Bytes from `start`, at most `length`, in chunks. Raises SourceUnreachable, SourceNotFound, SourceChanged."""

    def close(self) -> None: ...


def read_range(source: ModelSource, file: SourceFile, start: int, length: int) -> bytes:
    """At most `length` bytes from `start`; fewer only at the end of the file."""
    found = bytearray()
    for chunk in source.stream(file, start, length):
        found += chunk
        if len(found) >= length:
            break
    return bytes(found[:length])
