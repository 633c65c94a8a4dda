"""An artifact's bytes: resumed where a connection broke, checked against the manifest, never half there.

A file grows as `.NAME.HASH.part` beside its place and is renamed once its SHA-256 is right. The part's name carries
the hash, so a resume never mixes two artifacts. The API answers with the bytes or sends us on to the object store;
the store is never shown the API key.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import httpx

from paredown.client.errors import PareApiError, from_response
from paredown.client.transport import Transport, pause_seconds
from paredown.contracts.artifact import MANIFEST_NAME, Manifest, ManifestFile, sha256_file

# Called with the file's path, its bytes so far, and its size.
DownloadProgress = Callable[[str, int, int], None]

CHUNK_BYTES = 1 << 20
# Tries in a row that bring no byte.
MAX_FRUITLESS = 6
_CORRUPT = "download_corrupt"
_INCOMPLETE = "download_incomplete"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def fetch_artifact(
    transport: Transport, manifest: Manifest, directory: Path, progress: DownloadProgress | None = None
) -> Path:
    """All files of the manifest and the manifest itself, in `directory`. Run again, it goes on where it stopped."""
    _refuse_other_artifact(manifest, directory)
    directory.mkdir(parents=True, exist_ok=True)
    for file in manifest.files:
        _fetch_file(transport, manifest.artifact_id, file, directory, progress)
    # Last, so that a directory with a manifest is a complete artifact.
    _write_durably(directory / MANIFEST_NAME, manifest.model_dump_json(indent=2).encode())
    return directory


def stored_problems(
    transport: Transport, manifest: Manifest, progress: DownloadProgress | None = None
) -> Iterator[str]:
    """One sentence for each stored file whose bytes are not those of the manifest. Keeps nothing on disk."""
    for file in manifest.files:
        seen = _Seen()
        try:
            for chunk in _chunks(transport, manifest.artifact_id, file, seen.size):
                seen.add(chunk)
                if progress:
                    progress(file.path, seen.size(), file.size_bytes)
        except PareApiError as error:
            if error.code in (_CORRUPT, _INCOMPLETE):
                yield error.detail
            elif error.status == 404:
                yield f"{file.path} is missing"
            else:
                raise
        else:
            if seen.digest.hexdigest() != file.sha256:
                yield f"{file.path} has another SHA-256 than the manifest says"


class _Seen:
    """Bytes that were hashed and let go."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._size = 0

    def add(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self._size += len(chunk)

    def size(self) -> int:
        return self._size


def _refuse_other_artifact(manifest: Manifest, directory: Path) -> None:
    known = directory / MANIFEST_NAME
    if not known.exists():
        return
    try:
        other = Manifest.model_validate_json(known.read_bytes(), extra="ignore").artifact_id
    except ValueError:
        other = None
    if other != manifest.artifact_id:
        raise PareApiError("target_differs", f"{directory} holds another artifact; choose another directory.")


def _fetch_file(
    transport: Transport, artifact_id: UUID, file: ManifestFile, directory: Path, progress: DownloadProgress | None
) -> None:
    target = directory / file.path
    report = progress or (lambda *_: None)
    if target.exists():
        if target.stat().st_size == file.size_bytes and sha256_file(target) == file.sha256:
            report(file.path, file.size_bytes, file.size_bytes)
            return
        raise PareApiError(
            "target_differs", f"{target} exists and is not the artifact's; move it away or choose another directory."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{file.sha256[:16]}.part")
    # A part left by an earlier run may have rotted: one fresh start is worth it before giving up.
    resumed = part.exists()
    if _fill(transport, artifact_id, file, part, report):
        part.replace(target)
        return
    part.unlink()
    if resumed and _fill(transport, artifact_id, file, part, report):
        part.replace(target)
        return
    part.unlink(missing_ok=True)
    raise PareApiError(_CORRUPT, f"{file.path} came with another SHA-256 than the manifest says; try again.")


def _fill(
    transport: Transport,
    artifact_id: UUID,
    file: ManifestFile,
    part: Path,
    report: Callable[[str, int, int], None],
) -> bool:
    """Bring the part to its full size. Whether its hash is right then."""
    digest = hashlib.sha256()
    with part.open("a+b") as stream:
        stream.seek(0)
        if os.fstat(stream.fileno()).st_size > file.size_bytes:
            stream.truncate(0)
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
        report(file.path, stream.tell(), file.size_bytes)
        for chunk in _chunks(transport, artifact_id, file, stream.tell):
            stream.write(chunk)
            digest.update(chunk)
            report(file.path, stream.tell(), file.size_bytes)
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell() == file.size_bytes and digest.hexdigest() == file.sha256


def _chunks(
    transport: Transport, artifact_id: UUID, file: ManifestFile, position: Callable[[], int]
) -> Iterator[bytes]:
    """The file's bytes from `position()` on. Connections that break are taken up again at the caller's position."""
    fruitless = 0
    while position() < file.size_bytes:
        start = position()
        answered = False
        try:
            with _open(transport, artifact_id, file, start) as response:
                answered = True
                _check_span(response, file, start)
                # A store that ignores Range answers 200 with the whole file: pass over what we have.
                skip = start if response.status_code == 200 else 0
                # In the pieces that arrive: gathering them into larger ones would lose the last one of a connection.
                for chunk in response.iter_bytes():
                    fresh = chunk[skip:][: file.size_bytes - position()]
                    skip = max(0, skip - len(chunk))
                    if fresh:
                        yield fresh
            if position() >= file.size_bytes:
                return
            problem = _broke_off(file, position())
        except httpx.TransportError as error:
            problem = _broke_off(file, position()) if answered else transport.unreachable(error)
        except PareApiError as error:
            # The object store's 403: a signed address that ran out meanwhile; the API signs a new one.
            expired = error.code == "http_403"
            if not expired and error.status not in (429, 502, 503, 504):
                raise
            problem = error
        fruitless = 0 if position() > start else fruitless + 1
        if fruitless >= MAX_FRUITLESS:
            raise problem
        transport.sleep(pause_seconds(max(1, fruitless)))


def _broke_off(file: ManifestFile, position: int) -> PareApiError:
    return PareApiError(_INCOMPLETE, f"{file.path} breaks off after {position} of {file.size_bytes} bytes")


@contextmanager
def _open(transport: Transport, artifact_id: UUID, file: ManifestFile, start: int) -> Iterator[httpx.Response]:
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    url = httpx.URL(f"{transport.base_url}/v1/artifacts/{artifact_id}/files/{quote(file.path)}")
    with transport.http.stream("GET", url, headers=headers, follow_redirects=False) as response:
        if response.status_code not in _REDIRECTS:
            yield _good(response)
            return
        signed = url.join(response.headers["location"])
    # A signed address is its own permission: no key, and nothing else of the client's headers, goes with it.
    with httpx.stream("GET", signed, headers=headers, timeout=transport.http.timeout) as response:
        yield _good(response)


def _check_span(response: httpx.Response, file: ManifestFile, start: int) -> None:
    """The answer must be of a file of the manifest's size and, when partial, start where we asked."""
    if response.status_code == 206:
        span, _, total = response.headers.get("content-range", "").removeprefix("bytes ").partition("/")
        if span.partition("-")[0] != str(start):
            raise PareApiError(_INCOMPLETE, f"{file.path} came from another place than was asked for")
    else:
        total = response.headers.get("content-length", "")
    if total.isdigit() and int(total) != file.size_bytes:
        raise PareApiError(_CORRUPT, f"{file.path} has {total} bytes, not {file.size_bytes}")


def _good(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        response.read()
        raise from_response(response)
    return response


def _write_durably(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
