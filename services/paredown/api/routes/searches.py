"""Searches: submit, list, look at, cancel. The dispatcher goes on with them."""

from fastapi import APIRouter
from starlette.responses import Response

from paredown.api import submission
from paredown.api.auth import allow
from paredown.api.http import ApiRoute
from paredown.api.openapi import header, problems
from paredown.api.routes.jobs import IdempotencyKey
from paredown.api.schemas import Cursor, Limit, SearchId, SearchPage, SubmittedSearch
from paredown.api.service import UsesService
from paredown.contracts.search import SearchDetails
from paredown.core import searches
from paredown.core.access import Principal

router = APIRouter(prefix="/v1", route_class=ApiRoute)


@router.post(
    "/searches",
    operation_id="submitSearch",
    tags=["searches"],
    summary="Submit a search",
    status_code=201,
    responses={
        201: {
            "description": "The search, its recipes planned; or, with an Idempotency-Key that came before, the search "
            "it made then.",
            "headers": {
                "Location": header("Address of the search."),
                "Idempotent-Replayed": header("`true` when this key has made the search before.", enum=["true"]),
            },
        },
        **problems(409, 503),
    },
)
def submit_search(
    spec: SubmittedSearch,
    response: Response,
    service: UsesService,
    idempotency_key: IdempotencyKey = None,
    caller: Principal = allow("jobs:write"),
) -> SearchDetails:
    """A budget instead of a recipe: recipes are tried, cheaply first, and the best within the limits is chosen."""
    search, created = submission.submit_search(service, caller.project_id, spec, idempotency_key)
    response.headers["Location"] = f"/v1/searches/{search.id}"
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return search


@router.get("/searches", operation_id="listSearches", tags=["searches"], summary="List searches, newest first")
def list_searches(
    service: UsesService, after: Cursor = None, limit: Limit = 50, caller: Principal = allow("jobs:read")
) -> SearchPage:
    with service.database.transaction() as session:
        items, cursor = searches.list_searches(session, caller.project_id, after=after, limit=limit)
    return SearchPage(items=tuple(items), has_more=cursor is not None, after=cursor)


@router.get(
    "/searches/{search_id}",
    operation_id="getSearch",
    tags=["searches"],
    summary="One search",
    responses=problems(404),
)
def get_search(search_id: SearchId, service: UsesService, caller: Principal = allow("jobs:read")) -> SearchDetails:
    """Its trials with what was measured, and in the end the one that was chosen, with the reason."""
    with service.database.transaction() as session:
        return searches.get(session, caller.project_id, search_id)


@router.post(
    "/searches/{search_id}/cancel",
    operation_id="cancelSearch",
    tags=["searches"],
    summary="Cancel a search",
    responses=problems(404, 409),
)
def cancel_search(search_id: SearchId, service: UsesService, caller: Principal = allow("jobs:write")) -> SearchDetails:
    """It ends at once, and its jobs within seconds; artifacts that were made stay."""
    with service.database.transaction() as session:
        return searches.cancel(session, caller.project_id, search_id)
