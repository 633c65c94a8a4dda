"""Sweeps over HTTP: all jobs or none, one progress, one cancel, and what was measured before is not made again."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.settings import Settings

RTN = {"method": "rtn", "group_size": 32}


@pytest.fixture
def sweep(model_uri: str) -> dict[str, Any]:
    """Three recipes that can be submitted."""
    return {"model": model_uri, "grid": {"recipe": [RTN], "values": {"0.bits": [3, 4, 8]}}}


def claim(database: Database, settings: Settings) -> jobs.Claim | None:
    with database.transaction() as session:
        return jobs.claim(session, "cpu", "worker", settings)


def test_a_grid_becomes_one_job_for_each_combination(api: httpx.Client, sweep: dict[str, Any]) -> None:
    sweep["grid"]["values"]["0.symmetric"] = [True, False]
    answer = api.post("/v1/sweeps", json={**sweep, "name": "bits", "tags": ["t"], "dtype": "bfloat16"})
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["location"] == f"/v1/sweeps/{made['id']}"
    assert (made["state"], made["counts"], made["progress"]) == ("queued", {"queued": 6}, 0)
    assert made["front"] is None
    listed = api.get("/v1/jobs", params={"sweep": made["id"]}).json()["items"]
    settings = {job["id"]: (job["spec"]["recipe"][0]["bits"], job["spec"]["recipe"][0]["symmetric"]) for job in listed}
    assert made["members"][1]["label"] == "rtn-3 (symmetric False)"
    # The last place varies fastest.
    assert [settings[member["job_id"]] for member in made["members"]] == [
        (3, True),
        (3, False),
        (4, True),
        (4, False),
        (8, True),
        (8, False),
    ]
    assert {(job["sweep_id"], job["spec"]["dtype"], tuple(job["spec"]["tags"])) for job in listed} == {
        (made["id"], "bfloat16", ("t",))
    }


def test_a_sweep_is_planned_as_a_whole(api: httpx.Client, sweep: dict[str, Any]) -> None:
    plan = api.post("/v1/plans/sweep", json=sweep)
    assert plan.status_code == 200, plan.text
    made = plan.json()
    assert (made["recipes"], made["jobs"], made["reused"]) == (3, 3, 0)
    assert made["seconds"] == pytest.approx(sum(member["seconds"] for member in made["members"]))
    one = api.post("/v1/plans", json={"model": sweep["model"], "recipe": [{**RTN, "bits": 8}]}).json()
    assert made["members"][2]["output_bytes"] == one["output_bytes"]
    assert made["output_bytes"] == sum(member["output_bytes"] for member in made["members"])
    assert api.get("/v1/jobs").json()["items"] == []
    sweep["grid"]["recipe"] = [{"method": "rtn", "group_size": 128}]
    refused = api.post("/v1/plans/sweep", json=sweep).json()
    assert (refused["code"], refused["field"]) == ("group_size_unfit", "recipes.0.0.group_size")


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"grid": None, "recipes": [[RTN], [{"method": "rtn", "bits": 7}]]}, "recipes.1.0.bits", "2, 3, 4"),
        ({"grid": None, "recipes": [[RTN], [{"method": "rtn", "group_size": 128}]]}, "recipes.1.0.group_size", "64"),
        (
            {"grid": None, "recipes": [[RTN], [{"method": "wanda"}]], "format": "native"},
            "recipes.1",
            "Recipe 1 (wanda-50%)",
        ),
        ({"grid": {"recipe": [RTN], "values": {"0.bits": [4, 7]}}}, "grid", "with 0.bits=7"),
        ({"grid": {"recipe": [RTN], "values": {"1.bits": [4]}}}, "grid", "1.bits names a stage"),
        ({"grid": {"recipe": [RTN], "values": {"0.bits": [4, 4]}}}, None, "recipes 0 and 1 are the same"),
        ({"grid": None}, None, "needs recipes or a grid"),
        ({"pool": "none"}, "pool", "There is no pool"),
        ({"evaluation": {"sequence_length": 4096}}, "evaluation.sequence_length", "context"),
    ],
)
def test_one_recipe_that_does_not_fit_refuses_the_whole(
    api: httpx.Client, sweep: dict[str, Any], changes: dict[str, Any], field: str | None, words: str
) -> None:
    body = {name: value for name, value in {**sweep, **changes}.items() if value is not None}
    problem = api.post("/v1/sweeps", json=body)
    assert problem.status_code == 422
    assert problem.json()["field"] == field
    assert words in problem.json()["detail"]
    assert api.get("/v1/jobs").json()["items"] == []
    assert api.get("/v1/sweeps").json()["items"] == []


def test_a_grid_has_a_limit_that_is_checked_before_it_is_expanded(api: httpx.Client, sweep: dict[str, Any]) -> None:
    sweep["grid"]["values"] = {f"0.{name}": list(range(1000)) for name in ("bits", "group_size", "seed", "other")}
    problem = api.post("/v1/sweeps", json=sweep)
    assert (problem.status_code, problem.json()["field"]) == (422, "grid")
    assert "more than 200 combinations" in problem.json()["detail"]


def test_one_key_makes_one_sweep(api: httpx.Client, sweep: dict[str, Any], body: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "once"}
    first = api.post("/v1/sweeps", json=sweep, headers=key)
    again = api.post("/v1/sweeps", json=sweep, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert len(api.get("/v1/jobs").json()["items"]) == 3
    # The key is taken, also for a job.
    assert api.post("/v1/sweeps", json={**sweep, "name": "other"}, headers=key).status_code == 422
    assert api.post("/v1/jobs", json=body, headers=key).json()["code"] == "idempotency_key_reused"


def test_the_soonest_done_goes_first_and_leaves_the_base_measured(
    api: httpx.Client, sweep: dict[str, Any], database: Database, settings: Settings
) -> None:
    recipes = [[{"method": "gptq", "group_size": 32}], [RTN], [{"method": "awq", "group_size": 32}]]
    body = {"model": sweep["model"], "recipes": recipes, "calibration": {"samples": 2, "sequence_length": 64}}
    made = api.post("/v1/sweeps", json=body).json()
    first = claim(database, settings)
    assert first is not None
    assert first.job.recipe_name == "rtn-4"
    assert claim(database, settings) is None
    assert api.get(f"/v1/sweeps/{made['id']}").json()["state"] == "running"
    # However it ends, the others go on.
    with database.transaction() as session:
        jobs.request_cancel(session, first.project_id, first.job.id)
        jobs.acknowledge_cancel(session, first.job.id, first.epoch)
    others = [claim(database, settings), claim(database, settings)]
    assert {other.job.recipe_name for other in others if other} == {"gptq-4", "awq-4"}


def test_cancelling_ends_all_that_is_left(
    api: httpx.Client, sweep: dict[str, Any], database: Database, settings: Settings, stranger: httpx.Client
) -> None:
    made = api.post("/v1/sweeps", json=sweep).json()
    running = claim(database, settings)
    assert running is not None
    for method, path in (("GET", ""), ("POST", "/cancel")):
        assert stranger.request(method, f"/v1/sweeps/{made['id']}{path}").status_code == 404
    assert stranger.get("/v1/sweeps").json()["items"] == []
    cancelled = api.post(f"/v1/sweeps/{made['id']}/cancel").json()
    assert cancelled["counts"] == {"running": 1, "cancelled": 2}
    assert (cancelled["state"], cancelled["cancel_requested"]) == ("running", True)
    assert api.post(f"/v1/sweeps/{made['id']}/cancel").status_code == 200
    with database.transaction() as session:
        jobs.acknowledge_cancel(session, running.job.id, running.epoch)
    [listed] = api.get("/v1/sweeps").json()["items"]
    assert (listed["state"], listed["progress"], listed["recipes"]) == ("cancelled", 1, 3)
    assert api.post(f"/v1/sweeps/{made['id']}/cancel").json()["code"] == "state_conflict"


def test_scopes_are_those_of_jobs(server: Any, new_key: Callable[..., str], sweep: dict[str, Any]) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {new_key('jobs:read')}"}) as reader:
        assert reader.get("/v1/sweeps").status_code == 200
        assert reader.post("/v1/sweeps", json=sweep).status_code == 403
