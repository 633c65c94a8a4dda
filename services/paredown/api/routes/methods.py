"""Methods with the schema of their settings, and pools of workers: what a form is built from."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from paredown.api.auth import allow
from paredown.api.http import ApiRoute, tagged
from paredown.api.openapi import header, problems
from paredown.api.routes.jobs import IfNoneMatch
from paredown.api.schemas import MethodPage, PoolPage
from paredown.api.service import UsesService
from paredown.contracts.job import JobState
from paredown.contracts.methods import MethodView, method_views
from paredown.contracts.service import PoolView
from paredown.core import jobs, prices
from paredown.core.access import Principal
from paredown.core.errors import NotFound

router = APIRouter(prefix="/v1", route_class=ApiRoute)


@router.get(
    "/methods",
    operation_id="listMethods",
    tags=["methods"],
    summary="Every method with the JSON Schema of its settings",
    response_model=MethodPage,
    responses={200: {"headers": {"ETag": header("Changes with the release.")}}, 304: {"description": "Unchanged."}},
)
def list_methods(if_none_match: IfNoneMatch = None, _: Principal = allow("jobs:read")) -> Response:
    return tagged(MethodPage(items=tuple(method_views()), has_more=False, after=None), if_none_match)


@router.get(
    "/methods/{method}",
    operation_id="getMethod",
    tags=["methods"],
    summary="One method",
    response_model=MethodView,
    responses={
        200: {"headers": {"ETag": header("Changes with the release.")}},
        304: {"description": "Unchanged."},
        **problems(404),
    },
)
def get_method(
    method: Annotated[str, Path(max_length=64, description="Name of the method, such as gptq.")],
    if_none_match: IfNoneMatch = None,
    _: Principal = allow("jobs:read"),
) -> Response:
    known = {view.method: view for view in method_views()}
    if method not in known:
        raise NotFound(f"There is no method {method!r}; there are {', '.join(known)}.")
    return tagged(known[method], if_none_match)


@router.get("/pools", operation_id="listPools", tags=["pools"], summary="Worker pools, their price and their queue")
def list_pools(service: UsesService, caller: Principal = allow("jobs:read")) -> PoolPage:
    settings = service.settings
    with service.database.transaction() as session:
        counts = jobs.counts(session)
        book = prices.price_book(session, caller.project_id)
    rates = {name: prices.rate(pool, book, settings) for name, pool in settings.pools.items()}
    pools = tuple(
        PoolView(
            name=name,
            device=pool.device,
            instance=rates[name].instance,
            price_per_hour=rates[name].price_per_hour,
            currency=rates[name].currency,
            memory_bytes=pool.memory_bytes,
            default=name == settings.default_pool,
            queued=counts.get((name, JobState.QUEUED), 0),
            running=counts.get((name, JobState.RUNNING), 0),
        )
        for name, pool in settings.pools.items()
    )
    return PoolPage(items=pools, has_more=False, after=None)
