"""Every failure is a problem document: a code, a sentence, a field; never a traceback."""

import json
import socket
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from paredown.contracts.service import Problem
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.settings import Settings

JSON = {"Content-Type": "application/json"}


def problem_of(answer: httpx.Response) -> Problem:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == answer.status_code
    assert problem.request_id == answer.headers["x-request-id"]
    assert problem.type == f"urn:pare:problem:{problem.code}"
    assert "Traceback" not in answer.text
    return problem


def test_unreadable_bodies(api: httpx.Client, body: dict[str, Any], subtests: pytest.Subtests) -> None:
    good = json.dumps(body)
    cases: list[tuple[str, bytes, dict[str, str], int, str]] = [
        ("malformed", b'{"model": ', JSON, 400, "request_malformed"),
        ("not JSON", b"model=x", JSON, 400, "request_malformed"),
        ("NaN", good.replace("32", "NaN").encode(), JSON, 400, "request_malformed"),
        ("a number of many digits", good.replace("32", "9" * 5000).encode(), JSON, 400, "request_malformed"),
        ("not UTF-8", good.replace("rtn", "r\xe4").encode("latin-1"), JSON, 400, "request_malformed"),
        ("UTF-16", good.encode("utf-16"), JSON, 400, "request_malformed"),
        ("NUL", good.replace("rtn", "r\\u0000").encode(), JSON, 400, "request_malformed"),
        ("NUL in a key", b'{"\\u0000": 1}', JSON, 400, "request_malformed"),
        ("half a surrogate pair", good.replace("rtn", "\\ud800").encode(), JSON, 400, "request_malformed"),
        ("deep", b"[" * 100_000 + b"]" * 100_000, JSON, 400, "request_malformed"),
        ("rather deep", b'{"recipe":' + b"[" * 60 + b"]" * 60 + b"}", JSON, 400, "request_malformed"),
        ("too large", b'"' + b"x" * 2**20 + b'"', JSON, 413, "payload_too_large"),
        ("form", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "media_type_unsupported"),
        ("no type", good.encode(), {}, 415, "media_type_unsupported"),
        ("empty", b"", JSON, 422, "request_invalid"),
        ("a list", b"[]", JSON, 422, "request_invalid"),
        ("null", b"null", JSON, 422, "request_invalid"),
    ]
    for name, content, headers, status, code in cases:
        with subtests.test(name):
            problem = problem_of(api.post("/v1/jobs", content=content, headers=headers))
            assert (problem.status, problem.code) == (status, code), problem


def test_unreadable_addresses(api: httpx.Client, subtests: pytest.Subtests) -> None:
    for raw in ("/v1/jobs?model=%00", "/v1/jobs?model=%ff", "/v1/methods/%00", "/v1/methods/%c3%28", "/%00"):
        with subtests.test(raw):
            answer = api.get(api.base_url.copy_with(raw_path=raw.encode()))
            assert problem_of(answer).code == "request_malformed"


def test_unknown_addresses_and_methods(api: httpx.Client, subtests: pytest.Subtests) -> None:
    for path in ("/v1", "/v1/", "/v1/nothing", "/v1/jobs/", "/v2/jobs", "/.env"):
        with subtests.test(path):
            problem = problem_of(api.get(path))
            assert (problem.status, problem.code) == (404, "not_found")
            assert path in problem.detail
    for method, path, allowed in (
        ("DELETE", "/v1/jobs", "GET, POST"),
        ("PUT", f"/v1/artifacts/{UUID(int=1)}", "DELETE, GET, PATCH"),
        ("POST", f"/v1/artifacts/{UUID(int=1)}/files/a/b", "GET, HEAD"),
        ("POST", "/healthz", "GET"),
        ("BREW", "/v1/me", "GET"),
    ):
        with subtests.test(method=method, path=path):
            answer = api.request(method, path)
            assert problem_of(answer).code == "method_not_allowed"
            assert answer.headers["allow"] == allowed


def test_unfit_ids_are_named(api: httpx.Client) -> None:
    problem = problem_of(api.get("/v1/jobs/42"))
    assert (problem.status, problem.field) == (422, "job_id")


def test_every_offending_field_is_told_with_a_sentence(api: httpx.Client, body: dict[str, Any]) -> None:
    recipe = [{"method": "gptq", "bits": 7, "damping": 0}, {"method": "wanda", "spars": 1}]
    problem = problem_of(api.post("/v1/jobs", json={**body, "recipe": recipe, "priority": "high"}))
    assert [error.field for error in problem.errors] == [
        "recipe.0.bits",
        "recipe.0.damping",
        "recipe.1.spars",
        "priority",
    ]
    assert problem.field == "recipe.0.bits"
    assert problem.detail == "recipe.0.bits: This must be 2, 3, 4, 5, 6 or 8."
    assert problem_of(api.post("/v1/jobs", json={"recipe": body["recipe"]})).detail == "model: This is needed."


def test_a_request_id_is_kept_when_it_is_safe(api: httpx.Client) -> None:
    assert api.get("/v1/me", headers={"X-Request-ID": "trace-1.2:3"}).headers["x-request-id"] == "trace-1.2:3"
    for unsafe in ("a b", "x" * 200, "<script>", ""):
        made = api.get("/v1/me", headers={"X-Request-ID": unsafe}).headers["x-request-id"]
        assert made != unsafe
        assert len(made) == 32


def test_a_bug_is_an_id_for_the_user_and_a_traceback_in_the_log(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(jobs, "get", broken)
    answer = api.get(f"/v1/jobs/{UUID(int=1)}", headers={"X-Request-ID": "bug-7"})
    problem = problem_of(answer)
    assert (problem.status, problem.code) == (500, "internal_error")
    assert "secret" not in answer.text
    logged = capfd.readouterr().err
    assert "ZeroDivisionError: a secret detail" in logged
    assert "bug-7" in logged
    assert logged.count("Traceback") == 1


def test_a_database_that_is_away_is_told_as_such(
    serve: Callable[[Settings], Any], settings: Settings, new_key: Callable[..., str], postgres_url: str
) -> None:
    key = {"Authorization": f"Bearer {new_key()}"}
    away = settings.model_copy(update={"database_url": "postgresql+psycopg://pare@127.0.0.1:1/pare"})
    server = serve(away)
    for path in ("/v1/me", "/v1/jobs", "/readyz"):
        answer = httpx.get(server.url + path, headers=key)
        assert problem_of(answer).code == "database_unavailable"
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
    figures = httpx.get(f"{server.url}/metrics")
    assert figures.status_code == 200
    assert "pare_database_up 0.0" in figures.text


def test_a_lock_that_is_held_too_long_is_told_as_busy(
    serve: Callable[[Settings], Any],
    settings: Settings,
    database: Database,
    new_job: Callable[..., UUID],
    new_key: Callable[..., str],
) -> None:
    server = serve(settings.model_copy(update={"lock_timeout_seconds": 0.2}))
    job, key = new_job(), new_key()
    with database.transaction() as session:
        session.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": job})
        answer = httpx.post(f"{server.url}/v1/jobs/{job}/cancel", headers={"Authorization": f"Bearer {key}"})
    assert (answer.status_code, problem_of(answer).code) == (503, "database_busy")


def test_a_client_that_leaves_is_no_error(api: httpx.Client, server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: {api.headers['authorization']}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", port)) as leaver:
        leaver.sendall(head.encode())
    assert api.get("/v1/me").status_code == 200
    assert "Traceback" not in capfd.readouterr().err
