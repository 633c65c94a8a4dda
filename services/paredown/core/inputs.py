"""What jobs are made from: models that were used, texts that were uploaded, quality of base models once measured."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Select, func, insert, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.orm import Session

from paredown.contracts.artifact import BaseModelRecord
from paredown.contracts.dataset import DatasetView
from paredown.contracts.job import DType, EvaluationSettings
from paredown.contracts.report import Evaluation
from paredown.contracts.service import ModelEntry
from paredown.core.errors import NotFound
from paredown.core.paging import Place, encode_cursor, page
from paredown.core.storable import check_storable, storable
from paredown.core.tables import BaselineRow, DatasetRow, ModelRow, ProjectRow


def baseline(session: Session, fingerprint: str, protocol_hash: str, dtype: str, device_kind: str) -> Evaluation | None:
    """The uncompressed model's quality, if it was measured before under the same conditions."""
    row = session.get(BaselineRow, (fingerprint, protocol_hash, dtype, device_kind))
    return Evaluation.model_validate({**row.evaluation, "cached": True}) if row else None


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


def known_fingerprint(session: Session, project_id: UUID, uri: str, revision: str) -> str | None:
    """The fingerprint of a model that the project has used at this revision."""
    row = (ModelRow.project_id == project_id, ModelRow.uri == uri, ModelRow.revision == revision)
    return session.scalar(select(ModelRow.fingerprint).where(*row))


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


def _select_datasets() -> Select[DatasetRow, str]:
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
