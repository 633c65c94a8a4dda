"""From the engine's output directory to a published artifact: the report completed, every file hashed, manifest last.

`pare run` uses the first half: it completes the report and writes the manifest beside the files.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from paredown.contracts.artifact import MANIFEST_NAME, Ancestor, BaseModelRecord, Manifest, ManifestFile, sha256_file
from paredown.contracts.calibration import coverage
from paredown.contracts.families import ModelShape
from paredown.contracts.gate import judge
from paredown.contracts.job import Budget
from paredown.contracts.prices import hourly, per_million_tokens
from paredown.contracts.recipes import recipe_hash
from paredown.contracts.report import Cost, Report
from paredown.contracts.work import CALIBRATION_FILE, EngineResult, EngineStarted, WorkOrder
from paredown.core.calibrations import NewCalibration
from paredown.core.prices import Rate
from paredown.core.storage import ObjectStore


def job_cost(report: Report, *, rate: Rate, job_seconds: float) -> Cost:
    """What the job took of its pool, and what decoding a million tokens takes before and after, at batch 1."""
    base, artifact = report.speeds.get("base"), report.speeds.get("artifact")
    return Cost(
        currency=rate.currency,
        price_per_hour=rate.price_per_hour,
        instance=rate.instance,
        as_of=rate.as_of,
        job_seconds=job_seconds,
        job=hourly(rate.price_per_hour, job_seconds),
        base_per_million_tokens=per_million_tokens(rate.price_per_hour, base) if base else None,
        artifact_per_million_tokens=per_million_tokens(rate.price_per_hour, artifact) if artifact else None,
    )


def complete_report(report: Report, *, cost: Cost | None, budget: Budget | None) -> Report:
    """The engine's report with what only its caller knows: the money, and the verdict where there is a budget."""
    priced = report.model_copy(update={"cost": cost})
    return priced.model_copy(update={"gate": judge(budget, priced) if budget else None})


def build_manifest(
    directory: Path,
    *,
    artifact_id: UUID,
    job_id: UUID | None,
    base: BaseModelRecord,
    lineage: tuple[Ancestor, ...] = (),
    order: WorkOrder,
    started: EngineStarted,
    result: EngineResult,
    report: Report,
    on_file: Callable[[int], None] = lambda _size: None,
) -> Manifest:
    """Hash every file below `directory` and say how it was made. `on_file` is told each file's bytes."""
    files = []
    for path in _files(directory):
        files.append(
            ManifestFile(
                path=path.relative_to(directory).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_file(path)
            )
        )
        on_file(files[-1].size_bytes)
    return Manifest(
        artifact_id=artifact_id,
        job_id=job_id,
        created_at=datetime.now(UTC),
        base=base,
        lineage=lineage,
        recipe=order.recipe,
        recipe_hash=recipe_hash(order.recipe),
        format=order.format,
        calibration=order.calibration,
        calibration_tokens_sha256=result.calibration_tokens_sha256,
        evaluation=order.evaluation,
        dtype=order.dtype,
        files=tuple(files),
        isolation=started.isolation,
        tools=started.tools,
        report=report,
    )


def drawn_calibration(
    order: WorkOrder, manifest: Manifest, result: EngineResult, shape: ModelShape
) -> NewCalibration | None:
    """What the catalogue keeps of the tokens that the engine drew; None where it drew none."""
    if result.drawn is None:
        return None
    assert order.calibration is not None, "a calibration was drawn by its settings"
    assert order.calibration_text is not None, "a calibration was drawn from a text"
    assert result.calibration_tokens_sha256 is not None, "tokens that were drawn have a hash"
    path = order.work_dir / CALIBRATION_FILE
    return NewCalibration(
        tokens_sha256=result.calibration_tokens_sha256,
        settings=order.calibration,
        # The cache names a text by its hash.
        source_sha256=order.calibration_text.stem,
        tokenizer_sha256=result.drawn.tokenizer_sha256,
        held_out_windows=result.drawn.held_out_windows,
        coverage=coverage(result.report.layers),
        model=manifest.base.uri,
        model_fingerprint=manifest.base.fingerprint,
        model_type=shape.model_type,
        vocab_size=shape.vocab_size,
        size_bytes=path.stat().st_size,
        file_sha256=sha256_file(path),
    )


def write_manifest(manifest: Manifest, directory: Path) -> Path:
    """Beside the files, for `pare run`; whole or not at all."""
    path = directory / MANIFEST_NAME
    temporary = directory / f".{MANIFEST_NAME}.tmp"
    temporary.write_bytes(manifest_bytes(manifest))
    temporary.replace(path)
    return path


def manifest_bytes(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=2).encode()


def artifact_prefix(job_id: UUID, epoch: int) -> str:
    """Each epoch uploads to a place of its own, so that a supervisor that lost its job overwrites nobody's files."""
    return f"artifacts/{job_id}/{epoch}"


def upload(
    store: ObjectStore,
    manifest: Manifest,
    directory: Path,
    prefix: str,
    *,
    on_bytes: Callable[[int], None],
) -> None:
    """Every file, the manifest last. `on_bytes` is told each part's size as it goes; what it raises ends the upload."""
    for file in manifest.files:
        on_bytes(0)
        store.put_file(f"{prefix}/{file.path}", directory / file.path, file.sha256)
        on_bytes(file.size_bytes)
    store.put_bytes(f"{prefix}/{MANIFEST_NAME}", manifest_bytes(manifest))


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"the engine left {path.name}, which is no plain file")
        if path.is_file() and path != directory / MANIFEST_NAME:
            yield path
