"""The catalogue: artifacts and what belongs to them - models, data sets, baselines.

A project reads its own artifacts and those that others show to everyone; it changes its own only. A deleted artifact is
only marked; the dispatcher then removes its files.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Select, Text, cast, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.orm import Session, defer

from paredown.contracts.artifact import ArtifactView, BaseModelRecord, Evaluation, Manifest, Verdict
from paredown.contracts.dataset import DatasetView
from paredown.contracts.job import JobState, content_hash
from paredown.contracts.service import ModelEntry
from paredown.core.errors import Forbidden, NotFound, PreconditionFailed
from paredown.core.paging import Place, encode_cursor, page
from paredown.core.storable import check_storable, storable
from paredown.core.tables import ArtifactRow, BaselineRow, DatasetRow, JobRow, ModelRow, ProjectRow

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class NewArtifact:
    """What a worker hands over with a finished job. Its id is the manifest's."""

    manifest: Manifest
    storage_prefix: str
    name: str
    tags: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict | None:
        """None where the job had no budget."""
        gate = self.manifest.report.gate
        return gate.verdict if gate else None


def add_artifact(session: Session, job: JobRow, artifact: NewArtifact) -> None:
    """Only core/jobs.py calls this, in the transaction that ends the job."""
    manifest, report = artifact.manifest, artifact.manifest.report
    evaluation = report.artifact or report.base
    session.execute(
        insert(ArtifactRow).values(
            id=manifest.artifact_id,
            project_id=job.project_id,
            job_id=job.id,
            epoch=job.epoch,
            name=storable(artifact.name),
            model=manifest.base.uri,
            model_fingerprint=manifest.base.fingerprint,
            model_type=manifest.base.model_type,
            parameters=manifest.base.parameters,
            recipe_hash=manifest.recipe_hash,
            recipe_name=job.recipe_name,
            methods=[stage.method for stage in manifest.recipe],
            format=manifest.format,
            size_bytes=report.size_bytes,
            base_bytes=report.base_bytes,
            perplexity=report.artifact.perplexity if report.artifact else None,
            base_perplexity=report.base.perplexity if report.base else None,
            protocol_hash=evaluation.protocol_hash if evaluation else None,
            verdict=artifact.verdict,
            tags=list(artifact.tags),
            manifest=storable(manifest.model_dump(mode="json")),
            storage_prefix=artifact.storage_prefix,
        )
    )


def is_artifact_of(session: Session, artifact_id: UUID, job_id: UUID, epoch: int) -> bool:
    """Whether this claim of the job made the artifact."""
    made = (ArtifactRow.id == artifact_id, ArtifactRow.job_id == job_id, ArtifactRow.epoch == epoch)
    return session.scalar(select(ArtifactRow.id).where(*made)) is not None


def get_artifact(session: Session, project_id: UUID | None, artifact_id: UUID) -> ArtifactView:
    """An artifact that this project may read; None stands for any project. Raises NotFound."""
    query = _select_views().where(ArtifactRow.id == artifact_id, *readable(project_id))
    found = session.execute(query.execution_options(populate_existing=True)).one_or_none()
    if found is None:
        raise _no_artifact(artifact_id)
    return _view(*found)


def manifest(session: Session, project_id: UUID | None, artifact_id: UUID) -> Manifest:
    """Raises NotFound."""
    query = select(ArtifactRow.manifest).where(ArtifactRow.id == artifact_id, *readable(project_id))
    found = session.scalar(query)
    if found is None:
        raise _no_artifact(artifact_id)
    return Manifest.model_validate(found)


def storage_prefix(session: Session, project_id: UUID | None, artifact_id: UUID) -> str:
    """Where the artifact's files lie in the store. Raises NotFound."""
    query = select(ArtifactRow.storage_prefix).where(ArtifactRow.id == artifact_id, *readable(project_id))
    found = session.scalar(query)
    if found is None:
        raise _no_artifact(artifact_id)
    return found


