"""The catalogue over HTTP, and the bytes of artifacts."""

import hashlib
import http.client
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from paredown.contracts.access import Scope
from paredown.contracts.artifact import ArtifactView, Front, Manifest
from paredown.contracts.service import FileLink
from paredown.core.settings import Settings
from paredown.core.storage import sign_download

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def artifact(new_artifact: Callable[..., UUID]) -> str:
    return str(new_artifact(name="a model", tags=["nightly"]))


def test_an_artifact_is_listed_found_and_described(api: httpx.Client, artifact: str) -> None:
    view = ArtifactView.model_validate_json(api.get(f"/v1/artifacts/{artifact}").content)
    assert (view.name, view.tags, view.visibility) == ("a model", ("nightly",), "project")
    manifest = Manifest.model_validate_json(api.get(f"/v1/artifacts/{artifact}/manifest").content)
    assert str(manifest.artifact_id) == artifact
    job = api.get(f"/v1/jobs/{view.job_id}").json()
    assert (job["artifact_id"], job["state"]) == (artifact, "succeeded")


def test_a_missed_budget_is_overridden_by_a_key_that_may(
    api: httpx.Client, server: Any, new_key: Callable[..., str], new_artifact: Callable[..., UUID]
) -> None:
    missed = new_artifact(budget={"max_perplexity_increase": 0.01}, perplexity=30.0)
    path = f"/v1/artifacts/{missed}/override"
    for scopes, status in (((Scope.ARTIFACTS_WRITE, Scope.ARTIFACTS_READ), 403), ((Scope.ARTIFACTS_OVERRIDE,), 200)):
        answer = httpx.post(
            f"{server.url}{path}",
            headers={"Authorization": f"Bearer {new_key(*scopes)}"},
            json={"reason": "  the loss is in code, which nobody asks it for  "},
        )
        assert answer.status_code == status
    view = ArtifactView.model_validate_json(api.get(f"/v1/artifacts/{missed}").content)
    assert view.verdict == "overridden"
    assert view.override is not None
    assert view.override.reason == "the loss is in code, which nobody asks it for"
    assert api.get(f"/v1/jobs/{view.job_id}").json()["state"] == "rejected"
    again = api.post(path, json={"reason": "again"})
    assert (again.status_code, again.json()["code"]) == (409, "state_conflict")
    assert api.post(path, json={"reason": " "}).json()["field"] == "reason"
    assert api.post(f"/v1/artifacts/{UUID(int=0)}/override", json={"reason": "x"}).status_code == 404


def test_filters_of_the_catalogue(
    api: httpx.Client, new_artifact: Callable[..., UUID], model_uri: str, subtests: pytest.Subtests
) -> None:
    budget = {"max_perplexity_increase": 0.02}
    good = str(new_artifact(name="Alpha", tags=["nightly", "team/a"], budget=budget, perplexity=20.1))
    bad = str(new_artifact(name="beta_100%", recipe=[{"method": "magnitude"}], budget=budget, perplexity=30.0))
    expected: list[tuple[dict[str, str], set[str]]] = [
        ({}, {good, bad}),
        ({"search": "alp"}, {good}),
        ({"search": "100%"}, {bad}),
        ({"search": "l_ha"}, set()),
        ({"search": "magnitude"}, {bad}),
        ({"tag": "team/a"}, {good}),
        ({"tag": "team"}, set()),
        ({"method": "magnitude"}, {bad}),
        ({"model": model_uri}, {good, bad}),
        ({"model": "c" * 64}, {good, bad}),
        ({"verdict": "missed"}, {bad}),
        ({"verdict": "passed", "search": "alpha"}, {good}),
    ]
    for filters, ids in expected:
        with subtests.test(**filters):
            assert {item["id"] for item in api.get("/v1/artifacts", params=filters).json()["items"]} == ids


