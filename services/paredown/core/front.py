"""The front: of one model's artifacts, those that no other beats on accuracy and cost together."""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, Text, column, func, select, true
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from paredown.contracts.artifact import CostAxis, Front, FrontEntry, FrontPoint
from paredown.contracts.job import Calibration
from paredown.contracts.prices import PriceBook, serving
from paredown.contracts.recipes import STAGES
from paredown.contracts.report import Speed
from paredown.core.artifact_queries import of_model, readable
from paredown.core.errors import NotFound
from paredown.core.prices import price_book
from paredown.core.storable import check_storable
from paredown.core.tables import ArtifactRow

BASE_NAME = "base"
_NEWEST_FIRST = (ArtifactRow.created_at.desc(), ArtifactRow.id.desc())
_EVALUATED = (ArtifactRow.perplexity.is_not(None), ArtifactRow.protocol_hash.is_not(None))
_REPORT = func.jsonb_extract_path(ArtifactRow.manifest, "report")
# A manifest has thousands of layers, and each path into it would unpack all of it again: so this unpacks it once.
_FIGURES = (
    func.jsonb_to_record(_REPORT)
    .table_valued(column("speeds", JSONB), column("cost", JSONB), column("gate", JSONB))
    .render_derived(name="figures", with_types=True)
)
_MADE = (
    func.jsonb_to_record(ArtifactRow.manifest)
    .table_valued(
        column("lineage", JSONB),
        column("recipe", JSONB),
        column("calibration", JSONB),
        column("format", Text),
        column("dtype", Text),
    )
    .render_derived(name="made", with_types=True)
)
# By the stage, or the part of the job, and the field's name.
_Settings = dict[tuple[str, str], str]
# Settings that a name says at most, and characters of a value.
_TOLD, _VALUE_LIMIT = 4, 40


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
    front = _under(session, rows, protocol_hash, cost_axis, price_book(session, project_id))
    if front is None:
        raise NotFound(f"No artifact of {model} was evaluated under that protocol.", field="protocol")
    return front


def front_among(session: Session, project_id: UUID, artifact_ids: Collection[UUID]) -> Front | None:
    """The front of these artifacts of one model alone, against bytes; None where none of them was measured."""
    query = _select_measured(project_id).where(ArtifactRow.id.in_(artifact_ids))
    rows = list(session.execute(query)) if artifact_ids else []
    return _under(session, rows, None, "size_bytes", price_book(session, project_id)) if rows else None


def _under(
    session: Session, rows: list[Any], protocol_hash: str | None, cost_axis: CostAxis, book: PriceBook
) -> Front | None:
    """The front of what was measured under this protocol, else under that of most; None where nothing was."""
    if protocol_hash is None:
        # The newest decides a tie: Counter keeps the order in which it met them.
        protocol_hash = Counter(row.protocol_hash for row in rows).most_common(1)[0][0]
    rows = [row for row in rows if row.protocol_hash == protocol_hash]
    if not rows:
        return None
    finite = [row for row in rows if math.isfinite(row.perplexity)]
    points = [_artifact_point(row, name, book) for row, name in zip(finite, _names(session, finite), strict=True)]
    points += _base_points(rows, book)
    gate = next((row.gate for row in rows if row.gate), {"checks": ()})
    return Front(
        model=rows[0].model,
        model_fingerprint=rows[0].model_fingerprint,
        protocol_hash=str(protocol_hash),
        cost_axis=cost_axis,
        currency=book.currency or next((row.cost["currency"] for row in rows if row.cost), None),
        limits={check["figure"]: check["limit"] for check in gate["checks"]},
        points=tuple(mark_front(points, cost_axis)),
    )


def fronts(session: Session, project_id: UUID) -> list[FrontEntry]:
    """Every model and protocol with an evaluated artifact that this project may read, that of the newest first."""
    group = (ArtifactRow.model_fingerprint, ArtifactRow.protocol_hash)
    ranked = (
        select(
            ArtifactRow,
            func.row_number().over(partition_by=group, order_by=_NEWEST_FIRST).label("place"),
            func.count().over(partition_by=group).label("artifacts"),
        )
        .where(*_visible(project_id))
        .subquery()
    )
    # The manifest of the newest of each group alone is unpacked.
    protocol = func.jsonb_extract_path(ranked.c.manifest, "report", "artifact", "protocol").label("protocol")
    columns = (ranked.c.model, ranked.c.model_fingerprint, ranked.c.protocol_hash, ranked.c.artifacts, protocol)
    query = select(*columns).where(ranked.c.place == 1).order_by(ranked.c.created_at.desc(), ranked.c.id.desc())
    return [FrontEntry.model_validate(dict(row)) for row in session.execute(query).mappings()]


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
    return [*readable(project_id), *_EVALUATED]


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
            _FIGURES.c.speeds,
            _FIGURES.c.cost,
            _FIGURES.c.gate,
        )
        .join(_FIGURES, true())
        .where(*_visible(project_id))
        .order_by(*_NEWEST_FIRST)
    )


