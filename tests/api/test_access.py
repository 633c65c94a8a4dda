"""Who may do what: every route, without a key, with a key that lacks the scope, with another project's ids."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from paredown.contracts.access import Scope
from paredown.core.db import Database

OPEN = {"/healthz", "/readyz", "/metrics"}


def operations(server: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, address with made-up ids, operation) of every operation."""
    found = []
    for path, methods in server.app.openapi()["paths"].items():
        address = path.replace("{path}", "model.safetensors").replace("{method}", "rtn")
        for parameter in ("job_id", "artifact_id", "dataset_id", "key_id"):
            address = address.replace(f"{{{parameter}}}", str(uuid4()))
        found += [(method.upper(), address, operation) for method, operation in methods.items()]
    return found


def test_every_operation_needs_a_key(server: Any, anyone: httpx.Client, subtests: pytest.Subtests) -> None:
    unknown = f"pare_00000000_{'x' * 43}"
    refused: list[dict[str, Any]] = [
        {},
        {"Authorization": f"Bearer {unknown}"},
        {"Authorization": "Basic eDp5"},
        {"Authorization": "Bearer"},
        {"Authorization": b"Bearer \xfc"},
    ]
    for method, address, operation in operations(server):
        with subtests.test(method=method, address=address):
            if address in OPEN:
                assert "security" not in operation
                continue
            for headers in refused:
                answer = anyone.request(method, address, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert method == "HEAD" or answer.json()["code"] == "unauthenticated"


def test_every_operation_needs_its_scope(
    server: Any, anyone: httpx.Client, new_key: Callable[..., str], subtests: pytest.Subtests
) -> None:
    for method, address, operation in operations(server):
        needed = {scope for way in operation.get("security", ()) for scope in way.get("ApiKey", ())}
        if not needed:
            assert address in OPEN | {"/v1/me"}
            continue
        with subtests.test(method=method, address=address):
            (scope,) = needed
            others = [other for other in Scope if other != scope]
            answer = anyone.request(method, address, headers={"Authorization": f"Bearer {new_key(*others)}"})
            assert answer.status_code == 403
            if method != "HEAD":
                assert answer.json()["code"] == "forbidden"
                assert scope in answer.json()["detail"]
            # With that scope alone it gets further.
            answer = anyone.request(method, address, headers={"Authorization": f"Bearer {new_key(Scope(scope))}"})
            assert answer.status_code not in (401, 403)


def test_the_key_is_checked_before_the_body_is_read(server: Any) -> None:
    for content in (b"{", b"x" * 2_000_000):
        answer = httpx.post(f"{server.url}/v1/jobs", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 401


def test_what_belongs_to_another_project_is_not_found(
    api: httpx.Client,
    stranger: httpx.Client,
    new_artifact: Callable[..., UUID],
    subtests: pytest.Subtests,
) -> None:
    artifact = new_artifact()
    job = api.get(f"/v1/artifacts/{artifact}").json()["job_id"]
    dataset = api.post("/v1/datasets", files={"file": b"text"}).json()["id"]
    key = api.get("/v1/me").json()["key_id"]
    addresses = {
        "GET": [
            f"/v1/jobs/{job}",
            f"/v1/jobs/{job}/events?format=json",
            f"/v1/artifacts/{artifact}",
            f"/v1/artifacts/{artifact}/manifest",
            f"/v1/artifacts/{artifact}/files",
            f"/v1/artifacts/{artifact}/files/model.safetensors",
            f"/v1/datasets/{dataset}",
        ],
        "POST": [f"/v1/jobs/{job}/cancel", f"/v1/jobs/{job}/retry"],
        "PATCH": [f"/v1/artifacts/{artifact}"],
        "DELETE": [f"/v1/artifacts/{artifact}", f"/v1/datasets/{dataset}", f"/v1/keys/{key}"],
    }
    for method, paths in addresses.items():
        for path in paths:
            with subtests.test(method=method, path=path):
                body = {"json": {"name": "mine"}} if method == "PATCH" else {}
                answer = stranger.request(method, path, **body)
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
                # The same sentence as for an id that nobody has.
                assert api.request(method, path, **body).status_code != 404 or method == "DELETE"
    for listing in ("jobs", "artifacts", "datasets"):
        assert stranger.get(f"/v1/{listing}").json()["items"] == []
    assert [item["id"] for item in stranger.get("/v1/keys").json()["items"]] == [
        stranger.get("/v1/me").json()["key_id"]
    ]


def test_an_artifact_for_everyone_is_read_but_not_changed_by_others(
    api: httpx.Client, stranger: httpx.Client, new_artifact: Callable[..., UUID]
) -> None:
    artifact = new_artifact()
    assert api.patch(f"/v1/artifacts/{artifact}", json={"visibility": "everyone"}).status_code == 200
    for path in ("", "/manifest", "/files", "/files/model.safetensors"):
        assert stranger.get(f"/v1/artifacts/{artifact}{path}").status_code == 200
    assert [item["id"] for item in stranger.get("/v1/artifacts").json()["items"]] == [str(artifact)]
    for answer in (
        stranger.patch(f"/v1/artifacts/{artifact}", json={"name": "mine"}),
        stranger.delete(f"/v1/artifacts/{artifact}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    job = api.get(f"/v1/artifacts/{artifact}").json()["job_id"]
    assert stranger.get(f"/v1/jobs/{job}").status_code == 404


def test_a_key_is_shown_once_and_works_until_it_is_revoked(api: httpx.Client, server: Any) -> None:
    answer = api.post("/v1/keys", json={"name": "ci", "scopes": ["jobs:read"]})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    secret, key = answer.json()["secret"], answer.json()["key"]
    assert secret.startswith(key["prefix"])
    assert secret not in api.get("/v1/keys").text
    headers = {"Authorization": f"Bearer {secret}"}
    me = httpx.get(f"{server.url}/v1/me", headers=headers).json()
    assert (me["key_id"], me["project"], me["scopes"]) == (key["id"], "default", ["jobs:read"])
    assert api.delete(answer.headers["location"]).status_code == 204
    assert httpx.get(f"{server.url}/v1/me", headers=headers).status_code == 401
    revoked = next(item for item in api.get("/v1/keys").json()["items"] if item["id"] == key["id"])
    assert revoked["revoked_at"] is not None


def test_a_key_cannot_give_what_it_lacks(server: Any, new_key: Callable[..., str]) -> None:
    headers = {"Authorization": f"Bearer {new_key(Scope.KEYS_ADMIN, Scope.JOBS_READ)}"}
    body = {"name": "n", "scopes": ["jobs:read", "jobs:write"]}
    answer = httpx.post(f"{server.url}/v1/keys", headers=headers, json=body)
    assert (answer.status_code, answer.json()["field"]) == (403, "scopes")
    assert "jobs:write" in answer.json()["detail"]
    body["scopes"] = ["jobs:read"]
    assert httpx.post(f"{server.url}/v1/keys", headers=headers, json=body).status_code == 201


def test_an_expired_key_is_refused(server: Any, api: httpx.Client, database: Database) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    made = api.post("/v1/keys", json={"name": "n", "scopes": ["jobs:read"], "expires_at": soon.isoformat()}).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    assert httpx.get(f"{server.url}/v1/me", headers=headers).status_code == 200
    with database.transaction() as session:
        session.execute(text("UPDATE api_keys SET expires_at = now() WHERE id = :id"), {"id": made["key"]["id"]})
    assert httpx.get(f"{server.url}/v1/me", headers=headers).status_code == 401
    past = api.post("/v1/keys", json={"name": "n", "scopes": ["jobs:read"], "expires_at": "2020-01-01T00:00:00Z"})
    assert (past.status_code, past.json()["field"]) == (422, "expires_at")


def test_a_refused_key_is_not_logged(
    server: Any, new_key: Callable[..., str], caplog: pytest.LogCaptureFixture, api: httpx.Client
) -> None:
    secret = new_key(Scope.JOBS_READ)
    httpx.get(f"{server.url}/v1/keys", headers={"Authorization": f"Bearer {secret}"})
    httpx.get(f"{server.url}/v1/me?signature=abcdef", headers={"Authorization": f"Bearer {secret}x"})
    assert secret not in caplog.text
    assert "abcdef" not in caplog.text
