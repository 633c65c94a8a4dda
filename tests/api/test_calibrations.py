"""Calibrations over HTTP: the tokens that jobs drew, and jobs, sweeps and searches that take them."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from tests.api.conftest import manifest_of
from tests.core.builders import FINGERPRINT, make_calibration

from paredown.contracts.artifact import BaseModelRecord
from paredown.core import catalogue, jobs, sources
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store

TOKENS = b"\x93NUMPY" + bytes(250)


@pytest.fixture
def new_calibration(
    database: Database, settings: Settings, project: UUID, new_job: Callable[..., UUID]
) -> Callable[..., UUID]:
    """Left by a finished job, with its tokens in the store; keywords are make_calibration's."""

    def make(owner: UUID = project, **changes: Any) -> UUID:
        new_job(owner)
        with database.transaction() as session:
            claim = jobs.claim(session, "cpu", "a worker", settings)
        assert claim is not None
        new = make_calibration(file_sha256=sha256(TOKENS).hexdigest(), size_bytes=len(TOKENS), **changes)
        open_store(settings).put_bytes(new.storage_key, TOKENS)
        manifest = manifest_of(claim.job.id, claim.job.spec, {}, 21.0)
        with database.transaction() as session:
            jobs.finish(session, claim.job.id, 1, NewArtifact(manifest, "artifacts/x/1", "made", calibration=new))
        return new.id

    return make


def wanda(body: dict[str, Any], source: str, **calibration: Any) -> dict[str, Any]:
    return {**body, "recipe": [{"method": "wanda"}], "calibration": {"source": source, **calibration}}


def test_they_are_listed_read_and_deleted(
    api: httpx.Client,
    stranger: httpx.Client,
    database: Database,
    settings: Settings,
    new_calibration: Callable[..., UUID],
) -> None:
    first, second = new_calibration(), new_calibration(tokens_sha256="9" * 64)
    page = api.get("/v1/calibrations", params={"limit": 1}).json()
    assert ([item["id"] for item in page["items"]], page["has_more"]) == ([str(second)], True)
    page = api.get("/v1/calibrations", params={"after": page["after"]}).json()
    assert ([item["id"] for item in page["items"]], page["has_more"]) == ([str(first)], False)
    found = api.get("/v1/calibrations", params={"tokens_sha256": "9" * 64}).json()["items"]
    assert [item["id"] for item in found] == [str(second)]
    seen = api.get(f"/v1/calibrations/{first}").json()
    assert (seen["samples"], seen["seed"], seen["chat_template_sha256"]) == (2, 3, None)
    assert seen["coverage"] == {"model.layers.0.mlp.experts": [12, 0]}

    address = f"/v1/calibrations/{first}/tokens"
    assert api.get(address).content == TOKENS
    part = api.get(address, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, TOKENS[4:8])
    assert api.get(address, headers={"If-None-Match": part.headers["etag"]}).status_code == 304
    for method, path in (
        ("GET", f"/v1/calibrations/{first}"),
        ("GET", address),
        ("DELETE", f"/v1/calibrations/{first}"),
    ):
        assert stranger.request(method, path).status_code == 404
    assert stranger.get("/v1/calibrations").json()["items"] == []

    assert api.delete(f"/v1/calibrations/{first}").status_code == 204
    assert api.get(f"/v1/calibrations/{first}").status_code == 404
    assert api.get(address).status_code == 404
    assert [item.key for item in open_store(settings).list("calibrations/")] == [f"calibrations/{second}/tokens.npy"]
    with database.transaction() as session:
        assert not catalogue.known_prefix(session, f"calibrations/{first}")
        assert catalogue.known_prefix(session, f"calibrations/{second}")


def test_a_job_takes_what_it_was_drawn_with(
    api: httpx.Client, body: dict[str, Any], new_calibration: Callable[..., UUID]
) -> None:
    uri = f"calibration://{new_calibration()}"
    key = {"Idempotency-Key": "once"}
    answer = api.post("/v1/jobs", json=wanda(body, uri.upper().replace("CALIBRATION", "calibration")), headers=key)
    assert answer.status_code == 201, answer.text
    calibration = answer.json()["spec"]["calibration"]
    assert (calibration["source"], calibration["samples"], calibration["sequence_length"]) == (uri, 2, 16)
    assert calibration["seed"] == 3
    # Whoever says what it has anyway says the same.
    again = api.post("/v1/jobs", json=wanda(body, uri, samples=2, sequence_length=16), headers=key)
    assert (again.status_code, again.json()["id"]) == (201, answer.json()["id"])
    refused = api.delete(f"/v1/calibrations/{uri.removeprefix('calibration://')}")
    assert (refused.status_code, refused.json()["code"]) == (409, "state_conflict")
    api.post(f"/v1/jobs/{answer.json()['id']}/cancel")
    assert api.delete(f"/v1/calibrations/{uri.removeprefix('calibration://')}").status_code == 204
    # The first answer holds, though a new job could not take it any more.
    assert api.post("/v1/jobs", json=wanda(body, uri), headers=key).json()["id"] == answer.json()["id"]
    gone = api.post("/v1/jobs", json=wanda(body, uri)).json()
    assert (gone["code"], gone["field"]) == ("source_not_found", "calibration.source")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"samples": 4}, "calibration_unfit", "samples 2"),
        ({"seed": 4}, "calibration_unfit", "seed 3"),
        ({"exclude_held_out": True}, "request_invalid", "drawn already"),
        ({"source": f"calibration://{uuid4()}"}, "source_not_found", "There is no calibration"),
        ({"source": "calibration://mine"}, "request_invalid", "names no calibration"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    api: httpx.Client,
    body: dict[str, Any],
    new_calibration: Callable[..., UUID],
    changes: dict[str, Any],
    code: str,
    words: str,
) -> None:
    uri = f"calibration://{new_calibration()}"
    for path in ("/v1/jobs", "/v1/plans"):
        problem = api.post(path, json=wanda(body, uri) | {"calibration": {"source": uri, **changes}}).json()
        assert problem["code"] == code
        assert words in problem["detail"]


