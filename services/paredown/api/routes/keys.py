"""API keys of the caller's project, and who the caller is."""

from fastapi import APIRouter
from starlette.responses import Response

from paredown.api.auth import allow
from paredown.api.http import ApiRoute
from paredown.api.openapi import header, problems
from paredown.api.schemas import KeyId, KeyPage
from paredown.api.service import UsesService
from paredown.contracts.access import KeyCreated, KeyRequest, Me
from paredown.core import access
from paredown.core.access import Principal
from paredown.core.errors import Forbidden

router = APIRouter(prefix="/v1", route_class=ApiRoute, tags=["keys"])


@router.get("/me", operation_id="getMe", summary="Whom this key speaks for")
def me(caller: Principal = allow()) -> Me:
    return Me(
        project_id=caller.project_id,
        project=caller.project,
        key_id=caller.key_id,
        key_name=caller.key_name,
        scopes=tuple(caller.scopes),
    )


@router.post(
    "/keys",
    operation_id="createKey",
    summary="Make a key; its secret is shown this once",
    status_code=201,
    responses={201: {"headers": {"Location": header("Address of the key, to revoke it.")}}},
)
def create_key(
    wanted: KeyRequest, response: Response, service: UsesService, caller: Principal = allow("keys:admin")
) -> KeyCreated:
    """The new key can do nothing that this one cannot."""
    excess = [scope for scope in wanted.scopes if scope not in caller.scopes]
    if excess:
        raise Forbidden(f"This key lacks {', '.join(excess)}, so it cannot give that to another.", field="scopes")
    with service.database.transaction() as session:
        key, secret = access.create_key(
            session, caller.project_id, wanted.name, wanted.scopes, wanted.expires_at, service.settings
        )
    response.headers["Location"] = f"/v1/keys/{key.id}"
    response.headers["Cache-Control"] = "no-store"
    return KeyCreated(key=key, secret=secret)


@router.get("/keys", operation_id="listKeys", summary="The project's keys, without their secrets")
def list_keys(service: UsesService, caller: Principal = allow("keys:admin")) -> KeyPage:
    with service.database.transaction() as session:
        keys = access.list_keys(session, caller.project_id)
    return KeyPage(items=tuple(keys), has_more=False, after=None)


@router.delete(
    "/keys/{key_id}",
    operation_id="revokeKey",
    summary="Revoke a key at once",
    status_code=204,
    responses=problems(404),
)
def revoke_key(key_id: KeyId, service: UsesService, caller: Principal = allow("keys:admin")) -> None:
    with service.database.transaction() as session:
        access.revoke_key(session, caller.project_id, key_id)