def test_pages_of_the_catalogue_are_complete(api: httpx.Client, new_artifact: Callable[..., UUID]) -> None:
    made = [str(new_artifact()) for _ in range(5)]
    seen, after = [], None
    while True:
        page = api.get("/v1/artifacts", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [item["id"] for item in page["items"]]
        if not page["has_more"]:
            break
        after = page["after"]
    assert seen == made[::-1]


def test_a_change_needs_the_latest_version_when_it_says_so(api: httpx.Client, artifact: str) -> None:
    address = f"/v1/artifacts/{artifact}"
    etag = api.get(address).headers["etag"]
    assert api.get(address, headers={"If-None-Match": etag}).status_code == 304
    changed = api.patch(address, json={"name": "better", "tags": ["x"]}, headers={"If-Match": etag})
    assert changed.status_code == 200
    assert (changed.json()["name"], changed.json()["tags"]) == ("better", ["x"])
    assert changed.headers["etag"] == api.get(address).headers["etag"] != etag
    late = api.patch(address, json={"name": "worse"}, headers={"If-Match": etag})
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    assert api.patch(address, json={}).json()["name"] == "better"
    assert api.get(address, headers={"If-None-Match": etag}).status_code == 200


def test_a_deleted_artifact_is_gone_for_every_reader(api: httpx.Client, artifact: str) -> None:
    link = api.get(f"/v1/artifacts/{artifact}/files").json()["items"][0]["url"]
    job = api.get(f"/v1/artifacts/{artifact}").json()["job_id"]
    assert api.delete(f"/v1/artifacts/{artifact}").status_code == 204
    for path in ("", "/manifest", "/files", "/files/model.safetensors"):
        assert api.get(f"/v1/artifacts/{artifact}{path}").status_code == 404
    assert httpx.get(link).status_code == 404
    assert api.delete(f"/v1/artifacts/{artifact}").status_code == 404
    assert api.get("/v1/artifacts").json()["items"] == []
    assert api.get(f"/v1/jobs/{job}").json()["artifact_id"] is None


def test_every_listed_address_gives_the_files_bytes_without_a_key(api: httpx.Client, artifact: str) -> None:
    answer = api.get(f"/v1/artifacts/{artifact}/files")
    links = [FileLink.model_validate(item) for item in answer.json()["items"]]
    assert answer.headers["cache-control"] == "no-store"
    assert [link.path for link in links] == ["model.safetensors", "sub/config.json", "manifest.json"]
    for link in links:
        assert link.expires_at > datetime.now(UTC)
        got = httpx.get(link.url)
        assert got.status_code == 200
        assert len(got.content) == link.size_bytes == int(got.headers["content-length"])
        assert link.sha256 in (None, hashlib.sha256(got.content).hexdigest())
        assert got.headers["content-disposition"].startswith("attachment")
        assert got.headers["x-content-type-options"] == "nosniff"


def test_a_signed_address_is_good_for_one_file_and_a_time(
    api: httpx.Client, server: Any, settings: Settings, artifact: str
) -> None:
    path = f"/v1/artifacts/{artifact}/files/model.safetensors"
    good = httpx.URL(api.get(f"/v1/artifacts/{artifact}/files").json()["items"][0]["url"])
    assert httpx.get(good).status_code == 200
    expired = {"expires": 1_000_000, "signature": sign_download(settings, path, 1_000_000)}
    attempts = [
        good.copy_set_param("expires", "99999999999"),
        good.copy_set_param("signature", "0" * 64),
        good.copy_set_param("signature", "ä"),
        good.copy_remove_param("expires"),
        good.copy_with(path=f"/v1/artifacts/{artifact}/files/sub/config.json"),
        httpx.URL(f"{server.url}{path}", params=expired),
    ]
    for attempt in attempts:
        # A key beside a bad signature does not help: an address is judged by what it says.
        for headers in ({}, dict(api.headers)):
            answer = httpx.get(attempt, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), attempt


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [("0-0", 0, 1), ("0-99", 0, 100), ("100-", 100, None), ("-7", -7, None), ("10200-99999", 10200, None),
     ("-99999", 0, None)],
)  # fmt: skip
def test_ranges(api: httpx.Client, artifact: str, wanted: str, start: int, end: int | None) -> None:
    expected = CONTENT[start:end]
    answer = api.get(f"/v1/artifacts/{artifact}/files/model.safetensors", headers={"Range": f"bytes={wanted}"})
    assert answer.status_code == 206
    assert answer.content == expected
    first = start % len(CONTENT)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(CONTENT)}"


