"""From a source to a verified directory in the cache: reserve, download with resume, hash, verify, publish."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from paredown.contracts.artifact import BaseModelRecord, JsonObject
from paredown.contracts.job import content_hash
from paredown.core.errors import ModelRejected, PlanExceeded, SourceUnreachable
from paredown.core.settings import Settings
from paredown.core.sources.base import (
    Cancelled,
    FetchCancelled,
    FetchedModel,
    ModelDescription,
    ModelSource,
    Progress,
    SourceChanged,
    SourceFile,
)
from paredown.core.sources.cache import Cache, CachedModel, disk_named, fingerprint_of, hash_files
from paredown.core.sources.selection import Selection, select, verify

_TRIES = 5


def describe_source(uri: str, source: ModelSource) -> ModelDescription:
    selection = select(source)
    return ModelDescription(
        uri=uri,
        revision=source.revision or _listing_key(uri, None, selection)[:40],
        config=selection.config,
        shape=selection.shape,
        files=selection.files,
        container=selection.container,
        gguf_file=selection.gguf_file,
    )


def fetch_from(
    uri: str, source: ModelSource, settings: Settings, progress: Progress, cancelled: Cancelled
) -> FetchedModel:
    """Raises SourceError, ModelRejected, DiskFull, PlanExceeded; FetchCancelled when `cancelled` says so."""
    # Asked of the source each time, so that a hit is given only to who may still read the place.
    selection = select(source)
    total = sum(file.size_bytes for file in selection.files)
    if total > settings.model_limit_bytes:
        raise PlanExceeded(f"The model has {total} bytes; this service fetches at most {settings.model_limit_bytes}.")
    cache = Cache(settings)
    key = _listing_key(uri, source.revision, selection)
    with disk_named(cache.root), cache.exclusive(key, cancelled):
        cached = cache.lookup(key)
        if cached is None:
            cache.reserve(key, total)
            cached = _download(cache, key, source, selection, progress, cancelled)
    progress(total, total)
    return _fetched(uri, source, selection, cached)


def _listing_key(uri: str, revision: str | None, selection: Selection) -> str:
    return content_hash([uri, revision, [(file.path, file.size_bytes, file.identity) for file in selection.files]])


def _fetched(uri: str, source: ModelSource, selection: Selection, cached: CachedModel) -> FetchedModel:
    shape = selection.shape
    record = BaseModelRecord(
        uri=uri,
        revision=source.revision or cached.fingerprint,
        fingerprint=cached.fingerprint,
        model_type=shape.model_type,
        parameters=shape.parameters,
        base_bytes=shape.base_bytes,
    )
    return FetchedModel(cached.directory, record, selection.config, selection.gguf_file, cached.lock)


def _download(
    cache: Cache, key: str, source: ModelSource, selection: Selection, progress: Progress, cancelled: Cancelled
) -> CachedModel:
    partial = cache.partial(key)
    total = sum(file.size_bytes for file in selection.files)
    done = 0
    for file in selection.files:
        for present in _download_file(source, file, partial / file.path, cancelled):
            progress(done + present, total)
        done += file.size_bytes
    files = hash_files(partial, [file.path for file in selection.files])
    try:
        _check_hashes(selection, files)
        verify(partial, selection)
    except (ModelRejected, SourceUnreachable):
        # Bad bytes must not be what the next fetch resumes from.
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return cache.publish(key, {"fingerprint": fingerprint_of(files), "files": files})


def _check_hashes(selection: Selection, files: list[JsonObject]) -> None:
    for file, found in zip(selection.files, files, strict=True):
        if file.sha256 is not None and file.sha256 != found["sha256"]:
            raise SourceUnreachable(f"{file.path} arrived with another SHA-256 than its source gives; retry.")


def _download_file(source: ModelSource, file: SourceFile, path: Path, cancelled: Cancelled) -> Iterator[int]:
    """Yields the bytes present so far. Continues a partial file; a source that went away is tried again."""
    tries = furthest = 0
    while (present := path.stat().st_size if path.exists() else 0) < file.size_bytes or not path.exists():
        # Without an identity nothing says that the rest would be of the same file.
        if present and file.identity is None:
            path.unlink()
            continue
        try:
            yield from _append(source, file, path, present, cancelled)
        except SourceChanged:
            raise
        except SourceUnreachable:
            # Progress earns new tries: a long download over a bad line goes on as long as it gets anywhere.
            reached = path.stat().st_size if path.exists() else 0
            tries = 1 if reached > furthest else tries + 1
            furthest = max(furthest, reached)
            if tries >= _TRIES:
                raise
            _pause(2.0**tries / 4, cancelled)
    if present > file.size_bytes:
        path.unlink()
        raise SourceChanged(file.path)


def _append(source: ModelSource, file: SourceFile, path: Path, present: int, cancelled: Cancelled) -> Iterator[int]:
    with path.open("ab") as stream:
        for chunk in source.stream(file, present):
            if cancelled():
                raise FetchCancelled
            stream.write(chunk)
            present += len(chunk)
            yield present
            if present > file.size_bytes:
                break
    if present < file.size_bytes:
        raise SourceUnreachable(f"The connection ended after {present} of {file.size_bytes} bytes of {file.path}.")


def _pause(seconds: float, cancelled: Cancelled) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if cancelled():
            raise FetchCancelled
        time.sleep(0.05)
