"""The catalogue of artifacts; what they were made from is in core/inputs.py, and offered here too.

A project reads its own artifacts and those that others show to everyone; it changes its own only. A deleted artifact is
only marked; the dispatcher then removes its files.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.orm import Session

from paredown.contracts.artifact import ArtifactView, Manifest
from paredown.contracts.job import JobState, content_hash
from paredown.contracts.report import Verdict
from paredown.core import calibrations, history
from paredown.core.artifact_queries import of_model, readable, select_views, view
from paredown.core.errors import ArtifactAliased, Forbidden, NotFound, PreconditionFailed, StateConflict
from paredown.core.etags import matches
from paredown.core.front import front, front_among, fronts
from paredown.core.inputs import (
    baseline,
    delete_dataset,
    get_dataset,
    likely_baseline,
    list_datasets,
    list_models,
    new_dataset,
    record_model,
    save_baseline,
)
from paredown.core.paging import Place, encode_cursor, page
from paredown.core.storable import check_storable, storable
from paredown.core.tables import AliasRow, ArtifactRow, DatasetRow, JobRow

__all__ = [
    "NewArtifact",
    "add_artifact",
    "baseline",
    "delete_artifact",
    "delete_dataset",
    "deleted_artifacts",
    "etag",
    "front",
    "front_among",
    "fronts",
    "get_artifact",
    "get_dataset",
    "is_artifact_of",
    "known_prefix",
    "likely_baseline",
    "list_artifacts",
    "list_datasets",
    "list_models",
    "lock_own",
    "manifest",
    "mark_swept",
    "new_dataset",
    "override_verdict",
    "record_model",
    "save_baseline",
    "storage_prefix",
    "stored",
    "update_artifact",
]


@dataclass(frozen=True)
class NewArtifact:
    """What a worker hands over with a finished job. Its id is the manifest's."""

    manifest: Manifest
    storage_prefix: str
    name: str
    tags: tuple[str, ...] = ()
    took: history.Took | None = None
    calibration: calibrations.NewCalibration | None = None

    @property
    def verdict(self) -> Verdict | None:
        """None where the job had no budget."""
        gate = self.manifest.report.gate
        return gate.verdict if gate else None


