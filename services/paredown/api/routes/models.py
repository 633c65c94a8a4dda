"""Models, and the trade-offs that were found for them."""

from typing import Annotated

from fastapi import APIRouter, Query

from paredown.api.auth import allow
from paredown.api.http import ApiRoute
from paredown.api.openapi import problems
from paredown.api.schemas import Cursor, FrontPage, Limit, ModelPage
from paredown.api.service import UsesService
from paredown.contracts.artifact import CostAxis, Front
from paredown.core import catalogue
from paredown.core.access import Principal
from paredown.core.sources.packages import packaged_models

router = APIRouter(prefix="/v1", route_class=ApiRoute, tags=["models"])


@router.get("/models", operation_id="listModels", summary="Models that one can submit")
def list_models(
    service: UsesService, after: Cursor = None, limit: Limit = 50, caller: Principal = allow("jobs:read")
) -> ModelPage:
    """Those that the project has used, newest first. The first page begins with those that installed packages carry."""
    with service.database.transaction() as session:
        recorded, cursor = catalogue.list_models(session, caller.project_id, after=after, limit=limit)
    known = {entry.uri for entry in recorded}
    packaged = packaged_models(service.settings) if after is None else []
    items = [*(entry for entry in packaged if entry.uri not in known), *recorded]
    return ModelPage(items=tuple(items), has_more=cursor is not None, after=cursor)


@router.get(
    "/models/front",
    operation_id="getFront",
    summary="The trade-offs of one model",
    responses=problems(404),
)
def get_front(
    service: UsesService,
    model: Annotated[
        str, Query(min_length=1, max_length=2048, description="URI or fingerprint of the model, or artifact://ID.")
    ],
    cost_axis: Annotated[CostAxis, Query(description="What accuracy is weighed against.")] = "size_bytes",
    protocol: Annotated[
        str | None,
        Query(pattern="^[0-9a-f]{64}$", description="Hash of the protocol; empty takes the one with most artifacts."),
    ] = None,
    caller: Principal = allow("artifacts:read"),
) -> Front:
    """Every artifact of the model that was measured under one protocol, and the base; `on_front` marks the best."""
    with service.database.transaction() as session:
        return catalogue.front(session, caller.project_id, model, protocol, cost_axis)


@router.get("/models/fronts", operation_id="listFronts", summary="The models and protocols that have a front")
def list_fronts(service: UsesService, caller: Principal = allow("artifacts:read")) -> FrontPage:
    """Every model with an evaluated artifact, once for each protocol; the one of the newest artifact comes first."""
    with service.database.transaction() as session:
        entries = catalogue.fronts(session, caller.project_id)
    return FrontPage(items=tuple(entries), has_more=False, after=None)
