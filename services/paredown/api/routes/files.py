"""An artifact's bytes: from the object store by its own signed address, or through here in ranges."""

import time
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyQuery
from starlette.responses import RedirectResponse, Response

from paredown.api.auth import allow, authenticate, bearer, require
from paredown.api.downloads import SERVED, StoredFile, serve
from paredown.api.http import ApiRoute
from paredown.api.openapi import header, problems
from paredown.api.schemas import ArtifactId, FilePage
from paredown.api.service import Service, UsesService
from paredown.contracts.access import Scope
from paredown.contracts.artifact import MANIFEST_NAME, Manifest
from paredown.contracts.service import FileLink
from paredown.core import catalogue
from paredown.core.access import Principal
from paredown.core.errors import Forbidden, NotFound
from paredown.core.storage import sign_download, verify_download

router = APIRouter(prefix="/v1", route_class=ApiRoute, tags=["artifacts"])
# A signed address is its own permission, so the key is only looked at where there is no signature.
signed_router = APIRouter(prefix="/v1", route_class=APIRoute, tags=["artifacts"])

signed = APIKeyQuery(
    name="signature",
    scheme_name="SignedAddress",
    description="Made by the service: the addresses in an artifact's list of files carry it, and need no key.",
    auto_error=False,
)

_ANSWERS: dict[int | str, dict[str, Any]] = {
    **SERVED,
    302: {"description": "The object store has it, at the address in Location.", "headers": {"Location": header("")}},
    **problems(401, 403, 404, 416, 503),
}


@router.get(
    "/artifacts/{artifact_id}/files",
    operation_id="listArtifactFiles",
    summary="The files, each with an address that needs no key for some minutes",
    responses=problems(404),
)
def list_files(
    artifact_id: ArtifactId, response: Response, service: UsesService, caller: Principal = allow("artifacts:read")
) -> FilePage:
    with service.database.transaction() as session:
        manifest = catalogue.manifest(session, caller.project_id, artifact_id)
        prefix = catalogue.storage_prefix(session, caller.project_id, artifact_id)
    expires_at = int(time.time()) + service.settings.signed_url_seconds
    files: list[tuple[str, int, str | None]] = [(file.path, file.size_bytes, file.sha256) for file in manifest.files]
    size_bytes = service.store.size(_key(prefix, MANIFEST_NAME))
    if size_bytes is not None:
        files.append((MANIFEST_NAME, size_bytes, None))
    # A signature is as good as a key for this file, so no cache may keep the list.
    response.headers["Cache-Control"] = "no-store"
    items = tuple(
        FileLink(
            path=path,
            size_bytes=size,
            sha256=sha256,
            url=_address(service, artifact_id, prefix, path, expires_at),
            expires_at=datetime.fromtimestamp(expires_at, UTC),
        )
        for path, size, sha256 in files
    )
    return FilePage(items=items, has_more=False, after=None)


@signed_router.get(
    "/artifacts/{artifact_id}/files/{path:path}",
    operation_id="downloadFile",
    summary="One file: whole, a range, or where it lies",
    response_class=Response,
    responses=_ANSWERS,
)
@signed_router.head(
    "/artifacts/{artifact_id}/files/{path:path}",
    operation_id="inspectFile",
    summary="Size and hash of one file",
    response_class=Response,
    responses=_ANSWERS,
)
def download_file(
    request: Request,
    artifact_id: ArtifactId,
    path: Annotated[str, Path(description="As the list of files has it; may hold slashes.")],
    service: UsesService,
    expires: Annotated[int | None, Query(ge=0, lt=2**40, description="Of a signed address: until when.")] = None,
    signature: Annotated[str | None, Security(signed)] = None,
    _: Annotated[Any, Security(bearer, scopes=[Scope.ARTIFACTS_READ])] = None,
) -> Response:
    """Takes `Range` and `If-Range`, `If-None-Match`. With an S3 store the answer is 302 to the store itself."""
    project_id = _reader(request, service, artifact_id, path, expires, signature)
    with service.database.transaction() as session:
        manifest = catalogue.manifest(session, project_id, artifact_id)
        prefix = catalogue.storage_prefix(session, project_id, artifact_id)
    file = _file(service, manifest, prefix, path)
    direct = service.store.url(file.key, PurePosixPath(path).name, service.settings.signed_url_seconds)
    if direct is not None:
        return RedirectResponse(direct, 302, {"Cache-Control": "no-store"})
    return serve(request, service.store, file)


def _reader(
    request: Request, service: Service, artifact_id: UUID, path: str, expires: int | None, signature: str | None
) -> UUID | None:
    """The project that reads; None for whoever holds a signed address."""
    if signature is None:
        caller = authenticate(request)
        request.state.principal = caller
        require(caller, Scope.ARTIFACTS_READ)
        return caller.project_id
    if expires is None or not verify_download(service.settings, _path(artifact_id, path), expires, signature):
        raise Forbidden("This signed address is not valid, or its time has run out; ask for the list of files again.")
    return None


def _file(service: Service, manifest: Manifest, prefix: str, path: str) -> StoredFile:
    key = _key(prefix, path)
    for file in manifest.files:
        if file.path == path:
            return StoredFile(key, path, file.size_bytes, f'"{file.sha256}"')
    if path == MANIFEST_NAME:
        size_bytes = service.store.size(key)
        if size_bytes is not None:
            return StoredFile(key, path, size_bytes, f'"manifest-{manifest.artifact_id}"')
    raise NotFound(f"The artifact has no file {path!r}; GET /v1/artifacts/{manifest.artifact_id}/files lists them.")


def _address(service: Service, artifact_id: UUID, prefix: str, path: str, expires_at: int) -> str:
    settings = service.settings
    direct = service.store.url(_key(prefix, path), PurePosixPath(path).name, settings.signed_url_seconds)
    if direct is not None:
        return direct
    signature = sign_download(settings, _path(artifact_id, path), expires_at)
    address = f"{settings.public_url.rstrip('/')}{quote(_path(artifact_id, path))}"
    return f"{address}?expires={expires_at}&signature={signature}"


def _path(artifact_id: UUID, path: str) -> str:
    """What is signed: the plain path, whatever a proxy puts before it."""
    return f"/v1/artifacts/{artifact_id}/files/{path}"


def _key(prefix: str, path: str) -> str:
    return f"{prefix.rstrip('/')}/{path}"
