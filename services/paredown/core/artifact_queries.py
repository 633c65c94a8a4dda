"""Reading artifacts: who may, and how a row becomes what people see."""

from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, cast, func, or_, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, defer

from paredown.contracts.artifact import ArtifactView
from paredown.core.tables import AliasRow, ArtifactRow, ProjectRow

JsonObject = dict[str, Any]


def readable(project_id: UUID | None) -> list[ColumnElement[bool]]:
    """Conditions of an artifact that this project may read; None stands for any project."""
    alive = ArtifactRow.deleted_at.is_(None)
    if project_id is None:
        return [alive]
    return [alive, or_(ArtifactRow.project_id == project_id, ArtifactRow.visibility == "everyone")]


def of_model(session: Session, project_id: UUID, model: str) -> ColumnElement[bool]:
    """`model` is a URI or a fingerprint; artifact://ID stands for the model that the artifact was made of."""
    scheme, _, rest = model.partition("://")
    if scheme == "artifact":
        with suppress(ValueError):
            its = select(ArtifactRow.model_fingerprint).where(ArtifactRow.id == UUID(rest), *readable(project_id))
            model = session.scalar(its) or model
    return or_(ArtifactRow.model == model, ArtifactRow.model_fingerprint == model)


def report_number(*path: str) -> ColumnElement[float | None]:
    """A number deep in the manifest's report; NULL where it was not measured."""
    return cast(func.jsonb_extract_path_text(ArtifactRow.manifest, "report", *path), ArtifactRow.perplexity.type)


DECODE_SPEED = report_number("speeds", "artifact", "decode_tokens_per_second")
BASE_DECODE_SPEED = report_number("speeds", "base", "decode_tokens_per_second")
TOKEN_COST = report_number("cost", "artifact_per_million_tokens")
_ALIASES = (
    select(func.array_agg(aggregate_order_by(AliasRow.name, AliasRow.name)))
    .where(AliasRow.artifact_id == ArtifactRow.id)
    .correlate(ArtifactRow)
    .scalar_subquery()
)
_CURRENCY = cast(func.jsonb_extract_path_text(ArtifactRow.manifest, "report", "cost", "currency"), Text)


def select_views() -> Select[
    ArtifactRow,
    str,
    list[JsonObject],
    list[JsonObject] | None,
    float | None,
    float | None,
    float | None,
    str | None,
    list[str] | None,
]:
    # The manifest itself may have thousands of layers; a list needs a few of its figures.
    return (
        select(
            ArtifactRow,
            ProjectRow.name,
            ArtifactRow.manifest["recipe"],
            ArtifactRow.manifest["lineage"],
            DECODE_SPEED,
            BASE_DECODE_SPEED,
            TOKEN_COST,
            _CURRENCY,
            _ALIASES,
        )
        .join(ProjectRow, ProjectRow.id == ArtifactRow.project_id)
        .options(defer(ArtifactRow.manifest, raiseload=True))
    )


def view(
    row: ArtifactRow,
    project: str,
    recipe: list[JsonObject],
    lineage: list[JsonObject] | None,
    decode_speed: float | None,
    base_decode_speed: float | None,
    token_cost: float | None,
    currency: str | None,
    aliases: list[str] | None,
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
            # Absent from artifacts of a release that knew no lineage.
            "lineage": lineage or (),
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
            "override": {"reason": row.override_reason, "key_name": row.overridden_by, "at": row.overridden_at}
            if row.overridden_at
            else None,
            "visibility": row.visibility,
            "aliases": aliases or (),
            "tags": row.tags,
            "created_at": row.created_at,
        }
    )