def list_artifacts(
    session: Session,
    project_id: UUID,
    *,
    search: str | None = None,
    tag: str | None = None,
    model: str | None = None,
    method: str | None = None,
    verdict: Verdict | None = None,
    after: str | None,
    limit: int,
) -> tuple[list[ArtifactView], str | None]:
    """A page of what the project may read, newest first, and the cursor of the next page.

    `search` is looked for in name, model and recipe; `model` is a URI or a fingerprint. Raises RequestInvalid.
    """
    check_storable([search, tag, model, method], "filter")
    query = _select_views().where(*readable(project_id))
    if search:
        columns = (ArtifactRow.name, ArtifactRow.model, ArtifactRow.recipe_name)
        query = query.where(or_(*(column.icontains(search, autoescape=True) for column in columns)))
    if tag is not None:
        query = query.where(ArtifactRow.tags.contains([tag]))
    if model is not None:
        query = query.where(of_model(model))
    if method is not None:
        query = query.where(ArtifactRow.methods.contains([method]))
    if verdict is not None:
        query = query.where(ArtifactRow.verdict == verdict)
    rows, has_more = page(session, query, ArtifactRow.created_at, ArtifactRow.id, after=after, limit=limit)
    views = [_view(*row) for row in rows]
    return views, encode_cursor(Place(views[-1].created_at, views[-1].id)) if has_more else None


def update_artifact(
    session: Session,
    project_id: UUID,
    artifact_id: UUID,
    *,
    name: str | None = None,
    tags: Collection[str] | None = None,
    visibility: Literal["project", "everyone"] | None = None,
    if_match: str | None = None,
) -> ArtifactView:
    """Change what is given. `if_match` holds ETags: raises PreconditionFailed unless the artifact still has one of them.

    Raises NotFound, or Forbidden for an artifact that another project shows.
    """
    _lock_own(session, project_id, artifact_id)
    view = get_artifact(session, project_id, artifact_id)
    if if_match is not None and not _matches(if_match, etag(view)):
        raise PreconditionFailed("The artifact was changed meanwhile; read it again.", field="If-Match")
    values: dict[str, Any] = {}
    if name is not None:
        check_storable(name, "name")
        values["name"] = name
    if tags is not None:
        check_storable(list(tags), "tags")
        values["tags"] = list(dict.fromkeys(tags))
    if visibility is not None:
        values["visibility"] = visibility
    if values:
        session.execute(_change(artifact_id).values(**values))
    return get_artifact(session, project_id, artifact_id)


def delete_artifact(session: Session, project_id: UUID, artifact_id: UUID) -> None:
    """Take it out of the catalogue; its files go with the next sweep. Raises NotFound or Forbidden."""
    _lock_own(session, project_id, artifact_id)
    session.execute(_change(artifact_id).values(deleted_at=func.now()))


def etag(view: ArtifactView) -> str:
    """A strong ETag of what the catalogue says of an artifact."""
    return f'"{content_hash(view.model_dump(mode="json"))[:32]}"'


# Sweeping: what of the store may go


def deleted_artifacts(session: Session, limit: int = 100) -> list[tuple[UUID, str]]:
    """(id, storage prefix) of deleted artifacts whose files still lie in the store. See mark_swept."""
    query = select(ArtifactRow.id, ArtifactRow.storage_prefix).where(
        ArtifactRow.deleted_at.is_not(None), ArtifactRow.swept_at.is_(None)
    )
    return [
        (row.id, row.storage_prefix) for row in session.execute(query.order_by(ArtifactRow.deleted_at).limit(limit))
    ]


def mark_swept(session: Session, artifact_id: UUID) -> None:
    """The deleted artifact's files are gone."""
    session.execute(_change(artifact_id).where(ArtifactRow.deleted_at.is_not(None)).values(swept_at=func.now()))


def known_prefix(session: Session, prefix: str) -> bool:
    """Whether something may still need what lies there: `artifacts/JOB/EPOCH`, `checkpoints/JOB`, `datasets/ID`.

    A prefix of another shape counts as known: what is not understood is not removed.
    """
    try:
        match prefix.strip("/").split("/"):
            case ["artifacts", job, epoch]:
                owner, claim = UUID(job), int(epoch)
                # Not yet a row while its worker uploads; then a row until its files are swept.
                held = (JobRow.id == owner, JobRow.epoch == claim, JobRow.state == JobState.RUNNING)
                kept = (ArtifactRow.job_id == owner, ArtifactRow.epoch == claim, ArtifactRow.swept_at.is_(None))
                query = select(
                    or_(select(JobRow.id).where(*held).exists(), select(ArtifactRow.id).where(*kept).exists())
                )
            case ["checkpoints", job]:
                open_states = JobRow.state.in_([JobState.QUEUED, JobState.RUNNING])
                query = select(select(JobRow.id).where(JobRow.id == UUID(job), open_states).exists())
            case ["datasets", dataset]:
                query = select(select(DatasetRow.id).where(DatasetRow.id == UUID(dataset)).exists())
            case _:
                return True
    except ValueError:
        return True
    return session.execute(query).scalar_one()


