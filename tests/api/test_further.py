"""Artifacts as models: what may be compressed further, by whom, and where the catalogue says that one is from."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from tests.api.conftest import LLAMA, manifest_of

from paredown.contracts.artifact import Ancestor, ArtifactView
from paredown.contracts.job import JobSpec, Plan
from paredown.core import access, catalogue, jobs
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database
from paredown.core.settings import Settings

FILES = {"config.json": json.dumps(LLAMA).encode(), "model.safetensors": b"\0" * 1000}
GPTQ = [{"method": "gptq", "bits": 4, "group_size": 32}]
EVALUATION = {"samples": 2, "sequence_length": 16}
BUDGET = {"max_perplexity_increase": 0.1}
NewArtifactOf = Callable[..., UUID]


@pytest.fixture
def parent(new_artifact: NewArtifactOf) -> UUID:
    """A pruned model, dense, with the base's figures in its report."""
    return new_artifact(files=FILES, recipe=[{"method": "wanda"}], name="pruned")


def further(artifact_id: object, **changes: Any) -> dict[str, Any]:
    return {"model": f"artifact://{artifact_id}", "recipe": GPTQ, "evaluation": EVALUATION, **changes}


def refused(answer: httpx.Response) -> tuple[int, str, str | None]:
    return answer.status_code, answer.json()["code"], answer.json()["field"]


def measure_base(database: Database, project: UUID, parent: UUID) -> None:
    """What the worker that made the parent has left behind."""
    with database.transaction() as session:
        base = catalogue.manifest(session, project, parent).report.base
        assert base is not None
        catalogue.save_baseline(session, "c" * 64, base, "cpu")


