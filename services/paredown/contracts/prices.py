"""The price book: what machines cost by the hour, and what serving a model on them comes to."""

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from paredown.contracts.job import Contract
from paredown.contracts.report import Report, Speed

InstanceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]


def _is_a_day(value: Any) -> Any:
    """pydantic would take numbers, too, for seconds since 1970."""
    if isinstance(value, date) or (isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value)):
        return value
    raise ValueError("This must be a day such as 2026-11-29.")


Day = Annotated[date, BeforeValidator(_is_a_day)]

MILLION = 1_000_000
SECONDS_PER_HOUR = 3600


class InstanceType(Contract):
    """A kind of machine that one can rent, or what one's own comes to."""

    name: InstanceName = Field(description="Such as m7i.2xlarge; a pool of workers may name it.")
    device: Literal["cpu", "cuda"] = Field(description="Where a model runs on it.")
    memory_bytes: int = Field(strict=True, gt=0, le=2**60, description="Of that device: a GPU's own memory for cuda.")
    price_per_hour: float = Field(strict=True, ge=0, le=1e9, description="Of the whole machine.")
    currency: Currency = Field(description="ISO 4217, such as USD; the same in the whole book.")
    as_of: Day = Field(description="The day on which the price was looked up.")


class PriceBook(Contract):
    """The machines of a project and their prices, each name once. An empty one leaves every price to the pools."""

    items: tuple[InstanceType, ...] = Field((), max_length=200)

    @model_validator(mode="after")
    def _is_one_book(self) -> "PriceBook":
        names = [item.name for item in self.items]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"The instance type {twice} is there twice.")
        if len({item.currency for item in self.items}) > 1:
            raise ValueError("The prices are in several currencies; a book has one, so that its prices compare.")
        return self

    @property
    def currency(self) -> str | None:
        return self.items[0].currency if self.items else None

    def find(self, name: str | None) -> InstanceType | None:
        return next((item for item in self.items if item.name == name), None)

    def smallest(self, device: str, memory_bytes: int) -> InstanceType | None:
        """Of the machines that hold so much on this device the smallest; of equals the cheapest."""
        fitting = [item for item in self.items if item.device == device and item.memory_bytes >= memory_bytes]
        return min(fitting, key=lambda item: (item.memory_bytes, item.price_per_hour, item.name), default=None)


class Serving(Contract):
    """What decoding costs on the smallest machine that holds a model, at the speed that was measured, at batch 1.

    The speed is of the machine that measured it; another of the same kind of device is taken to be as fast.
    """

    instance: InstanceType
    per_million_tokens: float


class Savings(Contract):
    """What an artifact saves in a month against its base, at a stated traffic."""

    tokens: float = Field(description="Decoded in the month.")
    loads: float = Field(description="Times in the month that the weights are downloaded or read by a starting server.")
    bytes_saved: float = Field(description="Not moved, over all loads.")
    base_cost: float | None = Field(description="None where no machine of the book holds it, or no speed is known.")
    artifact_cost: float | None
    currency: str | None

    @property
    def saved(self) -> float | None:
        """Negative where the artifact costs more."""
        if self.base_cost is None or self.artifact_cost is None:
            return None
        return self.base_cost - self.artifact_cost


def hourly(price_per_hour: float, seconds: float) -> float:
    return price_per_hour * seconds / SECONDS_PER_HOUR


def per_million_tokens(price_per_hour: float, speed: Speed) -> float | None:
    """Of a machine that does nothing but decode at batch 1; None where nothing was decoded."""
    if speed.decode_tokens_per_second <= 0:
        return None
    return hourly(price_per_hour, MILLION / speed.decode_tokens_per_second)


def serving(book: PriceBook, speed: Speed | None) -> Serving | None:
    """None where no speed was measured, or no machine of the book is large enough."""
    instance = book.smallest(speed.device, speed.peak_memory_bytes) if speed else None
    cost = per_million_tokens(instance.price_per_hour, speed) if instance and speed else None
    return None if instance is None or cost is None else Serving(instance=instance, per_million_tokens=cost)


def savings(book: PriceBook, report: Report, *, tokens: float, loads: float) -> Savings:
    """At `tokens` and `loads` a month, on the smallest machine for each of the two."""

    def month(which: Literal["base", "artifact"]) -> float | None:
        served = serving(book, report.speeds.get(which))
        return served.per_million_tokens * tokens / MILLION if served else None

    return Savings(
        tokens=tokens,
        loads=loads,
        bytes_saved=loads * (report.base_bytes - report.size_bytes),
        base_cost=month("base"),
        artifact_cost=month("artifact"),
        currency=book.currency,
    )
