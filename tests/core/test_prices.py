"""The price book: whose it is, what it prices, and that nobody's change is lost."""

from datetime import date
from uuid import UUID

import pytest
from pydantic import ValidationError
from tests.core.builders import MODEL, finish_job, make_artifact, make_speed

from paredown.contracts.prices import InstanceType, PriceBook, savings, serving
from paredown.core import access, catalogue, prices
from paredown.core.db import Database
from paredown.core.errors import PreconditionFailed
from paredown.core.settings import Pool, Settings

GIB = 2**30


@pytest.fixture
def other(database: Database) -> UUID:
    with database.transaction() as session:
        return access.create_project(session, "other")


def instance(name: str, memory_gib: float, price: float, device: str = "cpu", currency: str = "EUR") -> InstanceType:
    return InstanceType.model_validate(
        {
            "name": name,
            "device": device,
            "memory_bytes": round(memory_gib * GIB),
            "price_per_hour": price,
            "currency": currency,
            "as_of": "2026-11-01",
        }
    )


SMALL, LARGE, GPU = instance("small", 0.5, 0.036), instance("large", 8, 0.36), instance("gpu", 24, 3.6, "cuda")
BOOK = PriceBook(items=(LARGE, SMALL, GPU))


def test_a_book_belongs_to_its_project_and_is_written_whole(database: Database, project: UUID, other: UUID) -> None:
    with database.transaction() as session:
        assert prices.price_book(session, project) == PriceBook()
        kept = prices.replace(session, project, BOOK)
        assert [item.name for item in kept.items] == ["gpu", "large", "small"]
        assert prices.price_book(session, other) == PriceBook()
    with database.transaction() as session:
        changed = prices.replace(session, project, PriceBook(items=(SMALL,)), if_match=prices.etag(kept))
        assert changed.items == (SMALL,)
    with pytest.raises(PreconditionFailed), database.transaction() as session:
        prices.replace(session, project, BOOK, if_match=prices.etag(kept))
    with database.transaction() as session:
        assert prices.price_book(session, project).items == (SMALL,)


def test_a_book_has_each_name_once_and_one_currency() -> None:
    for items, complaint in (
        ((SMALL, SMALL), "twice"),
        ((SMALL, instance("dear", 1, 1, currency="USD")), "several currencies"),
    ):
        with pytest.raises(ValidationError, match=complaint):
            PriceBook(items=items)


def test_a_pool_costs_what_its_instance_type_does_else_its_own_price() -> None:
    settings = Settings(currency="USD")
    assert prices.rate(Pool(instance="large", price_per_hour=1), BOOK, settings) == prices.Rate(
        0.36, "EUR", "large", date(2026, 11, 1)
    )
    for pool in (Pool(price_per_hour=1), Pool(instance="unknown", price_per_hour=1)):
        assert prices.rate(pool, BOOK, settings) == prices.Rate(1, "USD")


def test_serving_is_on_the_smallest_machine_that_holds_the_model() -> None:
    # make_speed has a peak of 1 GB: more than the small one has. At 100 tokens/s a million take 10,000 s.
    served = serving(BOOK, make_speed(100))
    assert served
    assert (served.instance.name, served.per_million_tokens) == ("large", pytest.approx(1.0))
    fits = serving(BOOK, make_speed(100).model_copy(update={"peak_memory_bytes": GIB // 2}))
    assert fits
    assert fits.instance.name == "small"
    assert serving(BOOK, make_speed(100).model_copy(update={"peak_memory_bytes": 9 * GIB})) is None, "none is as large"
    assert serving(PriceBook(), make_speed(100)) is None
    assert serving(BOOK, None) is None


def test_savings_are_of_a_month_at_the_stated_traffic() -> None:
    report = make_artifact(UUID(int=1), size_bytes=100, decode=60).manifest.report
    month = savings(BOOK, report, tokens=3e6, loads=10)
    assert month.bytes_saved == 10 * (400 - 100)
    # The base decodes 30 tokens/s, the artifact 60: 3 million take 100,000 and 50,000 s at 0.0001 a second.
    assert (month.base_cost, month.artifact_cost, month.currency) == (pytest.approx(10), pytest.approx(5), "EUR")
    assert month.saved == pytest.approx(5)
    assert savings(PriceBook(), report, tokens=3e6, loads=10).saved is None


def test_the_front_is_priced_by_todays_book(database: Database, project: UUID, settings: Settings) -> None:
    finish_job(database, project, settings, perplexity=21, decode=60)
    with database.transaction() as session:
        prices.replace(session, project, BOOK)
    with database.transaction() as session:
        front = catalogue.front(session, project, MODEL, None, "cost_per_million_tokens")
    assert front.currency == "EUR"
    costs = {point.name: point.cost_per_million_tokens for point in front.points}
    assert costs == {"an artifact": pytest.approx(1 / 0.6), "base": pytest.approx(1 / 0.3)}
