"""Sweeps: submit, list, look at, cancel. Events are those of their jobs."""

from fastapi import APIRouter
from starlette.responses import Response

from paredown.api import submission
from paredown.api.auth import allow
from paredown.api.http import ApiRoute
from paredown.api.openapi import header, problems
from paredown.api.routes.jobs import IdempotencyKey
from paredown.api.schemas import Cursor, Limit, SubmittedSweep, SweepId, SweepPage
from paredown.api.service import UsesService
from paredown.contracts.sweep import SweepDetails, SweepPlan
from paredown.core import sweeps
from paredown.core.access import Principal

router = APIRouter(prefix="/v1", route_class=ApiRoute)


@router.post(
    "/sweeps",
    operation_id="submitSweep",
    tags=["sweeps"],
    summary="Submit a sweep",
    status_code=201,
    responses={
        201: {
            "description": "The sweep with its jobs queued; or, with an Idempotency-Key that came before, the sweep it "
            "made then.",
            "headers": {
                "Location": header("Address of the sweep."),
                "Idempotent-Replayed": header("`true` when this key has made the sweep before.", enum=["true"]),
            },
        },
        **problems(409, 503),
    },
)
def submit_sweep(
    spec: SubmittedSweep,
    response: Response,
    service: UsesService,
    idempotency_key: IdempotencyKey = None,
    caller: Principal = allow("jobs:write"),
) -> SweepDetails:
    """All jobs are made, or none: one recipe that does not fit refuses the whole, and `field` says which."""
    sweep, created = submission.submit_sweep(service, caller.project_id, spec, idempotency_key)
    response.headers["Location"] = f"/v1/sweeps/{sweep.id}"
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return sweep


@router.post(
    "/plans/sweep",
    operation_id="planSweep",
    tags=["plans"],
    summary="What a sweep would need",
    responses=problems(503),
)
def plan_sweep(spec: SubmittedSweep, service: UsesService, caller: Principal = allow("jobs:read")) -> SweepPlan:
    """The plan of every recipe, what of them is there already, and the totals. Nothing is queued or downloaded."""
    return submission.plan_sweep(service, caller.project_id, spec)


@router.get("/sweeps", operation_id="listSweeps", tags=["sweeps"], summary="List sweeps, newest first")
def list_sweeps(
    service: UsesService, after: Cursor = None, limit: Limit = 50, caller: Principal = allow("jobs:read")
) -> SweepPage:
    with service.database.transaction() as session:
        items, cursor = sweeps.list_sweeps(session, caller.project_id, after=after, limit=limit)
    return SweepPage(items=tuple(items), has_more=cursor is not None, after=cursor)


@router.get(
    "/sweeps/{sweep_id}", operation_id="getSweep", tags=["sweeps"], summary="One sweep", responses=problems(404)
)
def get_sweep(sweep_id: SweepId, service: UsesService, caller: Principal = allow("jobs:read")) -> SweepDetails:
    """Its recipes with what was measured of them, how far it is as a whole, and the front of its artifacts."""
    with service.database.transaction() as session:
        return sweeps.get(session, caller.project_id, sweep_id)


@router.post(
    "/sweeps/{sweep_id}/cancel",
    operation_id="cancelSweep",
    tags=["sweeps"],
    summary="Cancel what is left of a sweep",
    responses=problems(404, 409),
)
def cancel_sweep(sweep_id: SweepId, service: UsesService, caller: Principal = allow("jobs:write")) -> SweepDetails:
    """Queued jobs are cancelled at once, running ones within seconds; what has ended stays."""
    with service.database.transaction() as session:
        return sweeps.cancel(session, caller.project_id, sweep_id)
