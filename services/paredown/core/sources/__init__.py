"""Models and texts from elsewhere: describe before a job is queued, fetch when it runs.

One file for each family of schemes. Everything ends as verified files in the content-addressed cache; nothing from a
model is ever executed or unpickled.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast
from uuid import UUID

from paredown.contracts.job import Calibration
from paredown.contracts.tasks import TaskName
from paredown.core.calibrations import StoredCalibration
from paredown.core.errors import ModelRejected, NotFound, SchemeUnknown, SourceError, SourceNotFound, TextUnusable
from paredown.core.settings import Settings
from paredown.core.sources.artifact import ArtifactSource, Shelf
from paredown.core.sources.base import (
    Cancelled,
    FetchCancelled,
    FetchedModel,
    ModelDescription,
    ModelSource,
    Progress,
    SourceFile,
)
from paredown.core.sources.cache import Cache
from paredown.core.sources.fetch import describe_source, fetch_from
from paredown.core.sources.https import HttpsSource, check_https_text, read_https, read_https_text
from paredown.core.sources.hub import HubSource, check_hub_text, read_hub, read_hub_text
from paredown.core.sources.local import check_file_text, open_file, open_package, read_file_text, read_rows
from paredown.core.sources.rows import task_rows
from paredown.core.sources.s3 import S3Source, check_s3_text, read_s3, read_s3_text
from paredown.core.sources.text import BUILTIN_PYTHON_DOCS, Part, bounded, plain_text, python_docs
from paredown.core.storage import ObjectStore

_MODELS: dict[str, Callable[[str, Settings], ModelSource]] = {
    "pkg": open_package,
    "file": open_file,
    "https": HttpsSource,
    "http": HttpsSource,
    "hf": HubSource,
    "s3": S3Source,
}
_TEXT_CHECKS: dict[str, Callable[[str, Settings], None]] = {
    "file": check_file_text,
    "https": check_https_text,
    "http": check_https_text,
    "hf": check_hub_text,
    "s3": check_s3_text,
}
_TEXTS: dict[str, Callable[[str, Settings], bytes]] = {
    "file": read_file_text,
    "https": read_https_text,
    "http": read_https_text,
    "hf": read_hub_text,
    "s3": read_s3_text,
}


_ROWS: dict[str, Callable[[str, Settings], tuple[str, bytes]]] = {
    "file": read_rows,
    "https": read_https,
    "http": read_https,
    "hf": read_hub,
    "s3": read_s3,
}


@contextmanager
def open_source(uri: str, settings: Settings, shelf: Shelf | None = None) -> Iterator[ModelSource]:
    """The source that an address names, after a check that it is allowed. Raises SourceError, ModelRejected.

    Without a shelf there is no catalogue here, and artifact:// is refused.
    """
    source = _opened(uri, settings, shelf)
    try:
        yield source
    finally:
        source.close()


def _opened(uri: str, settings: Settings, shelf: Shelf | None) -> ModelSource:
    if _scheme(uri) == "artifact":
        return ArtifactSource(uri, shelf)
    opener = _MODELS.get(_scheme(uri))
    if opener is None:
        raise SchemeUnknown(
            f"{uri} is not an address of a model; write {_written(_MODELS)}, artifact://.", field="model"
        )
    return opener(uri, settings)


def describe(uri: str, settings: Settings, shelf: Shelf | None = None) -> ModelDescription:
    """What a model is, from its configuration and headers alone. Raises SourceError, ModelRejected."""
    with _blaming("model"), open_source(uri, settings, shelf) as source:
        description = describe_source(uri, source)
        if not isinstance(source, ArtifactSource):
            return description
        earlier = tuple(stage for recipe in source.manifest.recipes for stage in recipe)
        return replace(description, base=source.manifest.base, earlier=earlier)


def fetch_model(
    uri: str, settings: Settings, shelf: Shelf | None = None, *, progress: Progress, cancelled: Cancelled
) -> FetchedModel:
    """A verified local directory. `progress` hears (bytes present, bytes in all).

    Raises SourceError, ModelRejected, DiskFull, PlanExceeded; FetchCancelled when `cancelled` says so.
    """
    with _blaming("model"), open_source(uri, settings, shelf) as source:
        lineage = source.lineage() if isinstance(source, ArtifactSource) else ()
        fetched = fetch_from(uri, source, settings, progress, cancelled)
        if isinstance(source, ArtifactSource):
            return replace(fetched, record=source.manifest.base, lineage=lineage)
        return fetched


# The key of a data set in the object store; raises NotFound for a foreign or unknown one.
ResolveDataset = Callable[[UUID], str]
# Where a calibration of the project lies; raises NotFound for a foreign or unknown one.
ResolveCalibration = Callable[[UUID], StoredCalibration]


def check_text_uri(uri: str, settings: Settings, resolve_dataset: ResolveDataset | None = None) -> None:
    """Refuse at submit what can never be read. Reads nothing of the text. Raises SourceError, NotFound."""
    scheme = _scheme(uri)
    if scheme == "builtin":
        _builtin_part(uri, "calibration")
    elif scheme == "dataset":
        dataset = _dataset_id(uri)
        if resolve_dataset is not None:
            resolve_dataset(dataset)
    elif scheme in _TEXT_CHECKS:
        _TEXT_CHECKS[scheme](uri, settings)
    else:
        raise SchemeUnknown(f"{uri} is not an address of a text; write builtin, dataset, {_written(_TEXT_CHECKS)}.")


def fetch_text(
    uri: str, settings: Settings, *, part: Part, store: ObjectStore, resolve_dataset: ResolveDataset
) -> Path:
    """The text as one UTF-8 file in the cache. Raises SourceError, TextUnusable, NotFound, DiskFull.

    `part` chooses the half of builtin://python-docs; other texts are taken whole.
    """
    scheme = _scheme(uri)
    if scheme == "builtin":
        data = python_docs(_builtin_part(uri, part))
    elif scheme == "dataset":
        data = plain_text(_uploaded(uri, store, resolve_dataset), uri)
    elif scheme in _TEXTS:
        data = _TEXTS[scheme](uri, settings)
    else:
        raise SchemeUnknown(f"{uri} is not an address of a text; write builtin, dataset, {_written(_TEXTS)}.")
    return Cache(settings).put_text(data)


def fetch_calibration(
    calibration: Calibration, settings: Settings, *, store: ObjectStore, resolve: ResolveCalibration
) -> tuple[Path, str]:
    """The token blocks of a calibration:// in the cache, and the hash of the tokenizer that they are of.

    Raises SourceNotFound, TextUnusable, StorageUnavailable, DiskFull.
    """
    assert calibration.stored_id is not None, "its tokens are drawn from a text"
    field = "calibration.source"
    try:
        found = resolve(calibration.stored_id)
        data = b"".join(store.read_range(found.storage_key, 0, found.size_bytes))
    except NotFound as error:
        raise SourceNotFound(
            f"{calibration.source} was deleted; name the text that it was drawn from.", field=field
        ) from error
    if hashlib.sha256(data).hexdigest() != found.file_sha256:
        raise TextUnusable(
            f"The object store holds other bytes of {calibration.source} than were drawn; delete it, and name the text "
            "that it was drawn from.",
            field=field,
        )
    return Cache(settings).put_text(data, ".npy"), found.tokenizer_sha256


def check_rows_uri(uri: str, settings: Settings, resolve_dataset: ResolveDataset | None = None) -> None:
    """The same of a task's rows, of which none are built in."""
    if _scheme(uri) == "builtin":
        raise SchemeUnknown(f"{uri} holds no rows of a task; write dataset, {_written(_ROWS)}.")
    check_text_uri(uri, settings, resolve_dataset)


