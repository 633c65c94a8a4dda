"""The OpenAPI document: what FastAPI derives, with every error as the problem document that it is."""

import re
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from paredown.contracts.service import Problem

PROBLEM_MEDIA_TYPE = "application/problem+json"

DESCRIPTION = """\
Submit a language model and a recipe or a budget; get back an artifact that was measured, proved to load, and listed.

Every operation below `/v1` needs an API key with the scope that the operation names. Errors are
`application/problem+json` with a stable `code`. Lists are paged: pass `after` of one page to get the next.
"""

TAGS = [
    {"name": "jobs", "description": "Submit compression jobs and follow them."},
    {"name": "sweeps", "description": "Many recipes over one model, or one over many calibrations, as one thing."},
    {"name": "searches", "description": "A budget instead of a recipe."},
    {"name": "plans", "description": "What a job would need, before it is queued."},
    {"name": "methods", "description": "Compression methods with the schema of their settings."},
    {"name": "models", "description": "Models, and the trade-offs found for them."},
    {"name": "pools", "description": "Workers."},
    {"name": "prices", "description": "What machines cost, by which jobs and serving are reckoned."},
    {"name": "datasets", "description": "Uploaded text to calibrate and evaluate on."},
    {"name": "calibrations", "description": "The tokens that jobs calibrated on, for others to take."},
    {"name": "artifacts", "description": "The catalogue of results."},
    {"name": "aliases", "description": "Names that point at artifacts and can be moved."},
    {"name": "keys", "description": "API keys of the project."},
    {"name": "service", "description": "For operators and monitors; no key."},
]

_MEANINGS = {
    "400": "The request cannot be read.",
    "401": "No key, or one that is not valid.",
    "403": "The key lacks the scope.",
    "404": "There is no such thing in this project.",
    "409": "Its state does not allow this.",
    "412": "It was changed meanwhile.",
    "413": "The body is too large.",
    "415": "The body is of another media type.",
    "416": "The file is shorter than the range.",
    "422": "Well formed, but it cannot be taken; `field` says what.",
    "503": "Not now; try again in a moment.",
    "default": "Any other problem.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that an operation declares beyond those that all have."""
    return {status: {"description": _MEANINGS[str(status)]} for status in statuses}


def header(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}}


def install(app: FastAPI) -> None:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=TAGS)
    schemas = document["components"]["schemas"]
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {})
    schemas["Problem"] = problem
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path in document["paths"].values():
        for operation in path.values():
            _declare_problems(operation)
    return document


def _declare_problems(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    wanted = ["default"]
    if "security" in operation:
        wanted += ["401", "403"]
    if "parameters" in operation or "requestBody" in operation:
        wanted.append("422")
    if "requestBody" in operation:
        wanted += ["400", "413", "415"]
    for status in wanted:
        responses.setdefault(status, {"description": _MEANINGS[status]})
    for status, response in responses.items():
        if status == "default" or status >= "400":
            response["description"] = _MEANINGS.get(status, response["description"])
            response["content"] = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    operation["responses"] = dict(sorted(responses.items()))


def methods_of(app: FastAPI, path: str) -> list[str]:
    """The methods that an address takes."""
    # The first match is the one that routing takes.
    found: dict[str, Any] = next(
        (item for name, item in app.openapi()["paths"].items() if _pattern(name).fullmatch(path)), {}
    )
    return sorted(method.upper() for method in found)


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """`/v1/artifacts/{artifact_id}/files/{path}`: the parameter named `path` takes slashes, as its route does."""
    parts = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(
            re.escape(part) if index % 2 == 0 else (".+" if part == "path" else "[^/]+")
            for index, part in enumerate(parts)
        )
    )
