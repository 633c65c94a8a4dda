"""Aliases: names that point at artifacts and can be moved."""

from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.responses import Response

from paredown.api.auth import allow
from paredown.api.http import ApiRoute, tagged
from paredown.api.openapi import header, problems
from paredown.api.routes.jobs import IfNoneMatch
from paredown.api.schemas import AliasInPath, AliasPage, Cursor, Limit, SubmittedAlias
from paredown.api.service import UsesService
from paredown.contracts.alias import AliasDetails
from paredown.core import aliases
from paredown.core.access import Principal

router = APIRouter(prefix="/v1", route_class=ApiRoute, tags=["aliases"])

_ETAG: dict[int | str, dict[str, Any]] = {200: {"headers": {"ETag": header("Changes with where the alias points.")}}}
IfMatch = Annotated[
    str | None, Header(description="ETag that you have: 412 when somebody moved the alias meanwhile, or it is new.")
]


@router.get("/aliases", operation_id="listAliases", summary="The project's aliases, newest first")
def list_aliases(
    service: UsesService, after: Cursor = None, limit: Limit = 50, caller: Principal = allow("artifacts:read")
) -> AliasPage:
    with service.database.transaction() as session:
        items, cursor = aliases.list_aliases(session, caller.project_id, after=after, limit=limit)
    return AliasPage(items=tuple(items), has_more=cursor is not None, after=cursor)


@router.get(
    "/aliases/{name:path}",
    operation_id="getAlias",
    summary="Where an alias points, and pointed before",
    response_model=AliasDetails,
    responses={**_ETAG, 304: {"description": "Unchanged."}, **problems(404)},
)
def get_alias(
    name: AliasInPath,
    service: UsesService,
    if_none_match: IfNoneMatch = None,
    caller: Principal = allow("artifacts:read"),
) -> Response:
    with service.database.transaction() as session:
        alias = aliases.get(session, caller.project_id, name)
    return tagged(alias, if_none_match, aliases.etag(alias))


@router.put(
    "/aliases/{name:path}",
    operation_id="putAlias",
    summary="Make an alias, or move it",
    responses={**_ETAG, **problems(409, 412)},
)
def put_alias(
    name: AliasInPath,
    wanted: SubmittedAlias,
    response: Response,
    service: UsesService,
    if_match: IfMatch = None,
    caller: Principal = allow("artifacts:write"),
) -> AliasDetails:
    """A protected alias takes only artifacts that met their budget or were overridden; moving, protecting or
    unprotecting one needs the scope `artifacts:promote` as well. Asking for what is so already changes nothing."""
    with service.database.transaction() as session:
        alias = aliases.put(session, caller, name, wanted, if_match)
    response.headers["ETag"] = aliases.etag(alias)
    return alias


@router.delete(
    "/aliases/{name:path}",
    operation_id="deleteAlias",
    summary="Remove an alias",
    status_code=204,
    responses=problems(404, 412),
)
def delete_alias(
    name: AliasInPath, service: UsesService, if_match: IfMatch = None, caller: Principal = allow("artifacts:write")
) -> None:
    """The artifact stays, and so does the alias's history. A protected one needs `artifacts:promote` as well."""
    with service.database.transaction() as session:
        aliases.remove(session, caller, name, if_match)