def test_no_text_to_train_on_and_no_share_for_a_search(
    api: httpx.Client, body: dict[str, Any], new_calibration: Callable[..., UUID]
) -> None:
    uri = f"calibration://{new_calibration()}"
    trained = api.post("/v1/jobs", json={**wanda(body, uri), "recipe": [{"method": "lora"}]}).json()
    assert trained["code"] == "request_invalid"
    assert "trains on the calibration's text" in trained["detail"]
    search = {"model": body["model"], "max_size_ratio": 0.5, "calibration": {"source": uri}}
    assert "set proxy to null" in api.post("/v1/searches", json=search).json()["detail"]
    evaluated = api.post("/v1/jobs", json={**body, "evaluation": {"source": uri}}).json()
    assert (evaluated["code"], evaluated["field"]) == ("scheme_unknown", "evaluation.source")


def test_another_tokenizer_is_refused_where_it_is_known(
    api: httpx.Client,
    database: Database,
    settings: Settings,
    project: UUID,
    body: dict[str, Any],
    new_calibration: Callable[..., UUID],
) -> None:
    foreign = new_calibration(tokenizer_sha256="7" * 64, model_fingerprint="e" * 64)
    own = new_calibration()
    # Nothing is known of this model yet: the engine will see.
    assert api.post("/v1/plans", json=wanda(body, f"calibration://{foreign}")).status_code == 200
    # A job has used it since, and it is the one that the second calibration was drawn for.
    record = BaseModelRecord(
        uri=body["model"],
        revision=sources.describe(body["model"], settings).revision,
        fingerprint=FINGERPRINT,
        model_type="llama",
        parameters=1,
        base_bytes=2,
    )
    with database.transaction() as session:
        catalogue.record_model(session, project, record, {})
    for path in ("/v1/plans", "/v1/jobs"):
        problem = api.post(path, json=wanda(body, f"calibration://{foreign}")).json()
        assert (problem["code"], problem["field"]) == ("tokenizer_differs", "calibration.source")
    assert api.post("/v1/jobs", json=wanda(body, f"calibration://{own}")).status_code == 201
    sweep = {"model": body["model"], "recipes": [[{"method": "wanda"}]]}
    given = [{"source": f"calibration://{id_}"} for id_ in (own, foreign)]
    problem = api.post("/v1/sweeps", json={**sweep, "calibrations": given}).json()
    assert (problem["code"], problem["field"]) == ("tokenizer_differs", "calibrations.1.source")


def test_a_sweep_runs_one_recipe_over_several(
    api: httpx.Client, body: dict[str, Any], new_calibration: Callable[..., UUID]
) -> None:
    uri = f"calibration://{new_calibration()}"
    sweep = {"model": body["model"], "recipes": [[{"method": "wanda"}]]}
    given: list[dict[str, Any]] = [{"source": uri}, {"samples": 8}, {"samples": 8, "seed": 5}]
    answer = api.post("/v1/sweeps", json={**sweep, "calibrations": given})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    labels = [member["label"] for member in made["members"]]
    assert labels[1] == "builtin://python-docs, samples 8, sequence_length 512, seed 0"
    assert (made["recipes"], made["spread"]) == (3, [])
    jobs_of = api.get("/v1/jobs", params={"sweep": made["id"]}).json()["items"]
    drawn = {(job["spec"]["calibration"]["source"], job["spec"]["calibration"]["seed"]) for job in jobs_of}
    assert drawn == {(uri, 3), ("builtin://python-docs", 0), ("builtin://python-docs", 5)}

    lost = api.post("/v1/sweeps", json={**sweep, "calibrations": [{}, {"source": f"calibration://{uuid4()}"}]}).json()
    assert (lost["code"], lost["field"]) == ("source_not_found", "calibrations.1.source")
    for bad, words in (
        ({"calibrations": [{}]}, "two or more"),
        ({"calibrations": [{}, {}]}, "the same"),
        ({"calibrations": [{}, {"seed": 1}], "calibration": {"samples": 8}}, "not both"),
        ({"calibrations": [{}, {"seed": 1}], "recipes": [[{"method": "rtn"}]]}, "hang on none"),
    ):
        problem = api.post("/v1/sweeps", json={**sweep, **bad}).json()
        assert words in problem["detail"], problem
