"""Who calls, and what the key allows. Keys are Bearer tokens; a key speaks for one project."""

from typing import Annotated, Any, cast

from fastapi import Request, Security
from fastapi.security import HTTPBearer, SecurityScopes

from paredown.core import access
from paredown.core.access import Principal
from paredown.core.errors import Forbidden, Unauthenticated

_MAX_SECRET_LENGTH = 512

bearer = HTTPBearer(
    scheme_name="ApiKey",
    description="An API key: `Authorization: Bearer pare_…`. Each operation names the scope that the key must have.",
    auto_error=False,
)


def authenticate(request: Request) -> Principal:
    """The key's owner. Blocks on the database. Raises Unauthenticated."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated("This needs an API key: send the header `Authorization: Bearer KEY`.")
    if len(secret) > _MAX_SECRET_LENGTH or not secret.isascii():
        raise Unauthenticated("This API key is not known, or it is revoked or expired.")
    service = request.app.state.service
    with service.database.transaction() as session:
        return access.authenticate(session, secret, service.settings)


def _principal(request: Request, needed: SecurityScopes, _: Annotated[Any, Security(bearer)]) -> Principal:
    """http.ApiRoute has authenticated already; here the scopes are checked and OpenAPI learns of them."""
    principal = cast("Principal", request.state.principal)
    for scope in needed.scopes:
        require(principal, scope)
    return principal


def require(principal: Principal, scope: str) -> None:
    """Raises Forbidden."""
    if scope not in principal.scopes:
        has = ", ".join(principal.scopes) or "none"
        raise Forbidden(f"This needs a key with the scope {scope}; this key has {has}.")


def allow(*scopes: str) -> Any:
    """The parameter of a route that only keys with these scopes may call."""
    return Security(_principal, scopes=list(scopes))
