"""Jobs: submit, list, follow, cancel, retry. The state machine itself is core/jobs.py."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from paredown.api import submission
from paredown.api.auth import allow
from paredown.api.events import PING_SECONDS, SEND_TIMEOUT_SECONDS
from paredown.api.http import ApiRoute, tagged
from paredown.api.openapi import header, problems
from paredown.api.schemas import Cursor, EventPage, JobId, JobPage, Limit, SubmittedJob
from paredown.api.service import Service, UsesService
from paredown.contracts.job import JobState, JobView, Plan, PlanOutcomes, PoolName
from paredown.core import history, jobs, prices
from paredown.core.access import Principal

router = APIRouter(prefix="/v1", route_class=ApiRoute)

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Made up by you, one for each job you mean: however often the request arrives, one job is made.",
    ),
]
IfNoneMatch = Annotated[str | None, Header(description="ETag that you have: 304 when it is still the same.")]


@router.post(
    "/jobs",
    operation_id="submitJob",
    tags=["jobs"],
    summary="Submit a job",
    status_code=201,
    responses={
        201: {
            "description": "The job, queued; or, with an Idempotency-Key that came before, the job it made then.",
            "headers": {
                "Location": header("Address of the job."),
                "Idempotent-Replayed": header("`true` when this key has made the job before.", enum=["true"]),
            },
        },
        **problems(409, 503),
    },
)
def submit_job(
    request: Request,
    spec: SubmittedJob,
    response: Response,
    service: UsesService,
    idempotency_key: IdempotencyKey = None,
    caller: Principal = allow("jobs:write"),
) -> JobView:
    job, created = submission.submit(service, caller.project_id, spec, idempotency_key)
    request.state.job_id = str(job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return job


@router.post(
    "/plans",
    operation_id="planJob",
    tags=["plans"],
    summary="What a job would need",
    responses=problems(503),
)
def plan_job(spec: SubmittedJob, service: UsesService, caller: Principal = allow("jobs:read")) -> Plan:
    """Memory, disk, time, bytes and cost, from the model's configuration and what finished jobs of the pool took beside
    their plans, each with an interval. Nothing is queued or downloaded."""
    made = submission.plan(service, caller.project_id, spec)
    with service.database.transaction() as session:
        return prices.priced(made, prices.price_book(session, caller.project_id), service.settings)


@router.get(
    "/plans/outcomes",
    operation_id="listPlanOutcomes",
    tags=["plans"],
    summary="What the latest jobs took beside what was planned",
)
def list_plan_outcomes(
    service: UsesService,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs, the newest first.")] = 20,
    caller: Principal = allow("jobs:read"),
) -> PlanOutcomes:
    """Of the project's jobs that one worker carried through.

    Planned figures are those of the formulas alone, which corrections are made of; seconds leave the download out.
    """
    with service.database.transaction() as session:
        return history.latest(session, caller.project_id, limit)


@router.get("/jobs", operation_id="listJobs", tags=["jobs"], summary="List jobs, newest first")
def list_jobs(
    service: UsesService,
    state: Annotated[
        tuple[JobState, ...], Query(max_length=6, description="Only these states; repeat for several.")
    ] = (),
    model: Annotated[str | None, Query(max_length=2048, description="URI of the model.")] = None,
    pool: Annotated[PoolName | None, Query(description="Worker pool.")] = None,
    method: Annotated[str | None, Query(max_length=64, description="A method in the recipe.")] = None,
    sweep: Annotated[UUID | None, Query(description="Jobs of this sweep.")] = None,
    after: Cursor = None,
    limit: Limit = 50,
    caller: Principal = allow("jobs:read"),
) -> JobPage:
    with service.database.transaction() as session:
        items, cursor = jobs.list_jobs(
            session,
            caller.project_id,
            states=state,
            model=model,
            pool=pool,
            method=method,
            sweep=sweep,
            after=after,
            limit=limit,
        )
    return JobPage(items=tuple(items), has_more=cursor is not None, after=cursor)


@router.get(
    "/jobs/{job_id}",
    operation_id="getJob",
    tags=["jobs"],
    summary="One job",
    response_model=JobView,
    responses={
        200: {"headers": {"ETag": header("Changes with the job.")}},
        304: {"description": "Unchanged."},
        **problems(404),
    },
)
def get_job(
    job_id: JobId, service: UsesService, if_none_match: IfNoneMatch = None, caller: Principal = allow("jobs:read")
) -> Response:
    return tagged(_job(service, caller, job_id), if_none_match)


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="cancelJob",
    tags=["jobs"],
    summary="Cancel a queued or running job",
    responses=problems(404, 409),
)
def cancel_job(job_id: JobId, service: UsesService, caller: Principal = allow("jobs:write")) -> JobView:
    """A queued job is cancelled at once; a running one is asked to stop, and is `cancelled` within seconds."""
    with service.database.transaction() as session:
        return jobs.request_cancel(session, caller.project_id, job_id)


@router.post(
    "/jobs/{job_id}/retry",
    operation_id="retryJob",
    tags=["jobs"],
    summary="Queue a failed job again",
    responses=problems(404, 409),
)
def retry_job(job_id: JobId, service: UsesService, caller: Principal = allow("jobs:write")) -> JobView:
    """Its history is kept; finished blocks are taken up where they are."""
    with service.database.transaction() as session:
        return jobs.retry(session, caller.project_id, job_id)


@router.get(
    "/jobs/{job_id}/events",
    operation_id="getJobEvents",
    tags=["jobs"],
    summary="Follow a job",
    response_model=EventPage,
    responses={
        200: {
            "description": "Server-sent events: `id` is the event's seq, `event` its type, `data` a JobEvent. The "
            "stream ends after the terminal event. With `format=json`, a page of events.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problems(404),
    },
)
async def job_events(
    request: Request,
    job_id: JobId,
    service: UsesService,
    format: Annotated[  # noqa: A002 - the parameter's name in the address
        Literal["sse", "json"] | None, Query(description="Empty: by the Accept header, else a stream.")
    ] = None,
    after: Annotated[int, Query(ge=0, lt=2**31, description="Only events with a greater seq.")] = 0,
    limit: Limit = 200,
    last_event_id: Annotated[
        str | None, Header(description="The seq that a stream got last; it goes on behind that.")
    ] = None,
    caller: Principal = allow("jobs:read"),
) -> Response:
    job = await run_in_threadpool(_job, service, caller, job_id)
    if format == "json" or (format is None and _prefers_json(request)):
        page = await run_in_threadpool(_event_page, service, job_id, after, limit)
        return JSONResponse(page.model_dump(mode="json"))
    seq = int(last_event_id) if last_event_id and last_event_id.isascii() and last_event_id.isdigit() else after
    return EventSourceResponse(
        service.hub.follow(job_id, min(seq, 2**31 - 1), finished=job.state.terminal),
        ping=PING_SECONDS,
        send_timeout=SEND_TIMEOUT_SECONDS,
        sep="\n",
    )


def _job(service: Service, caller: Principal, job_id: UUID) -> JobView:
    with service.database.transaction() as session:
        return jobs.get(session, caller.project_id, job_id)


def _event_page(service: Service, job_id: UUID, after: int, limit: int) -> EventPage:
    with service.database.transaction() as session:
        events = jobs.events_after(session, job_id, after, limit + 1)
    has_more = len(events) > limit
    events = events[:limit]
    return EventPage(items=tuple(events), has_more=has_more, after=str(events[-1].seq) if has_more else None)


def _prefers_json(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/event-stream" not in accepted
