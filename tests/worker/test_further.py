"""A worker on an artifact of the catalogue: whose it may take, what it tells the engine, and what the manifest says."""

import time
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.core.builders import make_artifact
from tests.worker.conftest import MakeWorker, Submit

from paredown.contracts.artifact import MANIFEST_NAME, BaseModelRecord, Manifest, ManifestFile
from paredown.contracts.job import Format, JobSpec, JobState, JobView
from paredown.contracts.recipes import Wanda, recipe_hash
from paredown.core import access, catalogue, jobs
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import ObjectStore
from paredown.worker.supervisor import claim_all, run_job

BASE = BaseModelRecord(
    uri="hf://org/base@1", revision="1", fingerprint="e" * 64, model_type="llama", parameters=500, base_bytes=1000
)


def end_of(database: Database, job: JobView) -> JobView:
    with database.transaction() as session:
        return jobs.get(session, None, job.id)


def manifest_of(database: Database, job: JobView) -> Manifest:
    artifact_id = end_of(database, job).artifact_id
    assert artifact_id is not None
    with database.transaction() as session:
        return catalogue.manifest(session, None, artifact_id)


@pytest.fixture
def parent(database: Database, settings: Settings, store: ObjectStore, submit: Submit, model_root: Path) -> UUID:
    """The small model as an artifact that was pruned from a base which this worker has never seen."""
    submit(recipe=[{"method": "wanda"}])
    with database.transaction() as session:
        claim = jobs.claim(session, "cpu", "worker-0", settings)
    assert claim is not None
    prefix = f"artifacts/{claim.job.id}/1"
    files = {path.name: path.read_bytes() for path in (model_root / "tiny").iterdir()}
    manifest = make_artifact(claim.job.id).manifest.model_copy(
        update={
            "base": BASE,
            "recipe": (Wanda(),),
            "recipe_hash": recipe_hash((Wanda(),)),
            "format": Format.SAFETENSORS,
            "files": tuple(
                ManifestFile(path=name, size_bytes=len(data), sha256=sha256(data).hexdigest())
                for name, data in files.items()
            ),
        }
    )
    for name, data in files.items():
        store.put_bytes(f"{prefix}/{name}", data)
    store.put_bytes(f"{prefix}/{MANIFEST_NAME}", manifest.model_dump_json().encode())
    with database.transaction() as session:
        return jobs.finish(session, claim.job.id, claim.epoch, NewArtifact(manifest, prefix, "pruned")).id


@pytest.fixture
def measured(database: Database, submit: Submit, make_worker: MakeWorker) -> None:
    """The base's figures, as the engine would give them for that model, are known."""
    job = submit()
    claim_all(make_worker(), "cpu")
    base = manifest_of(database, job).report.base
    assert base is not None
    with database.transaction() as session:
        catalogue.save_baseline(session, BASE.fingerprint, base.model_copy(update={"perplexity": 8.0}), "cpu")


def test_the_manifest_names_base_and_lineage(
    database: Database, project: UUID, submit: Submit, make_worker: MakeWorker, store: ObjectStore, parent: UUID,
    measured: None,
) -> None:  # fmt: skip
    job = submit(model=f"artifact://{parent}", budget={"max_perplexity_increase": 1.0, "max_size_ratio": 0.5})
    claim_all(make_worker(), "cpu")
    assert end_of(database, job).state is JobState.SUCCEEDED, end_of(database, job).error
    made = manifest_of(database, job)
    assert made.base == BASE
    with database.transaction() as session:
        _, prefix = catalogue.stored(session, None, parent)
        view = catalogue.get_artifact(session, None, made.artifact_id)
        models, _ = catalogue.list_models(session, project, limit=10)
        kept = catalogue.likely_baseline(session, BASE.fingerprint, job.spec.evaluation, "float32", "cpu")
    stored = b"".join(store.read_range(f"{prefix}/{MANIFEST_NAME}", 0, 2**20))
    [ancestor] = made.lineage
    assert (ancestor.artifact_id, ancestor.recipe) == (parent, (Wanda(),))
    assert ancestor.manifest_sha256 == sha256(stored).hexdigest()
    assert made.report.base is not None
    assert (made.report.base.perplexity, made.report.base.cached) == (8.0, True)
    assert made.report.base_bytes == 1000
    assert (view.name, view.recipe_name) == ("base wanda-50% then rtn-4", "wanda-50% then rtn-4")
    assert kept is not None
    assert kept.perplexity == 8.0
    # The catalogue lists artifacts already; the models are those that lie elsewhere.
    assert not any(model.uri.startswith("artifact") for model in models)


def test_a_base_that_nobody_measured_stays_unmeasured(
    database: Database, submit: Submit, make_worker: MakeWorker, parent: UUID
) -> None:
    job = submit(model=f"artifact://{parent}")
    claim_all(make_worker(), "cpu")
    report = manifest_of(database, job).report
    assert report.base is None
    assert report.artifact is not None
    with database.transaction() as session:
        kept = catalogue.likely_baseline(session, BASE.fingerprint, job.spec.evaluation, "float32", "cpu")
    assert kept is None


def test_a_job_whose_engine_died_is_done_by_the_next_claim(
    database: Database, submit: Submit, make_worker: MakeWorker, settings: Settings, parent: UUID
) -> None:
    job = submit(model=f"artifact://{parent}")
    with database.transaction() as session:
        claim = jobs.claim(session, "cpu", "worker-1", settings)
    assert claim is not None
    run_job(make_worker(ending="killed"), claim, claimed_at=time.monotonic())
    assert end_of(database, job).state is JobState.QUEUED
    claim_all(make_worker(), "cpu")
    done = end_of(database, job)
    assert (done.state, done.epoch, done.failures) == (JobState.SUCCEEDED, 2, 1)
    assert [ancestor.artifact_id for ancestor in manifest_of(database, job).lineage] == [parent]


@pytest.mark.parametrize("owner", ["default", "other"])
def test_the_claim_asks_again_whether_the_project_may_read_it(
    database: Database, project: UUID, make_worker: MakeWorker, parent: UUID, owner: str, submit: Submit
) -> None:
    """Submitted while it was there and shown to everyone; then it is deleted, or shown no more."""
    fields: dict[str, Any] = {"model": f"artifact://{parent}", "recipe": [{"method": "rtn"}]}
    with database.transaction() as session:
        whose = access.create_project(session, owner)
        spec = JobSpec.model_validate(fields)
        job, _ = jobs.submit(session, whose, spec, pool="cpu", idempotency_key=None)
        if owner == "default":
            catalogue.delete_artifact(session, project, parent)
    claim_all(make_worker(), "cpu")
    done = end_of(database, job)
    assert done.error is not None
    assert (done.state, done.error.code, done.error.field) == (JobState.FAILED, "source_not_found", "model")
    assert done.error.detail == f"There is no artifact {parent}."
    assert done.failures == 0
