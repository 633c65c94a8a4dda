"""prices: list, set, remove; savings."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from paredown.client import render, render_artifacts
from paredown.client.commands.options import ArtifactReference
from paredown.client.credentials import connect
from paredown.client.errors import CommandFailed, ExitCode
from paredown.client.output import JsonOption, emit_json, say, stdout
from paredown.client.recipe_files import explain
from paredown.contracts.prices import PriceBook, savings, serving

GB = 1e9

prices = typer.Typer(
    help="The project's price book: instance types, by which jobs and serving are reckoned.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    app.add_typer(prices, name="prices")
    app.command("savings")(show_savings)


@prices.command("list")
def list_prices(json_output: JsonOption = False) -> None:
    """List the instance types."""
    with connect() as client:
        _show(client.prices(), json_output)


@prices.command("set")
def set_price(
    name: Annotated[str, typer.Argument(help="The instance type; a pool of workers may name it.")],
    price_per_hour: Annotated[float, typer.Argument(help="Of the whole machine.")],
    memory_gb: Annotated[float, typer.Option(help="Memory of the device in GB; of a GPU its own.")],
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where a model runs on it.")] = "cpu",
    currency: Annotated[str | None, typer.Option(help="ISO 4217; by default the book's, else USD.")] = None,
    as_of: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Day of the price; else today.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Add an instance type, or change it."""

    def change(book: PriceBook) -> PriceBook:
        item = {
            "name": name,
            "device": device,
            "memory_bytes": round(memory_gb * GB),
            "price_per_hour": price_per_hour,
            "currency": currency or book.currency or "USD",
            "as_of": (as_of or datetime.now(UTC)).date(),
        }
        return _book([*(other for other in book.items if other.name != name), item])

    with connect() as client:
        _show(client.change_prices(change), json_output)


@prices.command()
def remove(
    name: Annotated[str, typer.Argument(help="The instance type.")],
    json_output: JsonOption = False,
) -> None:
    """Take an instance type out of the book."""

    def change(book: PriceBook) -> PriceBook:
        if book.find(name) is None:
            raise CommandFailed(f"The price book has no {name}.", code="not_found")
        return PriceBook(items=tuple(item for item in book.items if item.name != name))

    with connect() as client:
        _show(client.change_prices(change), json_output)


def show_savings(
    reference: ArtifactReference,
    tokens: Annotated[float, typer.Option(min=0, help="Tokens that it decodes in a month.")] = 1e9,
    loads: Annotated[
        float, typer.Option(min=0, help="Times in a month that its weights are downloaded or read.")
    ] = 100,
    json_output: JsonOption = False,
) -> None:
    """What an artifact saves in a month against its base: bytes, and money by the price book."""
    with connect() as client:
        book, report = client.prices(), client.manifest(client.artifact_id(reference)).report
    saved = savings(book, report, tokens=tokens, loads=loads)
    if json_output:
        emit_json(saved.model_dump(mode="json") | {"saved": saved.saved})
        return
    served = {role: serving(book, report.speeds.get(role)) for role in ("base", "artifact")}
    stdout().print(render_artifacts.savings(saved, served))
    if not book.items:
        say("The price book is empty, so nothing is known of money: pare prices set NAME PRICE --memory-gb …")


def _book(items: list[Any]) -> PriceBook:
    """Raises CommandFailed."""
    try:
        return PriceBook.model_validate({"items": items})
    except ValidationError as error:
        raise CommandFailed(" ".join(explain(error)), code="usage", exit_code=ExitCode.USAGE) from error


def _show(book: PriceBook, json_output: bool) -> None:
    if json_output:
        emit_json(book)
    else:
        stdout().print(render.prices(book))
