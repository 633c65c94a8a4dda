"""Where artifacts, checkpoints and data sets lie: any S3, or a directory of this machine.

Errors of either are translated here; callers see StorageUnavailable, NotFound and DiskFull only.
"""

import hashlib
import hmac
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from paredown.core.disk import is_full, synchronize
from paredown.core.errors import DiskFull, NotFound, StorageUnavailable
from paredown.core.settings import Settings

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class StoredObject:
    key: str
    size_bytes: int
    modified_at: datetime


class ObjectStore(Protocol):
    """Objects by key. A key is a relative path of plain parts, such as artifacts/JOB/1/model.safetensors."""

    def put_file(self, key: str, path: Path, sha256: str) -> None:
        """Store a file whose hash is known; it appears whole or not at all. Raises StorageUnavailable, DiskFull."""

    def put_bytes(self, key: str, data: bytes) -> None: ...

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to a local file, which appears whole or not at all. Raises NotFound, DiskFull."""

    def read_range(self, key: str, start: int, length: int) -> Iterator[bytes]:
        """At most `length` bytes from `start`, in chunks. Raises NotFound at once, not at the first chunk."""

    def size(self, key: str) -> int | None:
        """Bytes of the object; None where there is none."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Objects whose key begins with `prefix`, in order of their keys."""

    def delete(self, key: str) -> None:
        """No error where there is no such object."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete everything below `prefix`, which must end with a slash."""

    def remove_unfinished(self, before: datetime) -> int:
        """Remove what uploads that broke off before then have left, and no key names; how many."""

    def url(self, key: str, filename: str, expires_seconds: int) -> str | None:
        """A signed address that a browser can fetch by itself; None where the store has no server of its own."""

    def check(self) -> None:
        """Raises StorageUnavailable when nothing can be stored."""

    def prepare(self) -> None:
        """Make the bucket or the directory where there is none yet, then check."""


