"""A job's checkpoint in the object store: what a lost machine leaves to the next.

    checkpoints/{job}/{epoch}/{sha256}      one finished file
    checkpoints/{job}/{epoch}/index.json    which files make up the checkpoint; written last, replaced in one step

Files are named by their hash, so an upload that breaks off leaves the index before it whole. Each epoch writes to its
own place; all of it goes when the job has ended.
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import structlog
from pydantic import ValidationError

from paredown.contracts.artifact import FilePath, sha256_file
from paredown.contracts.job import Contract
from paredown.contracts.report import Sha256
from paredown.core.errors import NotFound, PareError
from paredown.core.storage import ObjectStore
from paredown.worker.blocking import CHECK_SECONDS, LINGER_SECONDS
from paredown.worker.workspace import Workspace, finished_files, link_files

log = structlog.get_logger(__name__)

_INDEX = "index.json"
_SNAPSHOT_TRIES = 5


class _File(Contract):
    path: FilePath
    size_bytes: int
    sha256: Sha256


class _Index(Contract):
    files: tuple[_File, ...]


class Stopped(Exception):
    """The upload was told to stop."""


def job_prefix(job_id: UUID) -> str:
    return f"checkpoints/{job_id}/"


def restore(store: ObjectStore, job_id: UUID, workspace: Workspace, check: Callable[[], None]) -> int | None:
    """Fill the workspace's checkpoint from the newest epoch that left one, here or in the store; that epoch or None.

    It appears in one step, so that a later epoch never takes a half of it for the newest.
    """
    workspace.arriving.mkdir()
    epoch = _gather(store, job_id, workspace, check)
    workspace.arriving.rename(workspace.checkpoint)
    return epoch


def _gather(store: ObjectStore, job_id: UUID, workspace: Workspace, check: Callable[[], None]) -> int | None:
    local = workspace.earlier_checkpoint()
    stored = _newest_index(store, job_id, workspace.epoch)
    if stored is not None and (local is None or stored[0] > local[0]):
        epoch, index = stored
        try:
            for file in index.files:
                check()
                store.get_file(f"{job_prefix(job_id)}{epoch}/{file.sha256}", workspace.arriving / file.path)
        except NotFound as error:
            # Swept meanwhile, or lost: the work is done again, the result is the same.
            log.warning("checkpoint_incomplete", epoch=epoch, error=error.detail)
            shutil.rmtree(workspace.arriving)
            workspace.arriving.mkdir()
        else:
            return epoch
    if local is not None:
        link_files(local[1], workspace.arriving)
        return local[0]
    return None


def _newest_index(store: ObjectStore, job_id: UUID, before_epoch: int) -> tuple[int, _Index] | None:
    prefix = job_prefix(job_id)
    epochs = []
    for stored in store.list(prefix):
        place, _, name = stored.key.removeprefix(prefix).partition("/")
        if name == _INDEX and place.isdecimal() and int(place) < before_epoch:
            epochs.append(int(place))
    for epoch in sorted(epochs, reverse=True):
        try:
            return epoch, _Index.model_validate_json(b"".join(store.read_range(f"{prefix}{epoch}/{_INDEX}", 0, 2**26)))
        except (NotFound, ValidationError) as error:
            log.warning("checkpoint_index_unusable", job_id=str(job_id), epoch=epoch, error=str(error))
    return None


class CheckpointUploader:
    """Copies the engine's checkpoint to the store now and then, in a thread, while the engine goes on."""

    def __init__(self, store: ObjectStore, job_id: UUID, workspace: Workspace, interval_seconds: float) -> None:
        self._store = store
        self._prefix = f"{job_prefix(job_id)}{workspace.epoch}/"
        self._workspace = workspace
        self._snapshot = workspace.directory / "snapshot"
        self._interval_seconds = interval_seconds
        self._due_at = time.monotonic() + interval_seconds
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        # Hashes of finished files, which never change, by (inode, size, time of change).
        self._hashes: dict[tuple[int, int, int], str] = {}
        self._stored: set[str] = set()
        self._index: _Index | None = None

    def attend(self) -> None:
        """Start an upload when one is due and none is under way. Returns at once."""
        if time.monotonic() >= self._due_at and (self._thread is None or not self._thread.is_alive()):
            self._due_at = time.monotonic() + self._interval_seconds
            self._thread = threading.Thread(target=self._upload_quietly, name="checkpoint", daemon=True)
            self._thread.start()

    def upload_now(self, check: Callable[[], None]) -> None:
        """Upload what there is. Raises StorageUnavailable and the like, and whatever `check` raises."""
        self.stop()
        while self._thread is not None and self._thread.is_alive():
            check()
            self._thread.join(CHECK_SECONDS)
        self._upload(check)

    def stop(self) -> None:
        """End an upload under way after the file it is at, which is waited for but a moment."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(LINGER_SECONDS)

    def _upload_quietly(self) -> None:
        def check() -> None:
            if self._stopped.is_set():
                raise Stopped

        try:
            self._upload(check)
        except Stopped:
            return
        except (PareError, OSError) as error:
            # The copy on this machine's disk goes on; the next interval tries again.
            log.warning("checkpoint_not_uploaded", error=str(error))

    def _upload(self, check: Callable[[], None]) -> None:
        take_snapshot(self._workspace.checkpoint, self._snapshot)
        files = []
        known, self._hashes = self._hashes, {}
        for path in finished_files(self._snapshot):
            check()
            status = path.stat()
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            sha256 = known.get(identity) or sha256_file(path)
            self._hashes[identity] = sha256
            if sha256 not in self._stored:
                self._store.put_file(f"{self._prefix}{sha256}", path, sha256)
                self._stored.add(sha256)
            files.append(
                _File(
                    path=path.relative_to(self._snapshot).as_posix(),
                    size_bytes=status.st_size,
                    sha256=sha256,
                )
            )
        index = _Index(files=tuple(files))
        if not files or index == self._index:
            return
        check()
        self._store.put_bytes(self._prefix + _INDEX, index.model_dump_json().encode())
        self._index = index
        for sha256 in self._stored - {file.sha256 for file in files}:
            self._store.delete(self._prefix + sha256)
            self._stored.discard(sha256)
        log.info("checkpoint_uploaded", files=len(files))


def take_snapshot(directory: Path, snapshot: Path) -> None:
    """Links to the finished files of a directory as they were at one moment, though it is being written to."""
    for _ in range(_SNAPSHOT_TRIES):
        shutil.rmtree(snapshot, ignore_errors=True)
        snapshot.mkdir()
        before = _listing(directory)
        link_files(directory, snapshot)
        if _listing(directory) == before:
            return
        time.sleep(0.05)
    # Blocks are finished faster than they are listed. The engine checks each file's hash, so a mixture is safe, only
    # perhaps of less use.


def _listing(directory: Path) -> dict[str, tuple[int, int]]:
    listing = {}
    for path in finished_files(directory):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        listing[path.relative_to(directory).as_posix()] = (status.st_ino, status.st_size)
    return listing
