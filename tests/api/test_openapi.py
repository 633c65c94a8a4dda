"""The service against its own OpenAPI document, and the document against docs/api.md."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

HERE = Path(__file__).parent
API_PAGE = HERE.parents[1] / "docs" / "api.md"
NOBODY = UUID(int=0)


def configuration(artifact_id: UUID) -> str:
    """Every check of schemathesis, with these exceptions."""
    return f"""
# Whether a cursor, a model or a text exists is not for a schema to say: 422 is a right answer to what fits the schema.
[checks]
positive_data_acceptance.enabled = false

# The parts of a form are text, whatever type they are meant to violate.
[[operations]]
include-operation-id = "uploadDataset"
checks = {{ negative_data_rejection.enabled = false }}

# A stream of a queued job does not end; test_events.py follows streams.
[[operations]]
include-operation-id = "getJobEvents"
parameters = {{ "query.format" = "json" }}

# Nobody's: the run would otherwise revoke its own key, and delete the artifact whose files it reads. Nobody's is not
# what a call before made, so that it is not found says nothing.
[[operations]]
include-operation-id = "revokeKey"
parameters = {{ "path.key_id" = "{NOBODY}" }}
checks = {{ ensure_resource_availability.enabled = false }}

[[operations]]
include-operation-id = "deleteArtifact"
parameters = {{ "path.artifact_id" = "{NOBODY}" }}
checks = {{ ensure_resource_availability.enabled = false }}

[[operations]]
include-operation-id-regex = "downloadFile|inspectFile"
parameters = {{ "path.artifact_id" = "{artifact_id}", "path.path" = "model.safetensors" }}
"""


@pytest.mark.timeout(1000)
def test_schemathesis_finds_no_difference(
    api: httpx.Client,
    server: Any,
    new_job: Callable[..., UUID],
    new_artifact: Callable[..., UUID],
    model_uri: str,
    tmp_path: Path,
) -> None:
    artifacts = [new_artifact(tags=["nightly"]) for _ in range(2)]
    new_job()
    api.post("/v1/datasets", files={"file": b"text"})
    (tmp_path / "schemathesis.toml").write_text(configuration(artifacts[0]))
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            *("--config-file", "schemathesis.toml"),
            *("run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: {api.headers['authorization']}"),
            *("--phases", "examples,coverage,fuzzing,stateful"),
            *("--max-examples", "3"),
            *("--seed", "1"),
            *("--workers", "1"),
            "--continue-on-failure",
            *("--request-timeout", "20"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "NO_COLOR": "1",
            "COLUMNS": "160",
            "PYTHONPATH": str(HERE),
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "PARE_TEST_MODEL": model_uri,
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if run.returncode:
        pytest.fail(run.stdout + run.stderr, pytrace=False)
    # It did reach what it was to test.
    assert re.search(r"Tested: \d+", run.stdout)
    assert len(api.get("/v1/jobs", params={"limit": 200}).json()["items"]) > 5


def test_the_document_is_complete(server: Any, subtests: pytest.Subtests) -> None:
    document = server.app.openapi()
    assert document["openapi"].startswith("3.1")
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    for address, path in document["paths"].items():
        for method, operation in path.items():
            with subtests.test(method=method, address=address):
                assert operation["summary"]
                assert operation["tags"]
                assert re.fullmatch(r"[a-z]+[A-Za-z]+", operation["operationId"])
                problem = operation["responses"]["default"]["content"]
                assert problem == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
                assert all(parameter.get("description") for parameter in operation.get("parameters", ())), [
                    parameter["name"] for parameter in operation["parameters"] if not parameter.get("description")
                ]
                if address.startswith("/v1"):
                    assert operation["security"]


def test_every_operation_is_in_the_documentation(server: Any, subtests: pytest.Subtests) -> None:
    page = API_PAGE.read_text()
    for address, path in server.app.openapi()["paths"].items():
        for method in path:
            with subtests.test(method=method, address=address):
                assert f"`{method.upper()} {address}`" in page