def add_artifact(session: Session, job: JobRow, artifact: NewArtifact) -> None:
    """Only core/jobs.py calls this, in the transaction that ends the job."""
    manifest, report = artifact.manifest, artifact.manifest.report
    parent = manifest.lineage[-1] if manifest.lineage else None
    evaluation = report.artifact or report.base
    session.execute(
        insert(ArtifactRow).values(
            id=manifest.artifact_id,
            project_id=job.project_id,
            job_id=job.id,
            parent_id=parent.artifact_id if parent else None,
            epoch=job.epoch,
            name=storable(artifact.name),
            model=manifest.base.uri,
            model_fingerprint=manifest.base.fingerprint,
            model_type=manifest.base.model_type,
            parameters=manifest.base.parameters,
            recipe_hash=manifest.recipe_hash,
            recipe_name=manifest.recipe_name,
            methods=[stage.method for recipe in manifest.recipes for stage in recipe],
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
    query = select_views().where(ArtifactRow.id == artifact_id, *readable(project_id))
    found = session.execute(query.execution_options(populate_existing=True)).one_or_none()
    if found is None:
        raise _no_artifact(artifact_id)
    return view(*found)


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


def stored(session: Session, project_id: UUID | None, artifact_id: UUID) -> tuple[Manifest, str]:
    """Manifest and place in the store of an artifact that this project may read. Raises NotFound."""
    return manifest(session, project_id, artifact_id), storage_prefix(session, project_id, artifact_id)


def list_artifacts(
    session: Session,
    project_id: UUID,
    *,
    search: str | None = None,
    tag: str | None = None,
    model: str | None = None,
    method: str | None = None,
    verdict: Verdict | None = None,
    parent: UUID | None = None,
    after: str | None,
    limit: int,
) -> tuple[list[ArtifactView], str | None]:
    """A page of what the project may read, newest first, and the cursor of the next page.

    `search` is looked for in name, model and recipe; `model` is a URI, a fingerprint, or artifact://ID for the model of
    that artifact; `parent` is the artifact that they were made of directly. Raises RequestInvalid.
    """
    check_storable([search, tag, model, method], "filter")
    query = select_views().where(*readable(project_id))
    if search:
        columns = (ArtifactRow.name, ArtifactRow.model, ArtifactRow.recipe_name)
        query = query.where(or_(*(column.icontains(search, autoescape=True) for column in columns)))
    if tag is not None:
        query = query.where(ArtifactRow.tags.contains([tag]))
    if model is not None:
        query = query.where(of_model(session, project_id, model))
    if method is not None:
        query = query.where(ArtifactRow.methods.contains([method]))
    if verdict is not None:
        query = query.where(ArtifactRow.verdict == verdict)
    if parent is not None:
        query = query.where(ArtifactRow.parent_id == parent)
    rows, has_more = page(session, query, ArtifactRow.created_at, ArtifactRow.id, after=after, limit=limit)
    views = [view(*row) for row in rows]
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
    """Change what is given. `if_match` holds ETags of which the artifact must still have one.

    Raises PreconditionFailed, NotFound, or Forbidden for an artifact that another project shows.
    """
    lock_own(session, project_id, artifact_id)
    if if_match is not None and not matches(if_match, etag(get_artifact(session, project_id, artifact_id))):
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


def override_verdict(
    session: Session, project_id: UUID, artifact_id: UUID, *, reason: str, key_name: str
) -> ArtifactView:
    """Take an artifact that missed its budget for good all the same. Its report, its manifest and its job stay.

    Raises StateConflict where its verdict is another, NotFound, or Forbidden for an artifact of another project.
    """
    lock_own(session, project_id, artifact_id)
    check_storable(reason, "reason")
    verdict = get_artifact(session, project_id, artifact_id).verdict
    if verdict is not Verdict.MISSED:
        standing = f"its budget's verdict is {verdict}" if verdict else "it has no budget"
        raise StateConflict(f"Only an artifact that missed its budget can be overridden; {standing}.")
    values = {
        "verdict": Verdict.OVERRIDDEN,
        "override_reason": reason,
        "overridden_by": key_name,
        "overridden_at": func.now(),
    }
    session.execute(_change(artifact_id).values(**values))
    return get_artifact(session, project_id, artifact_id)


def delete_artifact(session: Session, project_id: UUID, artifact_id: UUID) -> None:
    """Take it out of the catalogue; its files go with the next sweep.

    Raises NotFound, Forbidden, or ArtifactAliased.
    """
    lock_own(session, project_id, artifact_id)
    pointing = select(AliasRow.name).where(AliasRow.artifact_id == artifact_id).order_by(AliasRow.name)
    if names := list(session.scalars(pointing)):
        raise ArtifactAliased(
            f"{'The alias' if len(names) == 1 else 'The aliases'} {', '.join(names)} "
            f"{'points' if len(names) == 1 else 'point'} at this artifact; move or remove what points here first."
        )
    session.execute(_change(artifact_id).values(deleted_at=func.now()))


def etag(artifact: ArtifactView) -> str:
    """A strong ETag of what the catalogue says of an artifact."""
    return f'"{content_hash(artifact.model_dump(mode="json"))[:32]}"'


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
    """Whether something may still need what lies there: `artifacts/JOB/EPOCH`, `checkpoints/JOB`, `datasets/ID`,
    `calibrations/ID`.

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
            case ["calibrations", calibration]:
                query = select(calibrations.is_kept(UUID(calibration)))
            case _:
                return True
    except ValueError:
        return True
    return session.execute(query).scalar_one()


# What they share


def _no_artifact(artifact_id: UUID) -> NotFound:
    return NotFound(f"There is no artifact {artifact_id}.")


def lock_own(session: Session, project_id: UUID, artifact_id: UUID) -> None:
    """Until the transaction ends, nobody else changes this artifact of this project. Raises NotFound, Forbidden."""
    query = select(ArtifactRow.project_id).where(ArtifactRow.id == artifact_id, *readable(project_id))
    owner = session.scalar(query.with_for_update())
    if owner is None:
        raise _no_artifact(artifact_id)
    if owner != project_id:
        raise Forbidden("This artifact belongs to another project, which lets you read it only.")


def _change(artifact_id: UUID) -> Any:
    return update(ArtifactRow).where(ArtifactRow.id == artifact_id).execution_options(synchronize_session=False)
