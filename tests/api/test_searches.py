"""Searches over HTTP: planned for nothing, refused with a reason, one for each key, cancelled as one thing."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from paredown.core import searches
from paredown.core.db import Database
from paredown.dispatcher.searching import advance


@pytest.fixture
def search(model_uri: str) -> dict[str, Any]:
    """A search on a model whose widths take groups of 32 and 64."""
    space = {"quantizers": ["rtn", "gptq"], "bits": [4, 8], "embeddings": [16], "pruners": [], "droppers": []}
    calibration = {"samples": 4, "sequence_length": 64}
    return {"model": model_uri, "max_size_ratio": 0.6, "space": space, "calibration": calibration}


def test_plans_rule_recipes_out_before_anything_runs(api: httpx.Client, search: dict[str, Any]) -> None:
    answer = api.post("/v1/searches", json={**search, "name": "small", "tags": ["t"]})
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["location"] == f"/v1/searches/{made['id']}"
    assert (made["state"], made["progress"], made["members"]) == ("exploring", 0, [])
    # 12 recipes: groups of 128 divide no layer, and eight bits are beyond the limit.
    assert made["candidates"] + made["ruled_out"] == 12
    assert made["candidates"] == 4
    assert api.get("/v1/jobs").json()["items"] == []
    [listed] = api.get("/v1/searches").json()["items"]
    assert (listed["id"], listed["name"], listed["minimize"]) == (made["id"], "small", "loss")


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"max_size_ratio": None}, None, "give max_size_ratio"),
        ({"minimize": "size"}, None, "give max_perplexity_increase"),
        ({"max_size_ratio": 0.01}, "max_size_ratio", "No recipe of this space comes below"),
        ({"space": {"group_sizes": [128]}}, "space", "No recipe of this space fits the model"),
        ({"space": {"bits": [7]}}, "space.bits.0", "2, 3, 4"),
        ({"space": {"sparsities": [x / 100 for x in range(1, 99)]}}, "space", "and a search looks at 1000 at most"),
        ({"space": {"embeddings": [4]}}, "space", "only gguf holds embeddings in 4 bits"),
        ({"space": {"grids": ["k-quant"]}}, "space", "only gguf holds K-quants"),
        ({"pool": "none"}, "pool", "There is no pool"),
        ({"evaluation": {"source": "nothing://there"}}, "evaluation.source", "is not an address of a text"),
    ],
)
def test_what_cannot_be_found_is_refused(
    api: httpx.Client, search: dict[str, Any], changes: dict[str, Any], field: str | None, words: str
) -> None:
    body = {name: value for name, value in {**search, **changes}.items() if value is not None}
    problem = api.post("/v1/searches", json=body)
    assert problem.status_code == 422
    assert problem.json()["field"] == field
    assert words in problem.json()["detail"]


@pytest.mark.parametrize("space", [{"embeddings": [4, 16]}, {"grids": ["k-quant", "plain"]}])
def test_what_the_format_cannot_hold_is_ruled_out_beside_what_it_can(
    api: httpx.Client, search: dict[str, Any], space: dict[str, Any]
) -> None:
    made = api.post("/v1/searches", json={**search, "space": {**search["space"], **space}})
    assert made.status_code == 201
    assert made.json()["candidates"] == 4


def test_one_key_makes_one_search(api: httpx.Client, search: dict[str, Any], body: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "once"}
    first, again = (api.post("/v1/searches", json=search, headers=key) for _ in range(2))
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert len(api.get("/v1/searches").json()["items"]) == 1
    assert api.post("/v1/jobs", json=body, headers=key).json()["code"] == "idempotency_key_reused"


def test_it_belongs_to_its_project_and_is_cancelled_whole(
    api: httpx.Client, search: dict[str, Any], database: Database, stranger: httpx.Client
) -> None:
    made = api.post("/v1/searches", json=search).json()
    advance(database)
    for method, path in (("GET", ""), ("POST", "/cancel")):
        assert stranger.request(method, f"/v1/searches/{made['id']}{path}").status_code == 404
    assert stranger.get("/v1/searches").json()["items"] == []
    cancelled = api.post(f"/v1/searches/{made['id']}/cancel").json()
    assert (cancelled["state"], [trial["state"] for trial in cancelled["members"]]) == ("cancelled", ["cancelled"] * 2)
    assert api.post(f"/v1/searches/{made['id']}/cancel").json()["code"] == "state_conflict"
    with database.transaction() as session:
        assert searches.open_searches(session) == []


def test_scopes_are_those_of_jobs(server: Any, new_key: Callable[..., str], search: dict[str, Any]) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {new_key('jobs:read')}"}) as reader:
        assert reader.get("/v1/searches").status_code == 200
        assert reader.post("/v1/searches", json=search).status_code == 403