def test_an_artifact_is_submitted_and_compared_with_the_model_it_is_of(
    api: httpx.Client, database: Database, project: UUID, parent: UUID
) -> None:
    measure_base(database, project, parent)
    plan = Plan.model_validate(api.post("/v1/plans", json=further(parent, budget=BUDGET)).json())
    assert plan.model_type == "llama"
    assert plan.base_bytes == 40_000
    assert plan.size_ratio == plan.output_bytes / 40_000
    assert not any("base" in warning for warning in plan.warnings)
    answer = api.post("/v1/jobs", json=further(parent, budget=BUDGET), headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201
    # The job that a key has made stays its job, whatever has become of the artifact.
    assert api.delete(f"/v1/artifacts/{parent}").status_code == 204
    again = api.post("/v1/jobs", json=further(parent, budget=BUDGET), headers={"Idempotency-Key": "k"})
    assert (again.json(), again.headers["Idempotent-Replayed"]) == (answer.json(), "true")


def test_a_base_that_was_not_measured_is_said_and_no_budget_is_set_against_it(api: httpx.Client, parent: UUID) -> None:
    plan = api.post("/v1/plans", json=further(parent)).json()
    assert any("has not been measured under this evaluation" in warning for warning in plan["warnings"])
    answer = api.post("/v1/jobs", json=further(parent, budget=BUDGET))
    assert refused(answer) == (422, "baseline_unknown", "budget.max_perplexity_increase")
    assert "submit a job on the base" in answer.json()["detail"]
    assert api.post("/v1/jobs", json=further(parent, budget={"max_size_ratio": 0.5})).status_code == 201


def test_tasks_of_an_artifact_have_no_base_to_drop_from(
    api: httpx.Client, database: Database, project: UUID, parent: UUID
) -> None:
    measure_base(database, project, parent)
    evaluation = {**EVALUATION, "tasks": [{"name": "mmlu"}]}
    answer = api.post("/v1/plans", json=further(parent, evaluation=evaluation, budget={"max_task_drop": 0.1}))
    assert refused(answer) == (422, "budget_unmeasurable", "budget.max_task_drop")
    assert api.post("/v1/plans", json=further(parent, evaluation=evaluation)).status_code == 200


def test_a_foreign_artifact_is_refused_as_one_that_does_not_exist(
    api: httpx.Client, stranger: httpx.Client, parent: UUID, database: Database, new_artifact: NewArtifactOf
) -> None:
    unknown = uuid4()
    sentences = []
    for artifact_id in (parent, unknown):
        for path in ("/v1/jobs", "/v1/plans"):
            answer = stranger.post(path, json=further(artifact_id))
            assert refused(answer) == (422, "source_not_found", "model")
            sentences.append(answer.json()["detail"].replace(str(artifact_id), "X"))
    assert len(set(sentences)) == 1
    # Nor does a filter tell that some artifact of one's own has the same root.
    with database.transaction() as session:
        own = new_artifact(access.create_project(session, "other"))

    def found() -> list[str]:
        page = stranger.get("/v1/artifacts", params={"model": f"artifact://{parent}"}).json()
        return [item["id"] for item in page["items"]]

    assert found() == []
    api.patch(f"/v1/artifacts/{parent}", json={"visibility": "everyone"})
    assert found() == [str(own), str(parent)]
    assert stranger.post("/v1/jobs", json=further(parent)).status_code == 201
    assert refused(api.post("/v1/jobs", json=further("tiny"))) == (422, "source_not_found", "model")


def test_a_deleted_artifact_is_refused(api: httpx.Client, parent: UUID) -> None:
    api.delete(f"/v1/artifacts/{parent}")
    assert refused(api.post("/v1/jobs", json=further(parent))) == (422, "source_not_found", "model")


def test_packed_weights_are_refused_with_the_way_out(api: httpx.Client, new_artifact: NewArtifactOf) -> None:
    packed = new_artifact(files=FILES)
    answer = api.post("/v1/jobs", json=further(packed))
    assert refused(answer) == (422, "model_rejected", "model")
    assert "compressed-tensors" in answer.json()["detail"]
    assert "format safetensors" in answer.json()["detail"]


def test_what_a_recipe_forbids_is_forbidden_across_jobs(
    api: httpx.Client, parent: UUID, new_artifact: NewArtifactOf
) -> None:
    answer = api.post("/v1/jobs", json=further(parent, recipe=[{"method": "shortgpt", "blocks": 1}]))
    assert refused(answer) == (422, "recipe_refused", "recipe")
    assert "would undo what wanda (pruning) did" in answer.json()["detail"]
    rounded = new_artifact(files=FILES, recipe=[{"method": "rtn", "group_size": 32}], format="safetensors")
    answer = api.post("/v1/jobs", json=further(rounded))
    assert refused(answer) == (422, "recipe_refused", "recipe")
    assert "quantized with rtn already" in answer.json()["detail"]


def test_the_catalogue_shows_where_an_artifact_is_from_and_what_was_made_of_it(
    api: httpx.Client, database: Database, project: UUID, settings: Settings, parent: UUID, model_uri: str
) -> None:
    child = make_child(database, project, settings, parent, model_uri)
    view = ArtifactView.model_validate(api.get(f"/v1/artifacts/{child}").json())
    assert (view.model, view.recipe_name) == (model_uri, "wanda-50% then gptq-4")
    assert [ancestor.artifact_id for ancestor in view.lineage] == [parent]
    assert api.get(f"/v1/artifacts/{parent}").json()["lineage"] == []

    def listed(**filters: Any) -> list[str]:
        return [item["id"] for item in api.get("/v1/artifacts", params=filters).json()["items"]]

    assert listed(parent=str(parent)) == [str(child)]
    assert listed(parent=str(child)) == []
    assert listed(method="wanda") == [str(child), str(parent)]
    # Both lie on the front of the model that they began with, which an artifact's address names as well.
    front = api.get("/v1/models/front", params={"model": model_uri}).json()
    assert api.get("/v1/models/front", params={"model": f"artifact://{child}"}).json() == front
    assert listed(model=f"artifact://{parent}") == [str(child), str(parent)]
    assert listed(model=f"artifact://{uuid4()}") == listed(model="artifact://x") == []
    assert {point["artifact_id"] for point in front["points"]} == {None, str(parent), str(child)}
    [point] = [point for point in front["points"] if point["artifact_id"] == str(child)]
    assert point["methods"] == ["wanda", "gptq"]
    # The record outlives the parent.
    assert api.delete(f"/v1/artifacts/{parent}").status_code == 204
    assert api.get(f"/v1/artifacts/{child}/manifest").json()["lineage"][0]["artifact_id"] == str(parent)


def make_child(database: Database, project: UUID, settings: Settings, parent: UUID, model_uri: str) -> UUID:
    spec = JobSpec.model_validate(further(parent))
    with database.transaction() as session:
        jobs.submit(session, project, spec, pool="cpu", idempotency_key=None)
        claim = jobs.claim(session, "cpu", "a worker", settings)
        assert claim is not None
        recipe = catalogue.manifest(session, project, parent).recipe
        lineage = (Ancestor(artifact_id=parent, manifest_sha256="d" * 64, recipe=recipe),)
        manifest = manifest_of(claim.job.id, spec, FILES, 22.0)
        base = manifest.base.model_copy(update={"uri": model_uri})
        manifest = manifest.model_copy(update={"lineage": lineage, "base": base})
        new = NewArtifact(manifest, f"artifacts/{claim.job.id}/1", "a child")
        return jobs.finish(session, claim.job.id, claim.epoch, new).id
