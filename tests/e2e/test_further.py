"""Pruned, and later quantized: an artifact goes through the whole house a second time, with the real engine."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from safetensors.torch import load_file
from tests.support.models import random_llama
from transformers import AutoModelForCausalLM

from paredown.contracts.artifact import MANIFEST_NAME, Manifest, verify_files
from paredown.contracts.job import JobSpec, JobState, JobView
from paredown.core import access, catalogue, jobs
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store
from paredown.worker.attempt import Worker
from paredown.worker.supervisor import claim_all

CALIBRATION = {"samples": 4, "sequence_length": 64}
EVALUATION = {"samples": 4, "sequence_length": 64, "speed": False}
WANDA = [{"method": "wanda", "sparsity": 0.5}]
GPTQ = [{"method": "gptq", "bits": 4, "group_size": 64}]


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"file_roots": [tmp_path], "engine_threads": 1})


@pytest.fixture
def run_job(database: Database, project: UUID, settings: Settings) -> Callable[..., JobView]:
    """One job from submit to its end, in this process but for its engine."""
    worker = Worker(database, open_store(settings), settings, "worker-1", lambda: False)

    def run(owner: UUID = project, **fields: Any) -> JobView:
        spec = {"calibration": CALIBRATION, "evaluation": EVALUATION, **fields}
        with database.transaction() as session:
            job, _ = jobs.submit(session, owner, JobSpec.model_validate(spec), pool="cpu", idempotency_key=None)
        assert claim_all(worker, "cpu") == 1
        with database.transaction() as session:
            return jobs.get(session, None, job.id)

    return run


def downloaded(database: Database, settings: Settings, artifact_id: UUID | None, directory: Path) -> Manifest:
    assert artifact_id is not None
    with database.transaction() as session:
        manifest, prefix = catalogue.stored(session, None, artifact_id)
    for path in (MANIFEST_NAME, *(file.path for file in manifest.files)):
        open_store(settings).get_file(f"{prefix}/{path}", directory / path)
    assert list(verify_files(manifest, directory)) == []
    return manifest


@pytest.mark.slow
def test_an_artifact_is_compressed_further(
    database: Database, project: UUID, settings: Settings, run_job: Callable[..., JobView], tmp_path: Path
) -> None:
    model = f"file://{random_llama(tmp_path / 'tiny')}"
    first = run_job(model=model, recipe=WANDA)
    assert first.state is JobState.SUCCEEDED, first.error
    # The base is not needed any more, and another project's rights do not reach the artifact.
    (tmp_path / "tiny" / "model.safetensors").unlink()
    address = f"artifact://{first.artifact_id}"
    with database.transaction() as session:
        stranger = access.create_project(session, "other")
    foreign = run_job(stranger, model=address, recipe=GPTQ)
    assert foreign.error is not None
    assert (foreign.state, foreign.error.code, foreign.error.field) == (JobState.FAILED, "source_not_found", "model")

    second = run_job(
        model=address,
        recipe=GPTQ,
        evaluation={**EVALUATION, "speed": True},
        budget={"max_size_ratio": 0.9, "max_perplexity_increase": 100},
    )
    assert second.state is JobState.SUCCEEDED, second.error
    pruned = downloaded(database, settings, first.artifact_id, tmp_path / "pruned")
    made = downloaded(database, settings, second.artifact_id, tmp_path / "made")
    assert made.base == pruned.base
    [parent] = made.lineage
    stored = (tmp_path / "pruned" / MANIFEST_NAME).read_bytes()
    assert (parent.artifact_id, parent.recipe) == (first.artifact_id, pruned.recipe)
    assert parent.manifest_sha256 == hashlib.sha256(stored).hexdigest()
    report = made.report
    assert pruned.report.base is not None
    assert report.base == pruned.report.base.model_copy(update={"cached": True})
    assert report.base_bytes == pruned.report.base_bytes == made.base.base_bytes
    assert set(report.speeds) == {"artifact"}
    assert report.runtimes[0].loads
    assert report.cost is not None
    assert report.cost.base_per_million_tokens is None
    assert report.sparsity >= pruned.report.sparsity - 1e-9

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    with torch.no_grad():
        assert torch.isfinite(loaded(torch.arange(16)[None]).logits).all()
    zeros = load_file(tmp_path / "pruned" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"] == 0
    assert zeros.float().mean() >= 0.5
    weight = loaded.model.layers[1].mlp.up_proj.weight
    assert (weight[zeros] == 0).all()

    with database.transaction() as session:
        view = catalogue.get_artifact(session, project, made.artifact_id)
        front = catalogue.front(session, project, model, None, "size_bytes")
        models, _ = catalogue.list_models(session, project, limit=10)
    assert (view.name, view.model) == ("tiny wanda-50% then gptq-4", model)
    assert {point.artifact_id for point in front.points} == {None, first.artifact_id, second.artifact_id}
    [base] = [point for point in front.points if point.artifact_id is None]
    assert (base.perplexity, base.size_bytes) == (report.base.perplexity, report.base_bytes)
    assert [entry.uri for entry in models] == [model]
