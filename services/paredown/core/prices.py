"""The project's price book, and what a pool's worker costs by it."""

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from paredown.contracts.job import Interval, Plan, content_hash
from paredown.contracts.prices import InstanceType, PriceBook, hourly
from paredown.core.errors import PreconditionFailed
from paredown.core.etags import matches
from paredown.core.settings import Pool, Settings
from paredown.core.tables import InstancePriceRow, ProjectRow


@dataclass(frozen=True)
class Rate:
    """What one worker of a pool costs: by the price book, or by the operator's settings where `instance` is None."""

    price_per_hour: float
    currency: str
    instance: str | None = None
    as_of: date | None = None


def price_book(session: Session, project_id: UUID) -> PriceBook:
    """In the order of the names."""
    query = select(InstancePriceRow).where(InstancePriceRow.project_id == project_id).order_by(InstancePriceRow.name)
    return PriceBook(
        items=tuple(
            InstanceType(
                name=row.name,
                device=row.device,
                memory_bytes=row.memory_bytes,
                price_per_hour=row.price_per_hour,
                currency=row.currency,
                as_of=row.as_of,
            )
            for row in session.scalars(query)
        )
    )


def replace(session: Session, project_id: UUID, book: PriceBook, if_match: str | None = None) -> PriceBook:
    """The whole book anew. `if_match` holds ETags of which the present one must have one.

    Raises PreconditionFailed.
    """
    # One after the other, so that nobody's change is lost between reading and writing.
    session.execute(select(ProjectRow.id).where(ProjectRow.id == project_id).with_for_update())
    if if_match is not None and not matches(if_match, etag(price_book(session, project_id))):
        raise PreconditionFailed("The prices were changed meanwhile; read them again.", field="If-Match")
    session.execute(delete(InstancePriceRow).where(InstancePriceRow.project_id == project_id))
    if book.items:
        session.execute(insert(InstancePriceRow), [{"project_id": project_id, **dict(item)} for item in book.items])
    return price_book(session, project_id)


def etag(book: PriceBook) -> str:
    return f'"{content_hash(book.model_dump(mode="json"))[:32]}"'


def rate(pool: Pool, book: PriceBook, settings: Settings) -> Rate:
    """The price of the instance type that the pool names; the pool's own where it names none that the book has."""
    item = book.find(pool.instance)
    if item is None:
        return Rate(pool.price_per_hour, settings.currency)
    return Rate(item.price_per_hour, item.currency, item.name, item.as_of)


def priced(plan: Plan, book: PriceBook, settings: Settings) -> Plan:
    """The plan at the book's price. Says so where the pool names an instance type that the book lacks."""
    pool = settings.pools[plan.pool]
    found = rate(pool, book, settings)
    warnings = plan.warnings
    if pool.instance and found.instance is None:
        warnings += (
            f"The price book has no {pool.instance}, the instance type of the pool {plan.pool}; the cost is at the "
            f"pool's own price of {pool.price_per_hour:g} {settings.currency} an hour.",
        )
    within = plan.seconds_interval
    return plan.model_copy(
        update={
            "cost": hourly(found.price_per_hour, plan.seconds),
            "cost_interval": within
            and Interval(low=hourly(found.price_per_hour, within.low), high=hourly(found.price_per_hour, within.high)),
            "currency": found.currency,
            "warnings": warnings,
        }
    )
