"""Data sets: text that people upload to calibrate and evaluate on, named as dataset://ID in a job."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import UUID, uuid4

from fastapi import APIRouter, Request
from pydantic import StringConstraints, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, Response

from paredown.api import uploads
from paredown.api.auth import allow
from paredown.api.http import ApiRoute, bounded_stream
from paredown.api.openapi import header, problems
from paredown.api.schemas import Cursor, DatasetId, DatasetPage, Limit
from paredown.api.service import Service, UsesService
from paredown.contracts.dataset import DatasetView
from paredown.core import catalogue
from paredown.core.access import Principal
from paredown.core.errors import MediaTypeUnsupported, RequestInvalid, RequestMalformed

router = APIRouter(prefix="/v1", route_class=ApiRoute, tags=["datasets"])


# Boundaries and headers of the parts, beside the file itself.
_FORM_OVERHEAD_BYTES = 64 * 2**10
_MAX_FIELD_BYTES = 8 * 2**10
_NAME: TypeAdapter[str] = TypeAdapter(
    Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120)]
)

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {
                        "name": {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": 120,
                            "description": "Name in lists; empty takes the file's.",
                        },
                        "file": {
                            "type": "string",
                            "contentMediaType": "application/octet-stream",
                            "description": "UTF-8 text, JSON lines with a `text` field, or rows of a task.",
                        },
                    },
                },
                "encoding": {"file": {"contentType": "text/plain, application/jsonl, application/octet-stream"}},
            }
        },
    }
}


@router.post(
    "/datasets",
    operation_id="uploadDataset",
    summary="Upload text",
    status_code=201,
    response_model=DatasetView,
    openapi_extra=_BODY,
    responses={201: {"headers": {"Location": header("Address of the data set.")}}, **problems(400, 413, 415, 503)},
)
async def upload_dataset(
    request: Request, service: UsesService, caller: Principal = allow("datasets:write")
) -> Response:
    limit_bytes = service.settings.upload_limit_bytes
    form = await _read_form(request, limit_bytes + _FORM_OVERHEAD_BYTES)
    try:
        view = await run_in_threadpool(_store, service, caller.project_id, *_fields(form))
    finally:
        await form.close()
    return JSONResponse(view.model_dump(mode="json"), status_code=201, headers={"Location": f"/v1/datasets/{view.id}"})


@router.get("/datasets", operation_id="listDatasets", summary="List data sets, newest first")
def list_datasets(
    service: UsesService, after: Cursor = None, limit: Limit = 50, caller: Principal = allow("datasets:read")
) -> DatasetPage:
    with service.database.transaction() as session:
        items, cursor = catalogue.list_datasets(session, caller.project_id, after=after, limit=limit)
    return DatasetPage(items=tuple(items), has_more=cursor is not None, after=cursor)


@router.get("/datasets/{dataset_id}", operation_id="getDataset", summary="One data set", responses=problems(404))
def get_dataset(dataset_id: DatasetId, service: UsesService, caller: Principal = allow("datasets:read")) -> DatasetView:
    with service.database.transaction() as session:
        return catalogue.get_dataset(session, caller.project_id, dataset_id)


@router.delete(
    "/datasets/{dataset_id}",
    operation_id="deleteDataset",
    summary="Delete a data set and its bytes",
    status_code=204,
    responses=problems(404),
)
def delete_dataset(dataset_id: DatasetId, service: UsesService, caller: Principal = allow("datasets:write")) -> None:
    """Jobs that have read it keep their results; a job that still waits for it will fail."""
    with service.database.transaction() as session:
        key = catalogue.delete_dataset(session, caller.project_id, dataset_id)
    service.remove_bytes(key)


async def _read_form(request: Request, limit_bytes: int) -> FormData:
    """The form, its file spooled to disk. Raises PayloadTooLarge before a byte too many is kept."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise MediaTypeUnsupported(
            f"This takes multipart/form-data with the field `file`, not {media_type or 'a body without Content-Type'}."
        )
    bounded = Request(request.scope, bounded_stream(request, limit_bytes))
    try:
        return await bounded.form(max_files=1, max_fields=4, max_part_size=_MAX_FIELD_BYTES)
    except (MultiPartException, UnicodeDecodeError, KeyError) as error:
        reason = str(error).rstrip(".") or "it is cut short"
        raise RequestMalformed(f"The form cannot be read: {reason}.") from error


def _fields(form: FormData) -> tuple[UploadFile, str]:
    unknown = sorted(set(form) - {"name", "file"})
    if unknown:
        raise RequestInvalid(f"There is no field {unknown[0]!r}; this takes `file` and `name`.", field=unknown[0])
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise RequestInvalid("file: send the text as a file.", field="file")
    given = form.get("name")
    try:
        return file, _NAME.validate_python(given if given is not None else (file.filename or "upload"))
    except ValidationError as error:
        raise RequestInvalid("name: this must be a text of 1 to 120 characters.", field="name") from error


def _store(service: Service, project_id: UUID, file: UploadFile, name: str) -> DatasetView:
    dataset_id = uuid4()
    key = f"datasets/{dataset_id}"
    with tempfile.TemporaryDirectory(prefix="pare-upload-") as directory:
        upload = uploads.receive(
            cast("Any", file.file), Path(directory) / "text", file.filename or "", service.settings.upload_limit_bytes
        )
        service.store.put_file(key, upload.path, upload.sha256)
    with service.database.transaction() as session:
        return catalogue.new_dataset(
            session,
            project_id,
            dataset_id,
            name=name,
            sha256=upload.sha256,
            size_bytes=upload.size_bytes,
            storage_key=key,
        )
