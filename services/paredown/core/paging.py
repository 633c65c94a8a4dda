"""Cursors of lists: the last row's place, opaque to users. Lists are newest first, by (created_at, id)."""

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, TypeVarTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from paredown.core.errors import RequestInvalid

Columns = TypeVarTuple("Columns")


class Place(NamedTuple):
    """Where a page ended."""

    created_at: datetime
    id: UUID


def encode_cursor(place: Place) -> str:
    plain = json.dumps([place.created_at.isoformat(), place.id.hex], separators=(",", ":"))
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Place:
    """Raises RequestInvalid for anything that encode_cursor did not make."""
    try:
        plain = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        created_at, id_ = json.loads(plain)
        place = Place(datetime.fromisoformat(created_at), UUID(hex=id_))
    except (binascii.Error, ValueError, TypeError, AttributeError) as error:
        raise RequestInvalid("after is not a cursor that a list has given.", field="after") from error
    if place.created_at.tzinfo is None or encode_cursor(place) != cursor:
        raise RequestInvalid("after is not a cursor that a list has given.", field="after")
    return place


def page(
    session: Session,
    query: Select[*Columns],
    created_at: InstrumentedAttribute[datetime],
    id_: InstrumentedAttribute[UUID],
    *,
    after: str | None,
    limit: int,
) -> tuple[Sequence[Row[*Columns]], bool]:
    """Rows of `query` behind the cursor, newest first, and whether more follow."""
    if after is not None:
        place: ColumnElement[bool] = tuple_(created_at, id_) < tuple_(*decode_cursor(after))
        query = query.where(place)
    rows = session.execute(query.order_by(created_at.desc(), id_.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
