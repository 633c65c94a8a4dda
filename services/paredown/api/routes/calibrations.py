"""Calibrations: the token blocks that jobs drew, named as calibration://ID in a job."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from paredown.api.auth import allow
from paredown.api.downloads import SERVED, StoredFile, serve
from paredown.api.http import ApiRoute
from paredown.api.openapi import problems
from paredown.api.schemas import CalibrationId, CalibrationPage, Cursor, Limit
from paredown.api.service import UsesService
from paredown.contracts.calibration import CalibrationView
from paredown.contracts.report import Sha256
from paredown.core import calibrations
from paredown.core.access import Principal

router = APIRouter(prefix="/v1", route_class=ApiRoute, tags=["calibrations"])


@router.get("/calibrations", operation_id="listCalibrations", summary="List calibrations, newest first")
def list_calibrations(
    service: UsesService,
    tokens_sha256: Annotated[
        Sha256 | None, Query(description="Of a manifest: the calibration it was made with.")
    ] = None,
    after: Cursor = None,
    limit: Limit = 50,
    caller: Principal = allow("artifacts:read"),
) -> CalibrationPage:
    with service.database.transaction() as session:
        items, cursor = calibrations.list_calibrations(
            session, caller.project_id, tokens_sha256=tokens_sha256, after=after, limit=limit
        )
    return CalibrationPage(items=tuple(items), has_more=cursor is not None, after=cursor)


@router.get(
    "/calibrations/{calibration_id}", operation_id="getCalibration", summary="One calibration", responses=problems(404)
)
def get_calibration(
    calibration_id: CalibrationId, service: UsesService, caller: Principal = allow("artifacts:read")
) -> CalibrationView:
    with service.database.transaction() as session:
        return calibrations.get(session, caller.project_id, calibration_id)


@router.get(
    "/calibrations/{calibration_id}/tokens",
    operation_id="downloadCalibration",
    summary="Its token blocks: whole, or a range",
    response_class=Response,
    responses={**SERVED, **problems(404, 416, 503)},
)
def download_calibration(
    request: Request,
    calibration_id: CalibrationId,
    service: UsesService,
    caller: Principal = allow("artifacts:read"),
) -> Response:
    """NumPy's .npy, int32, samples × sequence_length. Takes `Range` and `If-Range`, `If-None-Match`. A few hundred
    kilobytes as a rule, so it always comes through here."""
    with service.database.transaction() as session:
        found = calibrations.stored(session, caller.project_id, calibration_id)
    name = f"calibration-{calibration_id}.npy"
    return serve(
        request, service.store, StoredFile(found.storage_key, name, found.size_bytes, f'"{found.file_sha256}"')
    )


@router.delete(
    "/calibrations/{calibration_id}",
    operation_id="deleteCalibration",
    summary="Delete a calibration and its tokens",
    status_code=204,
    responses=problems(404, 409),
)
def delete_calibration(
    calibration_id: CalibrationId, service: UsesService, caller: Principal = allow("artifacts:write")
) -> None:
    """Refused while a job or a search that has not ended takes it. What was made with it stays."""
    with service.database.transaction() as session:
        key = calibrations.delete(session, caller.project_id, calibration_id)
    service.remove_bytes(key)