def test_requests_that_are_no_single_range_get_the_whole_or_are_told_the_size(
    api: httpx.Client, artifact: str, subtests: pytest.Subtests
) -> None:
    address = f"/v1/artifacts/{artifact}/files/model.safetensors"
    for wanted in ("bytes=0-1,4-5", "bytes=9-2", "bytes=-", "items=0-1", "bytes=x-", f"bytes={'9' * 5000}-"):
        with subtests.test(wanted=wanted[:20]):
            answer = api.get(address, headers={"Range": wanted})
            assert (answer.status_code, len(answer.content)) == (200, len(CONTENT))
    for wanted in (f"bytes={len(CONTENT)}-", "bytes=-0", "bytes=999999-9999999"):
        with subtests.test(wanted=wanted):
            answer = api.get(address, headers={"Range": wanted})
            assert (answer.status_code, answer.json()["code"]) == (416, "range_unsatisfiable")
            assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_a_resumed_download_is_of_the_same_bytes_or_starts_again(api: httpx.Client, artifact: str) -> None:
    address = f"/v1/artifacts/{artifact}/files/model.safetensors"
    etag = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    head = api.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["etag"], head.headers["content-length"]) == (etag, str(len(CONTENT)))
    assert head.headers["accept-ranges"] == "bytes"
    same = api.get(address, headers={"Range": "bytes=5-", "If-Range": etag})
    assert (same.status_code, same.content) == (206, CONTENT[5:])
    other = api.get(address, headers={"Range": "bytes=5-", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, CONTENT)
    assert api.get(address, headers={"If-None-Match": etag}).status_code == 304


def test_only_the_artifacts_own_files_are_given(api: httpx.Client, artifact: str, subtests: pytest.Subtests) -> None:
    # Not by httpx, which would resolve the dots itself.
    connection = http.client.HTTPConnection(api.base_url.host, api.base_url.port)
    for path in ("other", "../1/model.safetensors", "%2e%2e/x", "sub", "sub/../model.safetensors", "/etc/passwd"):
        with subtests.test(path=path):
            connection.request(
                "GET",
                f"/v1/artifacts/{artifact}/files/{path}",
                headers={"Authorization": api.headers["authorization"]},
            )
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["code"]) == (404, "not_found")
    connection.close()


def test_bytes_that_the_store_lost_are_not_served_as_an_empty_file(
    api: httpx.Client, artifact: str, settings: Settings, server: Any
) -> None:
    job = api.get(f"/v1/artifacts/{artifact}").json()["job_id"]
    store = server.app.state.service.store
    store.delete(f"artifacts/{job}/1/model.safetensors")
    assert api.get(f"/v1/artifacts/{artifact}/files/model.safetensors").status_code == 404
    store.put_bytes(f"artifacts/{job}/1/model.safetensors", CONTENT[:100])
    with pytest.raises(httpx.RemoteProtocolError):
        api.get(f"/v1/artifacts/{artifact}/files/model.safetensors")


def test_a_broken_models_infinite_perplexity_reaches_the_reader(
    api: httpx.Client, new_artifact: Callable[..., UUID]
) -> None:
    artifact = new_artifact(perplexity=float("inf"), budget={"max_perplexity_increase": 1.0})
    view = ArtifactView.model_validate_json(api.get(f"/v1/artifacts/{artifact}").content)
    assert view.perplexity == float("inf")
    manifest = Manifest.model_validate_json(api.get(f"/v1/artifacts/{artifact}/manifest").content)
    assert manifest.report.artifact is not None
    assert manifest.report.artifact.perplexity == float("inf")
    listed = api.get("/v1/artifacts")
    assert listed.status_code == 200
    assert listed.json()["items"][0]["verdict"] == "missed"


def test_the_front_of_a_model(api: httpx.Client, new_artifact: Callable[..., UUID], model_uri: str) -> None:
    small = new_artifact(files={"model.safetensors": b"x" * 1000}, perplexity=22.0)
    beaten = new_artifact(files={"model.safetensors": b"x" * 2000}, perplexity=23.0)
    front = Front.model_validate_json(api.get("/v1/models/front", params={"model": model_uri}).content)
    marks = {point.artifact_id: point.on_front for point in front.points}
    assert marks == {small: True, beaten: False, None: True}
    unknown = api.get("/v1/models/front", params={"model": "hf://no/such"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert api.get("/v1/models/front").json()["field"] == "model"
    assert api.get("/v1/models/front", params={"model": model_uri, "cost_axis": "love"}).status_code == 422