def fetch_rows(
    uri: str, settings: Settings, *, task: TaskName, store: ObjectStore, resolve_dataset: ResolveDataset
) -> Path:
    """A task's rows as JSON lines in the cache. Raises SourceError, TaskRowsUnusable, NotFound, DiskFull."""
    scheme = _scheme(uri)
    if scheme == "dataset":
        name, data = uri, _uploaded(uri, store, resolve_dataset)
    elif scheme in _ROWS:
        name, data = _ROWS[scheme](uri, settings)
    else:
        raise SchemeUnknown(f"{uri} holds no rows of a task; write dataset, {_written(_ROWS)}.")
    return Cache(settings).put_text(task_rows(data, name, task))


def _uploaded(uri: str, store: ObjectStore, resolve_dataset: ResolveDataset) -> bytes:
    key = resolve_dataset(_dataset_id(uri))
    size = store.size(key)
    if size is None:
        raise SourceNotFound(f"The text of {uri} is no longer in the object store; upload it again.")
    return bounded(store.read_range(key, 0, size), uri)


def _scheme(uri: str) -> str:
    return uri.partition("://")[0]


def _written(schemes: Iterable[str]) -> str:
    return ", ".join(f"{scheme}://" for scheme in schemes)


def _builtin_part(uri: str, part: Part) -> Part:
    """`#calibration` or `#evaluation` names a part outright."""
    name, _, fragment = uri.removeprefix("builtin://").partition("#")
    if name != BUILTIN_PYTHON_DOCS:
        raise SourceNotFound(f"There is no built-in text {name!r}; the one there is is {BUILTIN_PYTHON_DOCS}.")
    if fragment not in ("", "calibration", "evaluation"):
        raise SourceNotFound(f"{BUILTIN_PYTHON_DOCS} has the parts calibration and evaluation, not {fragment!r}.")
    return cast(Part, fragment) if fragment else part


def _dataset_id(uri: str) -> UUID:
    try:
        return UUID(uri.removeprefix("dataset://"))
    except ValueError as error:
        raise SourceNotFound(f"{uri} does not name a data set; write dataset:// and its id.") from error


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    """Errors of a source say which field of the job named it."""
    try:
        yield
    except (SourceError, ModelRejected) as error:
        error.field = error.field or field
        raise


__all__ = [
    "Cancelled",
    "FetchCancelled",
    "FetchedModel",
    "ModelDescription",
    "ModelSource",
    "Part",
    "Progress",
    "ResolveCalibration",
    "ResolveDataset",
    "Shelf",
    "SourceFile",
    "check_rows_uri",
    "check_text_uri",
    "describe",
    "fetch_calibration",
    "fetch_model",
    "fetch_rows",
    "fetch_text",
    "open_source",
]