# Baselines


def baseline(session: Session, fingerprint: str, protocol_hash: str, dtype: str, device_kind: str) -> Evaluation | None:
    """The uncompressed model's quality, if it was measured before under the same conditions."""
    row = session.get(BaselineRow, (fingerprint, protocol_hash, dtype, device_kind))
    return Evaluation.model_validate({**row.evaluation, "cached": True}) if row else None


def save_baseline(session: Session, fingerprint: str, evaluation: Evaluation, device_kind: str) -> None:
    """Keep a base model's quality for later jobs; the first measurement stays."""
    new = postgresql_insert(BaselineRow).values(
        model_fingerprint=fingerprint,
        protocol_hash=evaluation.protocol_hash,
        dtype=evaluation.protocol.dtype,
        device_kind=device_kind,
        evaluation=storable(evaluation.model_dump(mode="json")),
    )
    session.execute(new.on_conflict_do_nothing())


# Models


def record_model(session: Session, project_id: UUID, record: BaseModelRecord, config: Mapping[str, Any]) -> None:
    """Remember that the project uses this model."""
    new = postgresql_insert(ModelRow).values(
        id=uuid4(),
        project_id=project_id,
        uri=record.uri,
        revision=record.revision,
        fingerprint=record.fingerprint,
        model_type=record.model_type,
        parameters=record.parameters,
        config=storable(dict(config)),
    )
    again = {"last_used_at": func.now(), "fingerprint": new.excluded.fingerprint, "config": new.excluded.config}
    session.execute(new.on_conflict_do_update(constraint="models_once", set_=again))


def list_models(
    session: Session, project_id: UUID, *, after: str | None = None, limit: int
) -> tuple[list[ModelEntry], str | None]:
    """A page of the models that the project has used, and the cursor of the next page; the newest first."""
    query = select(ModelRow).where(ModelRow.project_id == project_id)
    rows, has_more = page(session, query, ModelRow.created_at, ModelRow.id, after=after, limit=limit)
    models: list[ModelRow] = [row for (row,) in rows]
    entries = [
        ModelEntry(
            uri=model.uri,
            origin="recorded",
            revision=model.revision,
            fingerprint=model.fingerprint,
            model_type=model.model_type,
            parameters=model.parameters,
            base_bytes=2 * model.parameters,
            last_used_at=model.last_used_at,
        )
        for model in models
    ]
    return entries, encode_cursor(Place(models[-1].created_at, models[-1].id)) if has_more else None


# Data sets


def new_dataset(
    session: Session, project_id: UUID, dataset_id: UUID, *, name: str, sha256: str, size_bytes: int, storage_key: str
) -> DatasetView:
    """Enter an upload whose bytes lie in the store already. Raises RequestInvalid."""
    check_storable(name, "name")
    session.execute(
        insert(DatasetRow).values(
            id=dataset_id,
            project_id=project_id,
            name=name,
            sha256=sha256,
            size_bytes=size_bytes,
            storage_key=storage_key,
        )
    )
    return get_dataset(session, project_id, dataset_id)


def get_dataset(session: Session, project_id: UUID | None, dataset_id: UUID) -> DatasetView:
    """A data set of this project; None stands for any project. Raises NotFound."""
    query = _select_datasets().where(DatasetRow.id == dataset_id)
    if project_id is not None:
        query = query.where(DatasetRow.project_id == project_id)
    found = session.execute(query).one_or_none()
    if found is None:
        raise NotFound(f"There is no data set {dataset_id}.")
    return _dataset_view(*found)


def list_datasets(
    session: Session, project_id: UUID, *, after: str | None = None, limit: int
) -> tuple[list[DatasetView], str | None]:
    """A page of the project's data sets, newest first, and the cursor of the next page."""
    query = _select_datasets().where(DatasetRow.project_id == project_id)
    rows, has_more = page(session, query, DatasetRow.created_at, DatasetRow.id, after=after, limit=limit)
    views = [_dataset_view(*row) for row in rows]
    return views, encode_cursor(Place(views[-1].created_at, views[-1].id)) if has_more else None


def delete_dataset(session: Session, project_id: UUID, dataset_id: UUID) -> str:
    """Forget a data set; returns its key in the store, for the caller to remove once this is committed."""
    owned = select(DatasetRow).where(DatasetRow.id == dataset_id, DatasetRow.project_id == project_id)
    row = session.scalar(owned.with_for_update())
    if row is None:
        raise NotFound(f"There is no data set {dataset_id}.")
    session.delete(row)
    return row.storage_key