def _names(session: Session, rows: Sequence[Any]) -> list[str]:
    """No two alike: artifacts of one name also say which settings tell them apart, or else how their ids begin."""
    count = Counter(row.name for row in rows)
    ids = [row.id for row in rows if count[row.name] > 1]
    if not ids:
        return [row.name for row in rows]
    columns = (ArtifactRow.id, ArtifactRow.name, *_MADE.c)
    query = select(*columns).join(_MADE, true()).where(ArtifactRow.id.in_(ids))
    namesakes: dict[str, dict[tuple[str, ...], dict[UUID, _Settings]]] = {}
    for made in session.execute(query):
        stages = [*chain.from_iterable(ancestor["recipe"] for ancestor in made.lineage or ()), *made.recipe]
        methods = tuple(stage["method"] for stage in stages)
        namesakes.setdefault(made.name, {}).setdefault(methods, {})[made.id] = _settings(stages, made)
    told: dict[UUID, str] = {}
    for kinds in namesakes.values():
        for methods, settings in kinds.items():
            named = [" + ".join(methods)] if len(kinds) > 1 else []
            for artifact_id, differences in _differences(settings).items():
                told[artifact_id] = ", ".join([*named, *differences][:_TOLD])
    names = [f"{row.name} ({said})" if (said := told.get(row.id)) else row.name for row in rows]
    count = Counter(names)
    return [f"{name} [{str(row.id)[:8]}]" if count[name] > 1 else name for row, name in zip(rows, names, strict=True)]


def _settings(stages: Sequence[Mapping[str, Any]], made: Any) -> _Settings:
    """With those that stand for their defaults and are not written down; not validated, since other releases' artifacts
    must not take the front with them."""
    parts: list[tuple[str, Mapping[str, Any], type[BaseModel] | None]] = []
    for index, stage in enumerate(stages):
        parts.append((f"stage {index}", stage, STAGES.get(stage["method"])))
    if made.calibration:
        parts.append(("calibration", made.calibration, Calibration))
    settings: _Settings = {("job", "format"): made.format, ("job", "dtype"): made.dtype}
    for part, written, contract in parts:
        defaults = dict(contract.model_construct()) if contract else {}
        settings |= {(part, name): _said(value) for name, value in {**defaults, **written}.items()}
    return settings


def _said(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _VALUE_LIMIT else f"…{text[1 - _VALUE_LIMIT :]}"


def _differences(settings: Mapping[UUID, _Settings]) -> dict[UUID, list[str]]:
    """Of each what most of the others have otherwise, or what is of none more than of others."""
    values: dict[tuple[str, str], Counter[str]] = {}
    for own in settings.values():
        for setting, value in own.items():
            values.setdefault(setting, Counter())[value] += 1
    usual = {setting: found.most_common(2) for setting, found in values.items()}

    def told(setting: tuple[str, str], value: str) -> bool:
        (first, most), *others = usual[setting]
        return bool(others) and (value != first or others[0][1] == most)

    return {
        artifact_id: [f"{setting[1]} {value}" for setting, value in own.items() if told(setting, value)]
        for artifact_id, own in settings.items()
    }


def _artifact_point(row: Any, name: str, book: PriceBook) -> FrontPoint:
    return FrontPoint(
        artifact_id=row.id,
        name=name,
        methods=tuple(row.methods),
        perplexity=row.perplexity,
        size_bytes=row.size_bytes,
        **_speed_figures(row, "artifact", book),
        verdict=row.verdict,
        on_front=False,
    )


def _base_points(rows: list[Any], book: PriceBook) -> list[FrontPoint]:
    """The uncompressed model, each figure as it was measured last; nothing where it never was."""
    perplexity = next((row.base_perplexity for row in rows if row.base_perplexity is not None), None)
    if perplexity is None or not math.isfinite(perplexity):
        return []
    figures = [_speed_figures(row, "base", book) for row in rows]
    base = FrontPoint(
        artifact_id=None,
        name=BASE_NAME,
        methods=(),
        perplexity=perplexity,
        size_bytes=rows[0].base_bytes,
        **{name: next((figure[name] for figure in figures if figure[name] is not None), None) for name in figures[0]},
        verdict=None,
        on_front=False,
    )
    return [base]


def _speed_figures(row: Any, role: Literal["base", "artifact"], book: PriceBook) -> dict[str, Any]:
    """What a runtime measured of one of the two, and what that costs; None each where nothing was measured.

    Costs are all by today's price book; where the project has none, each is what its report says.
    """
    stored = (row.speeds or {}).get(role)
    speed = Speed.model_validate(stored, extra="ignore") if stored else None
    if book.items:
        served = serving(book, speed)
        cost = served.per_million_tokens if served else None
    else:
        cost = (row.cost or {}).get(f"{role}_per_million_tokens")
    return {
        "decode_tokens_per_second": speed.decode_tokens_per_second if speed else None,
        "time_to_first_token_seconds": speed.time_to_first_token_seconds if speed else None,
        "peak_memory_bytes": speed.peak_memory_bytes if speed else None,
        "cost_per_million_tokens": cost,
    }
