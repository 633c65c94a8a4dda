"""The front: of one model's artifacts, those that no other beats on accuracy and cost together."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from paredown.contracts.artifact import Front, FrontPoint
from paredown.core.artifact_queries import (
    BASE_DECODE_SPEED,
    BASE_TOKEN_COST,
    DECODE_SPEED,
    TOKEN_COST,
    of_model,
    readable,
)
from paredown.core.errors import NotFound
from paredown.core.storable import check_storable
from paredown.core.tables import ArtifactRow

CostAxis = Literal["size_bytes", "decode_tokens_per_second", "cost_per_million_tokens"]

BASE_NAME = "base"
_NEWEST_FIRST = (ArtifactRow.created_at.desc(), ArtifactRow.id.desc())


def front(session: Session, project_id: UUID, model: str, protocol_hash: str | None, cost_axis: CostAxis) -> Front:
    """All points of a model under one protocol, cheapest first; those that nobody beats are marked.

    `model` is a URI, a fingerprint, or artifact://ID for the model of that artifact; a URI whose content changed stands
    for its newest artifact's. Without a protocol it is the one that most artifacts were measured under. Raises NotFound
    when nothing was measured.
    """
    check_storable([model, protocol_hash], "filter")
    rows = _measured(session, project_id, model)
    if not rows:
        raise NotFound(f"No artifact of {model} has been evaluated yet.", field="model")
    front = _under(rows, protocol_hash, cost_axis)
    if front is None:
        raise NotFound(f"No artifact of {model} was evaluated under that protocol.", field="protocol")
    return front


def front_among(session: Session, project_id: UUID, artifact_ids: Collection[UUID]) -> Front | None:
    """The front of these artifacts of one model alone, against bytes; None where none of them was measured."""
    query = _select_measured(project_id).where(ArtifactRow.id.in_(artifact_ids))
    rows = list(session.execute(query)) if artifact_ids else []
    return _under(rows, None, "size_bytes") if rows else None


def _under(rows: list[Any], protocol_hash: str | None, cost_axis: CostAxis) -> Front | None:
    """The front of what was measured under this protocol, else under that of most; None where nothing was."""
    if protocol_hash is None:
        # The newest decides a tie: Counter keeps the order in which it met them.
        protocol_hash = Counter(row.protocol_hash for row in rows).most_common(1)[0][0]
    rows = [row for row in rows if row.protocol_hash == protocol_hash]
    if not rows:
        return None
    points = [_artifact_point(row) for row in rows if math.isfinite(row.perplexity)]
    points += _base_points(rows)
    return Front(
        model=rows[0].model,
        model_fingerprint=rows[0].model_fingerprint,
        protocol_hash=str(protocol_hash),
        cost_axis=cost_axis,
        points=tuple(mark_front(points, cost_axis)),
    )


def mark_front(points: list[FrontPoint], cost_axis: CostAxis) -> list[FrontPoint]:
    """The points, cheapest first, with `on_front` set on those that no other beats; equals are both on it.

    One point beats another when it is no worse on both axes and better on one. A point without a cost is never on the
    front and beats nobody; such points come last.
    """

    def cost(point: FrontPoint) -> float:
        value: float | None = getattr(point, cost_axis)
        if value is None or not math.isfinite(value):
            return math.inf
        return -value if cost_axis == "decode_tokens_per_second" else value

    marked: list[FrontPoint] = []
    best = math.inf
    ordered = sorted(points, key=lambda point: (cost(point), point.perplexity, point.name))
    for value, equally_dear in groupby(ordered, key=cost):
        group = list(equally_dear)
        lowest = group[0].perplexity
        unbeaten = math.isfinite(value) and lowest < best
        marked += [point.model_copy(update={"on_front": unbeaten and point.perplexity == lowest}) for point in group]
        best = min(best, lowest) if math.isfinite(value) else best
    return marked


def unbeaten(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of figures that are to be small: whether no other point is no larger in both and smaller in one."""
    return [
        not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
        for point in points
    ]


def _measured(session: Session, project_id: UUID, model: str) -> list[Any]:
    """Evaluated artifacts of the newest content of this model, newest first; of each only what the chart needs."""
    newest = select(ArtifactRow.model_fingerprint).where(of_model(session, project_id, model), *_visible(project_id))
    fingerprint = session.scalar(newest.order_by(*_NEWEST_FIRST).limit(1))
    return list(session.execute(_select_measured(project_id).where(ArtifactRow.model_fingerprint == fingerprint)))


def _visible(project_id: UUID) -> list[ColumnElement[bool]]:
    return [*readable(project_id), ArtifactRow.perplexity.is_not(None), ArtifactRow.protocol_hash.is_not(None)]


def _select_measured(project_id: UUID) -> Select[*tuple[Any, ...]]:
    return (
        select(
            ArtifactRow.id,
            ArtifactRow.name,
            ArtifactRow.model,
            ArtifactRow.model_fingerprint,
            ArtifactRow.protocol_hash,
            ArtifactRow.methods,
            ArtifactRow.perplexity,
            ArtifactRow.base_perplexity,
            ArtifactRow.size_bytes,
            ArtifactRow.base_bytes,
            ArtifactRow.verdict,
            DECODE_SPEED.label("speed"),
            TOKEN_COST.label("token_cost"),
            BASE_DECODE_SPEED.label("base_speed"),
            BASE_TOKEN_COST.label("base_token_cost"),
        )
        .where(*_visible(project_id))
        .order_by(*_NEWEST_FIRST)
    )


def _artifact_point(row: Any) -> FrontPoint:
    return FrontPoint(
        artifact_id=row.id,
        name=row.name,
        methods=tuple(row.methods),
        perplexity=row.perplexity,
        size_bytes=row.size_bytes,
        decode_tokens_per_second=row.speed,
        cost_per_million_tokens=row.token_cost,
        verdict=row.verdict,
        on_front=False,
    )


def _base_points(rows: list[Any]) -> list[FrontPoint]:
    """The uncompressed model, each figure as it was measured last; nothing where it never was."""

    def latest(figure: str) -> Any:
        return next((value for value in (getattr(row, figure) for row in rows) if value is not None), None)

    perplexity = latest("base_perplexity")
    if perplexity is None or not math.isfinite(perplexity):
        return []
    base = FrontPoint(
        artifact_id=None,
        name=BASE_NAME,
        methods=(),
        perplexity=perplexity,
        size_bytes=latest("base_bytes"),
        decode_tokens_per_second=latest("base_speed"),
        cost_per_million_tokens=latest("base_token_cost"),
        verdict=None,
        on_front=False,
    )
    return [base]