# What they share


def readable(project_id: UUID | None) -> list[ColumnElement[bool]]:
    """Conditions of an artifact that this project may read; None stands for any project."""
    alive = ArtifactRow.deleted_at.is_(None)
    if project_id is None:
        return [alive]
    return [alive, or_(ArtifactRow.project_id == project_id, ArtifactRow.visibility == "everyone")]


def of_model(model: str) -> ColumnElement[bool]:
    """`model` is a URI or a fingerprint."""
    return or_(ArtifactRow.model == model, ArtifactRow.model_fingerprint == model)


def report_number(*path: str) -> ColumnElement[float | None]:
    """A number deep in the manifest's report; NULL where it was not measured."""
    return cast(func.jsonb_extract_path_text(ArtifactRow.manifest, "report", *path), ArtifactRow.perplexity.type)


DECODE_SPEED = report_number("speeds", "artifact", "decode_tokens_per_second")
BASE_DECODE_SPEED = report_number("speeds", "base", "decode_tokens_per_second")
TOKEN_COST = report_number("cost", "artifact_per_million_tokens")
BASE_TOKEN_COST = report_number("cost", "base_per_million_tokens")
_CURRENCY = cast(func.jsonb_extract_path_text(ArtifactRow.manifest, "report", "cost", "currency"), Text)


def _select_views() -> Select[Any]:
    # The manifest itself may have thousands of layers; a list needs a few of its figures.
    return (
        select(
            ArtifactRow,
            ProjectRow.name,
            ArtifactRow.manifest["recipe"],
            DECODE_SPEED,
            BASE_DECODE_SPEED,
            TOKEN_COST,
            _CURRENCY,
        )
        .join(ProjectRow, ProjectRow.id == ArtifactRow.project_id)
        .options(defer(ArtifactRow.manifest, raiseload=True))
    )


def _view(
    row: ArtifactRow,
    project: str,
    recipe: list[JsonObject],
    decode_speed: float | None,
    base_decode_speed: float | None,
    token_cost: float | None,
    currency: str | None,
) -> ArtifactView:
    return ArtifactView.model_validate(
        {
            "id": row.id,
            "project": project,
            "job_id": row.job_id,
            "name": row.name,
            "model": row.model,
            "model_fingerprint": row.model_fingerprint,
            "model_type": row.model_type,
            "parameters": row.parameters,
            "recipe": recipe,
            "recipe_name": row.recipe_name,
            "recipe_hash": row.recipe_hash,
            "format": row.format,
            "size_bytes": row.size_bytes,
            "base_bytes": row.base_bytes,
            "size_ratio": row.size_bytes / row.base_bytes,
            "perplexity": row.perplexity,
            "base_perplexity": row.base_perplexity,
            "protocol_hash": row.protocol_hash,
            "decode_tokens_per_second": decode_speed,
            "base_decode_tokens_per_second": base_decode_speed,
            "cost_per_million_tokens": token_cost,
            "currency": currency,
            "verdict": row.verdict,
            "visibility": row.visibility,
            "tags": row.tags,
            "created_at": row.created_at,
        }
    )


def _no_artifact(artifact_id: UUID) -> NotFound:
    return NotFound(f"There is no artifact {artifact_id}.")


def _lock_own(session: Session, project_id: UUID, artifact_id: UUID) -> None:
    query = select(ArtifactRow.project_id).where(ArtifactRow.id == artifact_id, *readable(project_id))
    owner = session.scalar(query.with_for_update())
    if owner is None:
        raise _no_artifact(artifact_id)
    if owner != project_id:
        raise Forbidden("This artifact belongs to another project, which lets you read it only.")


def _change(artifact_id: UUID) -> Any:
    return update(ArtifactRow).where(ArtifactRow.id == artifact_id).execution_options(synchronize_session=False)


def _matches(if_match: str, tag: str) -> bool:
    candidates = [candidate.strip() for candidate in if_match.split(",")]
    return "*" in candidates or tag in candidates


def _select_datasets() -> Select[tuple[DatasetRow, str]]:
    return select(DatasetRow, ProjectRow.name).join(ProjectRow, ProjectRow.id == DatasetRow.project_id)


def _dataset_view(row: DatasetRow, project: str) -> DatasetView:
    return DatasetView(
        id=row.id,
        project=project,
        name=row.name,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )
