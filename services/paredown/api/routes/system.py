"""For monitors and people who knock at the door: no key needed."""

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import HTMLResponse, RedirectResponse, Response

from paredown.api import docs_page
from paredown.api.openapi import problems
from paredown.api.schemas import Health
from paredown.api.service import UsesService
from paredown.core import migrate
from paredown.core.errors import DatabaseUnavailable

router = APIRouter(tags=["service"])

_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}}


@router.get("/", include_in_schema=False)
def root() -> RedirectResponse:
    return RedirectResponse("/docs")


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    page = docs_page.render(request.app.openapi())
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


@router.get("/healthz", operation_id="getHealth", summary="Is the process alive?")
async def health() -> Health:
    # Not in the threads that requests wait for: a busy service is alive.
    return Health()


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Can it serve: does the database answer, and is it migrated?",
    responses=problems(503),
)
def readiness(service: UsesService) -> Health:
    with service.database.transaction() as session:
        if not migrate.is_migrated(session):
            raise DatabaseUnavailable(
                f"The database is at revision {migrate.current_revision(session)}; this release needs "
                f"{migrate.head_revision()}. Run `python -m paredown.core.setup`."
            )
    return Health()


@router.get(
    "/metrics", operation_id="getMetrics", summary="Figures for Prometheus", response_class=Response, responses=_TEXT
)
def metrics(service: UsesService) -> Response:
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)
