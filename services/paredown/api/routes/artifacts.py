"""The catalogue: what jobs have made. Artifacts themselves never change; their name, tags and visibility may."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from paredown.api.auth import allow
from paredown.api.http import ApiRoute, tagged
from paredown.api.openapi import header, problems
from paredown.api.routes.jobs import IfNoneMatch
from paredown.api.schemas import ArtifactChanges, ArtifactId, ArtifactPage, Cursor, Limit, OverrideRequest
from paredown.api.service import UsesService
from paredown.contracts.artifact import ArtifactView, Manifest
from paredown.contracts.job import Tag
from paredown.contracts.report import Verdict
from paredown.core import catalogue
from paredown.core.access import Principal

router = APIRouter(prefix="/v1", route_class=ApiRoute, tags=["artifacts"])

_ETAG: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"ETag": header("Changes with what the catalogue says of the artifact.")}}
}
_TAGGED: dict[int | str, dict[str, Any]] = {**_ETAG, 304: {"description": "Unchanged."}, **problems(404)}


@router.get("/artifacts", operation_id="listArtifacts", summary="Search the catalogue, newest first")
def list_artifacts(
    service: UsesService,
    search: Annotated[str | None, Query(max_length=200, description="Words in name, model or recipe.")] = None,
    tag: Annotated[Tag | None, Query(description="A whole tag.")] = None,
    model: Annotated[str | None, Query(max_length=2048, description="URI or fingerprint, or artifact://ID.")] = None,
    method: Annotated[str | None, Query(max_length=64, description="A method in the recipe.")] = None,
    verdict: Annotated[Verdict | None, Query(description="What the budget's check said.")] = None,
    parent: Annotated[UUID | None, Query(description="Id of the artifact that they were made of.")] = None,
    after: Cursor = None,
    limit: Limit = 50,
    caller: Principal = allow("artifacts:read"),
) -> ArtifactPage:
    """The project's own artifacts, and those that other projects show to everyone."""
    with service.database.transaction() as session:
        items, cursor = catalogue.list_artifacts(
            session,
            caller.project_id,
            search=search,
            tag=tag,
            model=model,
            method=method,
            verdict=verdict,
            parent=parent,
            after=after,
            limit=limit,
        )
    return ArtifactPage(items=tuple(items), has_more=cursor is not None, after=cursor)


@router.get(
    "/artifacts/{artifact_id}",
    operation_id="getArtifact",
    summary="One artifact",
    response_model=ArtifactView,
    responses=_TAGGED,
)
def get_artifact(
    artifact_id: ArtifactId,
    service: UsesService,
    if_none_match: IfNoneMatch = None,
    caller: Principal = allow("artifacts:read"),
) -> Response:
    with service.database.transaction() as session:
        view = catalogue.get_artifact(session, caller.project_id, artifact_id)
    return tagged(view, if_none_match, catalogue.etag(view))


@router.patch(
    "/artifacts/{artifact_id}",
    operation_id="updateArtifact",
    summary="Change name, tags or visibility",
    responses={**_ETAG, **problems(404, 412)},
)
def update_artifact(
    artifact_id: ArtifactId,
    changes: ArtifactChanges,
    response: Response,
    service: UsesService,
    if_match: Annotated[
        str | None, Header(description="ETag that you have: 412 when somebody changed the artifact meanwhile.")
    ] = None,
    caller: Principal = allow("artifacts:write"),
) -> ArtifactView:
    with service.database.transaction() as session:
        view = catalogue.update_artifact(
            session,
            caller.project_id,
            artifact_id,
            name=changes.name,
            tags=changes.tags,
            visibility=changes.visibility,
            if_match=if_match,
        )
    response.headers["ETag"] = catalogue.etag(view)
    return view


@router.post(
    "/artifacts/{artifact_id}/override",
    operation_id="overrideVerdict",
    summary="Override the verdict of an artifact that missed its budget",
    responses=problems(404, 409),
)
def override_verdict(
    artifact_id: ArtifactId,
    override: OverrideRequest,
    service: UsesService,
    caller: Principal = allow("artifacts:override"),
) -> ArtifactView:
    """Reason, key and time stay with the artifact; its report and its job's state never change."""
    with service.database.transaction() as session:
        return catalogue.override_verdict(
            session, caller.project_id, artifact_id, reason=override.reason, key_name=caller.key_name
        )


@router.delete(
    "/artifacts/{artifact_id}",
    operation_id="deleteArtifact",
    summary="Take an artifact out of the catalogue",
    status_code=204,
    responses=problems(404),
)
def delete_artifact(
    artifact_id: ArtifactId, service: UsesService, caller: Principal = allow("artifacts:write")
) -> None:
    """At once for every reader; its files are removed soon after."""
    with service.database.transaction() as session:
        catalogue.delete_artifact(session, caller.project_id, artifact_id)


@router.get(
    "/artifacts/{artifact_id}/manifest",
    operation_id="getManifest",
    summary="Everything needed to check an artifact and to make it again",
    response_model=Manifest,
    responses=_TAGGED,
)
def get_manifest(
    artifact_id: ArtifactId,
    service: UsesService,
    if_none_match: IfNoneMatch = None,
    caller: Principal = allow("artifacts:read"),
) -> Response:
    with service.database.transaction() as session:
        return tagged(catalogue.manifest(session, caller.project_id, artifact_id), if_none_match)
