"""Aliases over HTTP: set, moved, protected, resolved, removed."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from tests.api.test_further import FILES, further

from paredown.contracts.access import Scope
from paredown.contracts.alias import AliasDetails

BUDGET = {"max_perplexity_increase": 0.1}


def put(api: httpx.Client, name: str, artifact: UUID, **body: Any) -> httpx.Response:
    headers = body.pop("headers", {})
    return api.put(f"/v1/aliases/{name}", json={"artifact_id": str(artifact), **body}, headers=headers)


def test_an_alias_is_made_moved_and_removed_and_its_history_stays(
    api: httpx.Client, stranger: httpx.Client, new_artifact: Callable[..., UUID]
) -> None:
    first, second = new_artifact(), new_artifact()
    made = put(api, "smollm2/prod-1.0_x", first, reason=" the first ")
    assert made.status_code == 200, made.text
    assert put(api, "smollm2/prod-1.0_x", first).json()["moves"] == made.json()["moves"]
    etag = made.headers["etag"]
    moved = put(api, "smollm2/prod-1.0_x", second, headers={"If-Match": etag})
    assert moved.status_code == 200
    late = put(api, "smollm2/prod-1.0_x", first, headers={"If-Match": etag})
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    assert put(api, "new", first, headers={"If-Match": etag}).status_code == 412

    alias = AliasDetails.model_validate_json(api.get("/v1/aliases/smollm2%2Fprod-1.0_x").content)
    assert (alias.artifact_id, alias.protected) == (second, False)
    assert [(move.from_id, move.to_id, move.key_name, move.reason) for move in alias.moves] == [
        (first, second, "test", None),
        (None, first, "test", "the first"),
    ]
    assert (
        api.get("/v1/aliases/smollm2/prod-1.0_x", headers={"If-None-Match": moved.headers["etag"]}).status_code == 304
    )
    assert [item["name"] for item in api.get("/v1/aliases").json()["items"]] == ["smollm2/prod-1.0_x"]
    assert api.get(f"/v1/artifacts/{second}").json()["aliases"] == ["smollm2/prod-1.0_x"]
    assert stranger.get("/v1/aliases/smollm2/prod-1.0_x").status_code == 404
    assert stranger.get("/v1/aliases").json()["items"] == []

    assert api.delete("/v1/aliases/smollm2/prod-1.0_x").status_code == 204
    assert api.get("/v1/aliases/smollm2/prod-1.0_x").status_code == 404
    again = put(api, "smollm2/prod-1.0_x", first).json()["moves"]
    assert [move["to_id"] for move in again] == [str(first), None, str(second), str(first)]


def test_a_protected_alias_takes_only_what_met_its_budget_or_was_overridden(
    api: httpx.Client, new_artifact: Callable[..., UUID]
) -> None:
    passed, missed = new_artifact(budget=BUDGET), new_artifact(budget=BUDGET, perplexity=30.0)
    free = new_artifact()
    assert put(api, "prod", passed, protected=True).json()["protected"] is True
    refused = put(api, "prod", missed)
    assert (refused.status_code, refused.json()["code"]) == (409, "alias_protected")
    assert "rise in perplexity" in refused.json()["detail"]
    unbudgeted = put(api, "prod", free)
    assert unbudgeted.json()["code"] == "alias_protected"
    assert "no budget" in unbudgeted.json()["detail"]
    # Nor does it become protected where it points at such an artifact.
    put(api, "canary", missed)
    assert put(api, "canary", missed, protected=True).json()["code"] == "alias_protected"
    assert api.get("/v1/aliases/canary").json()["protected"] is False
    # A refusal leaves nothing behind.
    assert put(api, "fresh", missed, protected=True).status_code == 409
    assert api.get("/v1/aliases/fresh").status_code == 404

    api.post(f"/v1/artifacts/{missed}/override", json={"reason": "for drafts"})
    assert put(api, "prod", missed).json()["verdict"] == "overridden"
    assert len(api.get("/v1/aliases/prod").json()["moves"]) == 2


def test_promoting_needs_its_own_scope(
    api: httpx.Client, server: Any, new_key: Callable[..., str], new_artifact: Callable[..., UUID]
) -> None:
    first, second = new_artifact(budget=BUDGET), new_artifact(budget=BUDGET)
    headers = {"Authorization": f"Bearer {new_key(Scope.ARTIFACTS_WRITE, Scope.ARTIFACTS_READ)}"}
    with httpx.Client(base_url=server.url, headers=headers) as writer:
        assert put(writer, "canary", first).status_code == 200
        assert put(writer, "canary", second, protected=True).status_code == 403
        assert put(api, "prod", first, protected=True).status_code == 200
        refused = put(writer, "prod", second)
        assert refused.status_code == 403
        assert "artifacts:promote" in refused.json()["detail"]
        assert put(writer, "prod", first, protected=False).status_code == 403
        assert writer.delete("/v1/aliases/prod").status_code == 403
        # What is so already is no change.
        assert put(writer, "prod", first).status_code == 200
    assert put(api, "prod", second, protected=False).json()["protected"] is False


def test_an_artifact_with_an_alias_is_not_deleted(
    api: httpx.Client, stranger: httpx.Client, new_artifact: Callable[..., UUID]
) -> None:
    artifact = new_artifact()
    put(api, "prod", artifact)
    refused = api.delete(f"/v1/artifacts/{artifact}")
    assert (refused.status_code, refused.json()["code"]) == (409, "artifact_aliased")
    assert "prod" in refused.json()["detail"]
    api.patch(f"/v1/artifacts/{artifact}", json={"visibility": "everyone"})
    foreign = put(stranger, "mine", artifact)
    assert (foreign.status_code, foreign.json()["field"]) == (422, "artifact_id")
    api.delete("/v1/aliases/prod")
    assert api.delete(f"/v1/artifacts/{artifact}").status_code == 204
    assert put(api, "prod", artifact).json()["field"] == "artifact_id"


@pytest.mark.parametrize("name", ["-x", "a//b", "a/", "a/../b", "ä", "a b", "x" * 121])
def test_a_name_that_no_address_could_hold_is_refused(api: httpx.Client, name: str) -> None:
    quoted = name.replace("..", "%2E%2E")
    assert put(api, quoted, UUID(int=0)).status_code == 422


def test_a_job_keeps_the_artifact_that_the_alias_pointed_at(
    api: httpx.Client, new_artifact: Callable[..., UUID]
) -> None:
    first, second = (new_artifact(recipe=[{"method": "wanda"}], files=FILES) for _ in range(2))
    put(api, "team/dense", first)
    wanted = further("@team/dense")
    key = {"Idempotency-Key": "once"}
    job = api.post("/v1/jobs", json=wanted, headers=key)
    assert job.status_code == 201, job.text
    assert job.json()["spec"]["model"] == f"artifact://{first}"
    assert api.post("/v1/plans", json=wanted).json()["model"] == f"artifact://{first}"
    put(api, "team/dense", second)
    again = api.post("/v1/jobs", json=wanted, headers=key)
    assert (again.status_code, again.json()["id"]) == (201, job.json()["id"])
    recipes = [[{"method": "rtn", "bits": bits, "group_size": 32}] for bits in (4, 8)]
    sweep = api.post("/v1/sweeps", json={"model": wanted["model"], "recipes": recipes})
    assert sweep.json()["spec"]["model"] == f"artifact://{second}"
    unknown = api.post("/v1/jobs", json=further("@nobody"))
    assert (unknown.status_code, unknown.json()["code"], unknown.json()["field"]) == (422, "source_not_found", "model")
