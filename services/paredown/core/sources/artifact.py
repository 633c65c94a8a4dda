"""artifact://ID: an artifact of the catalogue, compressed further. Its files come from the object store.

The catalogue says what the files are and who may read them; it is asked again by whoever fetches, with the rights of
the job's own project.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

from pydantic import ValidationError

from paredown.contracts.artifact import MANIFEST_NAME, Ancestor, Manifest
from paredown.contracts.job import Format
from paredown.core.errors import (
    ModelRejected,
    NotFound,
    SourceNotAllowed,
    SourceNotFound,
    SourceUnreachable,
    StorageUnavailable,
)
from paredown.core.sources.base import SourceFile
from paredown.core.sources.selection import is_plain_name
from paredown.core.storage import ObjectStore

# An artifact's manifest, and where its files lie in the store; raises NotFound for a foreign or unknown one.
FindArtifact = Callable[[UUID], tuple[Manifest, str]]


@dataclass(frozen=True)
class Shelf:
    """Where artifact:// leads: to what one project may read, and to the store that holds it."""

    find: FindArtifact
    store: ObjectStore


class ArtifactSource:
    """Only dense weights can be compressed: the rest is refused here, with what to do instead."""

    gguf_file: str | None = None

    def __init__(self, uri: str, shelf: Shelf | None) -> None:
        artifact_id = _artifact_id(uri)
        if shelf is None:
            raise SourceNotAllowed(
                f"{uri} lies in a service's catalogue, which is not read here; download it with "
                f"`pare download {artifact_id} DIRECTORY`, and name that directory."
            )
        try:
            self.manifest, self._prefix = shelf.find(artifact_id)
        except NotFound as error:
            raise SourceNotFound(error.detail) from error
        if self.manifest.format is not Format.SAFETENSORS:
            raise ModelRejected(
                f"{uri} stores its weights as {self.manifest.format}, which cannot be compressed further; start from "
                f"its base, {self.manifest.base.uri}, or run its recipe again with format safetensors and take that "
                "artifact."
            )
        self._store = shelf.store
        self._uri = uri
        self.revision = str(artifact_id)

    def files(self) -> dict[str, SourceFile]:
        return {
            file.path: SourceFile(file.path, file.size_bytes, identity=file.sha256, sha256=file.sha256)
            for file in self.manifest.files
            if is_plain_name(file.path)
        }

    def stream(self, file: SourceFile, start: int, length: int | None = None) -> Iterator[bytes]:
        left = file.size_bytes - start
        with self._translated(file.path):
            yield from self._store.read_range(
                f"{self._prefix}/{file.path}", start, left if length is None else min(left, length)
            )

    def lineage(self) -> tuple[Ancestor, ...]:
        """Of what is made of this artifact: its own ancestors, and itself as the last."""
        key = f"{self._prefix}/{MANIFEST_NAME}"
        with self._translated(MANIFEST_NAME):
            size = self._store.size(key)
            if size is None:
                raise NotFound(key)
            raw = b"".join(self._store.read_range(key, 0, size))
        manifest = self.manifest
        if not _same_files(raw, manifest):
            raise SourceUnreachable(
                f"{self._uri}: manifest.json in the object store is not the catalogue's; let an operator restore it."
            )
        itself = Ancestor(
            artifact_id=manifest.artifact_id, manifest_sha256=sha256(raw).hexdigest(), recipe=manifest.recipe
        )
        return (*manifest.lineage, itself)

    def close(self) -> None:
        """The store is its owner's."""

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except NotFound as error:
            raise SourceNotFound(
                f"{self._uri}: {name} is not in the object store any more; choose another artifact, or let an operator "
                "restore the store."
            ) from error
        except StorageUnavailable as error:
            raise SourceUnreachable(f"{self._uri}: {error.detail}") from error


def _same_files(raw: bytes, manifest: Manifest) -> bool:
    try:
        stored = Manifest.model_validate_json(raw, extra="ignore")
    except ValidationError:
        return False
    return (stored.artifact_id, stored.files) == (manifest.artifact_id, manifest.files)


def _artifact_id(uri: str) -> UUID:
    try:
        return UUID(uri.removeprefix("artifact://"))
    except ValueError as error:
        raise SourceNotFound(f"{uri} does not name an artifact; write artifact:// and its id.") from error
