"""What a supervisor asks of the catalogue beyond the catalogue's own questions."""

from pathlib import PurePosixPath
from uuid import UUID

from sqlalchemy.orm import Session

from paredown.contracts.artifact import Manifest
from paredown.contracts.job import JobView
from paredown.core import catalogue
from paredown.core.tables import DatasetRow

NAME_LIMIT = 120


def dataset_key(session: Session, project_id: UUID, dataset_id: UUID) -> str:
    """Where a data set of this project lies in the store. Raises NotFound, also for another project's."""
    catalogue.get_dataset(session, project_id, dataset_id)
    return session.get_one(DatasetRow, dataset_id).storage_key


def artifact_name(job: JobView, manifest: Manifest) -> str:
    """The name that was asked for, else one that tells model and recipe."""
    if job.spec.name:
        return job.spec.name
    model = PurePosixPath(manifest.base.uri.partition("://")[2].partition("@")[0].rstrip("/")).name
    return f"{model.removesuffix('.gguf')} {manifest.recipe_name}"[:NAME_LIMIT]
