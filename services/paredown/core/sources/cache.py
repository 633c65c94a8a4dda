"""The content-addressed cache of fetched models and texts: one directory that any number of processes share.

    listings/KEY.json          what was found at a place once: fingerprint, revision. KEY is the hash of its listing
    models/FINGERPRINT/files/  the model; beside it record.json, whose modification time is the last use
    texts/SHA256.txt           texts; modification time is the last use
    texts/SHA256.npy           token blocks of calibrations, likewise
    statistics/KEY/            what engines gather once for all runs that share it; .need.json is written at each use
    partial/KEY/               downloads under way or broken off, resumed by whoever comes next
    locks/                     flock on these files; a lock ends with its process, whatever that died of

A directory under models/ appears by one rename, complete and verified. A model in use holds a shared lock on its
fingerprint; eviction takes the exclusive one without waiting, or lets the model be. Statistics likewise; who writes
them, and whether they are whole, is the engine's business (engine/dense.py).
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.contracts.artifact import JsonObject, sha256_file
from paredown.contracts.job import content_hash
from paredown.core.disk import is_full, synchronize, write_whole
from paredown.core.errors import DiskFull, PlanExceeded, StorageUnavailable
from paredown.core.settings import Settings
from paredown.core.sources.base import Cancelled, FetchCancelled

# Left free on the disk for everybody else.
RESERVE_BYTES = 64 * 2**20
_WAIT_SECONDS = 0.2
# Texts have no lease: a job reads its text when it starts, so this is long enough.
_TEXT_KEPT_SECONDS = 7 * 86400
_PARTIAL_KEPT_SECONDS = 7 * 86400


class FileLock:
    """flock on a file that is never deleted. Shared or exclusive; ends when released, collected or the process dies."""

    def __init__(self, descriptor: int) -> None:
        self._release = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        self._release()


def _flock(path: Path, operation: int) -> FileLock | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return FileLock(descriptor)


@dataclass(frozen=True)
class CachedModel:
    """A complete model in the cache, and the lock that keeps it there."""

    directory: Path
    fingerprint: str
    record: JsonObject
    lock: FileLock


@dataclass(frozen=True)
class SharedStatistics:
    """A directory for the engine to write to, and the lock that keeps it there."""

    directory: Path
    lock: FileLock

    def close(self) -> None:
        self.lock.close()


class Cache:
    def __init__(self, settings: Settings) -> None:
        self.root = settings.cache_dir
        self._limit = settings.cache_limit_bytes
        self._models = self.root / "models"
        self._texts = self.root / "texts"
        self._statistics = self.root / "statistics"

    @contextmanager
    def exclusive(self, key: str, cancelled: Cancelled = lambda: False) -> Iterator[None]:
        """One fetcher of a place at a time; the others wait, and find it done. Raises FetchCancelled."""
        while (lock := _flock(self._lock_path(key), fcntl.LOCK_EX)) is None:
            if cancelled():
                raise FetchCancelled
            time.sleep(_WAIT_SECONDS)
        try:
            yield
        finally:
            lock.close()

    def _lock_path(self, name: str) -> Path:
        return self.root / "locks" / name

    def lookup(self, key: str) -> CachedModel | None:
        """The model that this listing gave before, if it is still there and its files have their sizes."""
        listing = _read_json(self.root / "listings" / f"{key}.json")
        return self.model(str(listing["fingerprint"])) if listing is not None else None

    def model(self, fingerprint: str) -> CachedModel | None:
        lock = _flock(self._lock_path(fingerprint), fcntl.LOCK_SH)
        if lock is None:
            return None  # being evicted at this moment
        entry = self._models / fingerprint
        record = _read_json(entry / "record.json")
        if record is None or not _sizes_hold(entry / "files", record):
            lock.close()
            return None
        os.utime(entry / "record.json")
        return CachedModel(entry / "files", fingerprint, record, lock)

    def partial(self, key: str) -> Path:
        """The directory in which this listing is downloaded. Only under exclusive(key)."""
        directory = self.root / "partial" / key
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def publish(self, key: str, record: JsonObject) -> CachedModel:
        """Turn the finished partial directory into a model. `record` holds fingerprint and files."""
        fingerprint = str(record["fingerprint"])
        partial, entry = self.partial(key), self._models / fingerprint
        self._models.mkdir(parents=True, exist_ok=True)
        if self.model(fingerprint) is None:
            self._place(partial, entry, record)
        shutil.rmtree(partial, ignore_errors=True)
        write_json(self.root / "listings" / f"{key}.json", {"fingerprint": fingerprint})
        found = self.model(fingerprint)
        if found is None:
            raise DiskFull(f"The model was evicted from {self.root} as soon as it came; raise PARE_CACHE_LIMIT_BYTES.")
        return found

    def _place(self, partial: Path, entry: Path, record: JsonObject) -> None:
        staged = self.root / "partial" / f"staged-{uuid.uuid4().hex}"
        staged.mkdir()
        (staged / "files").mkdir()
        for file in record["files"]:
            synchronize(partial / file["path"])
            (partial / file["path"]).rename(staged / "files" / file["path"])
            (staged / "files" / file["path"]).chmod(0o444)
        write_json(staged / "record.json", record)
        # An entry whose sizes no longer hold is damaged: it makes way.
        self._discard(entry)
        # Another listing of the same bytes may have been placed in between; its directory is as good as ours.
        with suppress(OSError):
            staged.rename(entry)
        shutil.rmtree(staged, ignore_errors=True)
        synchronize(self._models)

    def _discard(self, entry: Path) -> None:
        trash = self.root / "partial" / f"trash-{uuid.uuid4().hex}"
        trash.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            entry.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def reserve(self, key: str, total_bytes: int) -> None:
        """Make room for a download before its first byte: evict by last use, then count what others still need.

        Raises PlanExceeded where the cache can never hold it, DiskFull where it cannot now.
        """
        if total_bytes > self._limit:
            raise PlanExceeded(
                f"The model has {total_bytes} bytes, but the cache may hold {self._limit}; "
                "an operator can raise PARE_CACHE_LIMIT_BYTES."
            )
        with self.exclusive("space"):
            write_json(self.partial(key) / ".need.json", {"bytes": total_bytes})
            needed = self._needed(key)
            self._evict(needed)
            free = shutil.disk_usage(self.root).free
            if needed + RESERVE_BYTES > free:
                (self.partial(key) / ".need.json").unlink()
                raise DiskFull(
                    f"The model and other downloads under way need {needed} more bytes in {self.root}, but {free} are "
                    "free; free some space and retry."
                )

    def statistics(self, key: str, size_bytes: int) -> SharedStatistics | None:
        """The directory that all runs with this key share; it holds up to `size_bytes` in the end.

        It is not evicted before close(). None where the cache has no room for it, or is evicting it at this moment.
        Raises DiskFull, StorageUnavailable.
        """
        entry, name = self._statistics / key, _statistics_lock(key)
        lock = _flock(self._lock_path(name), fcntl.LOCK_SH)
        if lock is None:
            return None
        with disk_named(self.root), self.exclusive("space"):
            entry.mkdir(parents=True, exist_ok=True)
            write_json(entry / ".need.json", {"bytes": size_bytes})
            needed = self._needed(name)
            total = self._evict(needed)
            if total + needed > self._limit or needed + RESERVE_BYTES > shutil.disk_usage(self.root).free:
                lock.close()
                return None
        return SharedStatistics(entry, lock)

    def _needed(self, own_lock: str) -> int:
        """Bytes that downloads and gatherings under way still have to write; the holder of `own_lock` is one."""
        downloads = [(directory, directory.name) for directory in _directories(self.root / "partial")]
        gathered = [(directory, _statistics_lock(directory.name)) for directory in _directories(self._statistics)]
        return sum(self._outstanding(directory, lock, own_lock) for directory, lock in downloads + gathered)

    def _outstanding(self, directory: Path, its_lock: str, own_lock: str) -> int:
        """Bytes that a live download or gathering still has to write."""
        need = _read_json(directory / ".need.json")
        if need is None:
            return 0
        if its_lock != own_lock:
            lock = _flock(self._lock_path(its_lock), fcntl.LOCK_EX)
            if lock is not None:
                lock.close()
                return 0  # broken off: nobody writes there
        return max(0, int(need["bytes"]) - _tree_bytes(directory))

    def _evict(self, needed: int) -> int:
        """Drop what was not used for longest until `needed` more bytes fit below the limit; returns what is left."""
        entries = sorted(self._evictable(), key=lambda entry: entry[0])
        total = sum(size for _, size, _ in entries)
        # Old unfinished downloads go in any case.
        self._drop_stale_partials()
        for _, size, path in entries:
            if total + needed <= self._limit and needed + RESERVE_BYTES <= shutil.disk_usage(self.root).free:
                break
            total -= size * self._drop(path)
        return total

    def _evictable(self) -> Iterator[tuple[float, int, Path]]:
        for entry in _directories(self._models):
            with suppress(FileNotFoundError):
                yield (entry / "record.json").stat().st_mtime, _tree_bytes(entry), entry
        for entry in _directories(self._statistics):
            with suppress(FileNotFoundError):
                yield (entry / ".need.json").stat().st_mtime, _tree_bytes(entry), entry
        if self._texts.is_dir():
            for text in self._texts.iterdir():
                with suppress(FileNotFoundError):
                    yield text.stat().st_mtime, text.stat().st_size, text

    def _drop(self, path: Path) -> bool:
        if path.parent == self._texts:
            with suppress(FileNotFoundError):  # another process evicts too
                if path.stat().st_mtime > time.time() - _TEXT_KEPT_SECONDS:
                    return False
                path.unlink()
            return True
        name = _statistics_lock(path.name) if path.parent == self._statistics else path.name
        lock = _flock(self._lock_path(name), fcntl.LOCK_EX)
        if lock is None:
            return False  # in use
        try:
            self._discard(path)
        finally:
            lock.close()
        return True

    def _drop_stale_partials(self) -> None:
        for directory in _directories(self.root / "partial"):
            with suppress(FileNotFoundError):
                if directory.stat().st_mtime > time.time() - _PARTIAL_KEPT_SECONDS:
                    continue
                lock = _flock(self._lock_path(directory.name), fcntl.LOCK_EX)
                if lock is not None:
                    shutil.rmtree(directory, ignore_errors=True)
                    lock.close()

    def put_text(self, text: bytes, suffix: str = ".txt") -> Path:
        """Keep a text under its own hash. Raises DiskFull."""
        path = self._texts / f"{hashlib.sha256(text).hexdigest()}{suffix}"
        if path.is_file() and path.stat().st_size == len(text):
            os.utime(path)
            return path
        with disk_named(self.root):
            write_whole(path, text)
        return path


def _statistics_lock(key: str) -> str:
    return f"statistics-{key}"


def fingerprint_of(files: list[JsonObject]) -> str:
    """Hash over names and hashes, so that a model is the same wherever it came from."""
    return content_hash(sorted((file["path"], file["sha256"]) for file in files))


def hash_files(directory: Path, names: list[str]) -> list[JsonObject]:
    return [
        {"path": name, "size_bytes": (directory / name).stat().st_size, "sha256": sha256_file(directory / name)}
        for name in names
    ]


@contextmanager
def disk_named(directory: Path) -> Iterator[None]:
    """Give the failures of the cache's own disk their names. Sources name theirs before they get here."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFull(f"The disk that holds {directory} is full; free some space and retry.") from error
        raise StorageUnavailable(f"The cache directory {directory} cannot be used: {error.strerror}.") from error


def write_json(path: Path, value: JsonObject) -> None:
    write_whole(path, json.dumps(value).encode())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _sizes_hold(directory: Path, record: JsonObject) -> bool:
    try:
        return all((directory / file["path"]).stat().st_size == file["size_bytes"] for file in record["files"])
    except OSError:
        return False


def _directories(directory: Path) -> list[Path]:
    return [entry for entry in directory.iterdir() if entry.is_dir()] if directory.is_dir() else []


def _tree_bytes(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
