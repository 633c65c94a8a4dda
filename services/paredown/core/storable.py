"""What PostgreSQL can hold: no NUL characters, no lone surrogates, no infinities in JSON, no years beyond 9999."""

import math
from datetime import UTC, datetime
from typing import Any

from paredown.core.errors import RequestInvalid


def check_storable(value: Any, field: str) -> None:
    """Refuse what a user sent and the database would not take. Raises RequestInvalid that names the place."""
    match value:
        case str():
            if value != _clean(value):
                raise RequestInvalid("The text holds a NUL or another character that cannot be stored.", field=field)
        case dict():
            for key, item in value.items():
                check_storable(key, field)
                check_storable(item, f"{field}.{key}")
        case list() | tuple():
            for position, item in enumerate(value):
                check_storable(item, f"{field}.{position}")


def check_time(time: datetime | None, field: str) -> None:
    """Refuse a time that leaves the calendar once it is turned into UTC. Raises RequestInvalid."""
    try:
        if time:
            time.astimezone(UTC)
    except OverflowError as error:
        raise RequestInvalid(f"{field} is not within the years 1 to 9999.", field=field) from error


def storable(value: Any) -> Any:
    """A JSON value of our own (a report, an error's words) with what cannot be stored taken out.

    Numbers that are not finite become the strings that pydantic reads back as those numbers: a broken model's
    perplexity is infinite, and that is evidence.
    """
    match value:
        case str():
            return _clean(value)
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {storable(key): storable(item) for key, item in value.items()}
        case list() | tuple():
            return [storable(item) for item in value]
    return value


def _clean(value: str) -> str:
    return value.replace("\0", "").encode("utf-8", "replace").decode()
