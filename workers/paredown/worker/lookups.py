"""What a supervisor asks of the catalogue beyond the catalogue's own questions."""

from pathlib import PurePosixPath
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from paredown.contracts.artifact import Evaluation
from paredown.contracts.job import DType, EvaluationSettings, JobView
from paredown.core import catalogue
from paredown.core.tables import BaselineRow, DatasetRow

NAME_LIMIT = 120


def likely_baseline(
    session: Session, fingerprint: str, settings: EvaluationSettings, dtype: DType, device_kind: str
) -> Evaluation | None:
    """The base's figures under what looks like the same protocol.

    Only the engine knows the tokens, hence the protocol's hash; it uses these figures if the hash is equal to its own.
    """
    query = (
        select(BaselineRow)
        .where(
            BaselineRow.model_fingerprint == fingerprint,
            BaselineRow.dtype == dtype,
            BaselineRow.device_kind == device_kind,
            BaselineRow.evaluation["protocol"]["source"].astext == settings.source,
            BaselineRow.evaluation["protocol"]["samples"].as_integer() == settings.samples,
            BaselineRow.evaluation["protocol"]["sequence_length"].as_integer() == settings.sequence_length,
        )
        .order_by(BaselineRow.created_at.desc())
        .limit(1)
    )
    row = session.scalars(query).one_or_none()
    return Evaluation.model_validate({**row.evaluation, "cached": True}) if row else None


def dataset_key(session: Session, project_id: UUID, dataset_id: UUID) -> str:
    """Where a data set of this project lies in the store. Raises NotFound, also for another project's."""
    catalogue.get_dataset(session, project_id, dataset_id)
    return session.get_one(DatasetRow, dataset_id).storage_key


def artifact_name(job: JobView) -> str:
    """The name that was asked for, else one that tells model and recipe."""
    if job.spec.name:
        return job.spec.name
    model = PurePosixPath(job.spec.model.partition("://")[2].partition("@")[0].rstrip("/")).name
    return f"{model.removesuffix('.gguf')} {job.recipe_name}"[:NAME_LIMIT]