def open_store(settings: Settings) -> ObjectStore:
    """The store of `store_url`: s3://bucket/prefix or file:///directory."""
    parts = urlsplit(settings.store_url)
    if parts.scheme == "s3" and parts.netloc:
        from paredown.core.storage_s3 import S3Store  # imports this module

        return S3Store(settings, parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return LocalStore(Path(unquote(parts.path)))
    raise StorageUnavailable("PARE_STORE_URL must be s3://bucket/prefix or file:///directory.")


_KEY_PART = re.compile(r"[A-Za-z0-9_+=@,()\[\] -][A-Za-z0-9._+=@,()\[\] -]*")


def checked_key(key: str) -> str:
    """A key that is safe as a path below a directory. Raises NotFound, as for any name that is not there."""
    parts = key.split("/")
    if len(key) > 1024 or not all(_KEY_PART.fullmatch(part) and len(part) <= 255 for part in parts):
        raise NotFound(f"There is no object {key[:200]!r}.")
    return key


def checked_prefix(prefix: str) -> str:
    """A prefix that names whole parts: nothing beside it is ever deleted with it."""
    if not prefix.endswith("/"):
        raise ValueError(f"the prefix {prefix!r} must end with a slash")
    return checked_key(prefix[:-1]) + "/"


class LocalStore:
    """A directory. An object is a file that appears by one rename, after its bytes are on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Below the root, so that a rename never crosses file systems; no key can begin with a dot.
        self._staging = root / ".staging"

    def put_file(self, key: str, path: Path, sha256: str) -> None:
        with self._placing(key) as staged, path.open("rb") as source, staged.open("wb") as target:
            digest = hashlib.sha256()
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
            if digest.hexdigest() != sha256:
                raise StorageUnavailable(f"{path.name} changed while it was stored; try again.")

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._placing(key) as staged, staged.open("wb") as target:
            target.write(data)
            target.flush()
            os.fsync(target.fileno())

    def get_file(self, key: str, path: Path) -> None:
        with self._translated(), self._opened(key).open("rb") as source:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = path.with_name(f".{uuid.uuid4().hex}.part")
            try:
                with staged.open("wb") as target:
                    shutil.copyfileobj(source, target, CHUNK_BYTES)
                    target.flush()
                    os.fsync(target.fileno())
                staged.replace(path)
            finally:
                staged.unlink(missing_ok=True)

    def read_range(self, key: str, start: int, length: int) -> Iterator[bytes]:
        with self._translated():
            path = self._opened(key)
        return self._chunks(path, start, length)

    def _chunks(self, path: Path, start: int, length: int) -> Iterator[bytes]:
        with self._translated(), path.open("rb") as stream:
            stream.seek(start)
            while length > 0 and (chunk := stream.read(min(length, CHUNK_BYTES))):
                length -= len(chunk)
                yield chunk

    def size(self, key: str) -> int | None:
        with self._translated():
            path = self._path(key)
            return path.stat().st_size if path.is_file() else None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        # Only the directory that the prefix names is walked.
        start = self.root / prefix.rpartition("/")[0] if "/" in prefix else self.root
        with self._translated():
            paths = sorted(start.rglob("*")) if start.is_dir() and ".." not in start.parts else []
        for path in paths:
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and not key.startswith("."):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    if path.is_file():
                        yield StoredObject(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._translated():
            path.unlink(missing_ok=True)
            self._prune(path.parent)

    def delete_prefix(self, prefix: str) -> None:
        path = self._path(checked_prefix(prefix)[:-1])
        with self._translated():
            if path.is_dir():
                # Renamed first: readers never see half of it.
                trash = self._staged()
                path.rename(trash)
                shutil.rmtree(trash)
            self._prune(path.parent)

    def remove_unfinished(self, before: datetime) -> int:
        removed = 0
        with self._translated():
            for path in list(self._staging.iterdir()) if self._staging.is_dir() else []:
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < before.timestamp():
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                        removed += 1
        return removed

    def url(self, key: str, filename: str, expires_seconds: int) -> str | None:  # noqa: ARG002 — the API signs its own
        return None

    def check(self) -> None:
        with self._translated():
            probe = self._staged()
            probe.write_bytes(b"")
            probe.unlink()

    def prepare(self) -> None:
        # The directory comes with the first write.
        self.check()

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _opened(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise NotFound(f"There is no object {key!r}.")
        return path

    def _staged(self) -> Path:
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._staging / uuid.uuid4().hex

    @contextmanager
    def _placing(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        with self._translated():
            staged = self._staged()
            try:
                yield staged
                staged.chmod(0o640)
                path.parent.mkdir(parents=True, exist_ok=True)
                staged.replace(path)
                synchronize(path.parent)
            finally:
                staged.unlink(missing_ok=True)

    def _prune(self, directory: Path) -> None:
        """Remove directories that the last deletion left empty."""
        with suppress(OSError):
            while directory != self.root:
                directory.rmdir()
                directory = directory.parent

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"There is no object at {error.filename}.") from error
        except OSError as error:
            raise storage_error(error, f"The store's directory {self.root}") from error


def storage_error(error: OSError, what: str) -> DiskFull | StorageUnavailable:
    """The name of a failure of a local disk."""
    if is_full(error):
        return DiskFull(f"{what} is full; free some space and retry.")
    return StorageUnavailable(f"{what} cannot be used: {error.strerror}.")


def sign_download(settings: Settings, path: str, expires_at: int) -> str:
    """The signature that lets anyone who has it fetch `path` (as in the address, without the query) until then."""
    message = f"download\n{path}\n{expires_at}".encode()
    return hmac.new(settings.secret.get_secret_value().encode(), message, hashlib.sha256).hexdigest()


def verify_download(settings: Settings, path: str, expires: int, signature: str) -> bool:
    """Whether the signature is of this path and the time has not passed."""
    # A non-ASCII signature would make compare_digest raise.
    expected = sign_download(settings, path, expires).encode()
    return hmac.compare_digest(expected, signature.encode()) and datetime.now(UTC).timestamp() < expires
