"""The project's price book."""

from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.responses import Response

from paredown.api.auth import allow
from paredown.api.http import ApiRoute, tagged
from paredown.api.openapi import header, problems
from paredown.api.routes.jobs import IfNoneMatch
from paredown.api.service import UsesService
from paredown.contracts.prices import PriceBook
from paredown.core import prices
from paredown.core.access import Principal

router = APIRouter(prefix="/v1", route_class=ApiRoute, tags=["prices"])

_ETAG: dict[int | str, dict[str, Any]] = {200: {"headers": {"ETag": header("Changes with the book.")}}}


@router.get(
    "/prices",
    operation_id="getPrices",
    summary="What machines cost",
    response_model=PriceBook,
    responses={**_ETAG, 304: {"description": "Unchanged."}},
)
def get_prices(
    service: UsesService, if_none_match: IfNoneMatch = None, caller: Principal = allow("jobs:read")
) -> Response:
    """Instance types with their price per hour, by which jobs and serving are reckoned in this project."""
    with service.database.transaction() as session:
        book = prices.price_book(session, caller.project_id)
    return tagged(book, if_none_match, prices.etag(book))


@router.put(
    "/prices",
    operation_id="putPrices",
    summary="Write the price book anew",
    responses={**_ETAG, **problems(412)},
)
def put_prices(
    book: PriceBook,
    response: Response,
    service: UsesService,
    if_match: Annotated[
        str | None, Header(description="ETag that you have: 412 when somebody changed the prices meanwhile.")
    ] = None,
    caller: Principal = allow("keys:admin"),
) -> PriceBook:
    """The whole book: what is left out is gone. Reports that are there keep the prices that they were made at."""
    with service.database.transaction() as session:
        kept = prices.replace(session, caller.project_id, book, if_match)
    response.headers["ETag"] = prices.etag(kept)
    return kept
