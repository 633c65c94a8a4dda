"""The price book over HTTP: who may write it, whose it is, and what it prices."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from paredown.contracts.access import Scope
from paredown.core.settings import Pool, Settings

ITEM = {
    "name": "m7i.xlarge",
    "device": "cpu",
    "memory_bytes": 16 * 2**30,
    "price_per_hour": 0.4,
    "currency": "EUR",
    "as_of": "2026-11-29",
}
BOOK = {"items": [ITEM]}


def test_the_book_is_read_by_all_and_written_by_administrators(
    api: httpx.Client, stranger: httpx.Client, anyone: httpx.Client, new_key: Callable[..., str]
) -> None:
    assert api.get("/v1/prices").json() == {"items": []}
    assert api.put("/v1/prices", json=BOOK).json() == BOOK
    assert stranger.get("/v1/prices").json() == {"items": []}, "another project has a book of its own"
    reader = {"Authorization": f"Bearer {new_key(Scope.JOBS_READ, Scope.JOBS_WRITE)}"}
    assert anyone.get("/v1/prices", headers=reader).json() == BOOK
    refused = anyone.put("/v1/prices", json={"items": []}, headers=reader)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert api.put("/v1/prices", json={"items": []}).json() == {"items": []}


def test_a_change_that_somebody_else_was_faster_with_is_refused(api: httpx.Client) -> None:
    first = api.get("/v1/prices").headers["etag"]
    answer = api.put("/v1/prices", json=BOOK, headers={"If-Match": first})
    assert answer.status_code == 200
    late = api.put("/v1/prices", json={"items": []}, headers={"If-Match": first})
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    again = api.get("/v1/prices", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"price_per_hour": -1}, "items.0.price_per_hour"),
        ({"price_per_hour": False}, "items.0.price_per_hour"),
        ({"memory_bytes": 0}, "items.0.memory_bytes"),
        ({"memory_bytes": True}, "items.0.memory_bytes"),
        ({"currency": "euro"}, "items.0.currency"),
        ({"device": "abacus"}, "items.0.device"),
        ({"as_of": "yesterday"}, "items.0.as_of"),
        ({"as_of": 0}, "items.0.as_of"),
        ({"as_of": "86400"}, "items.0.as_of"),
        ({"as_of": "2026-02-30"}, "items.0.as_of"),
        ({"name": ""}, "items.0.name"),
    ],
)
def test_prices_that_make_no_sense_are_named(api: httpx.Client, change: dict[str, Any], field: str) -> None:
    answer = api.put("/v1/prices", json={"items": [ITEM | change]})
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_each_name_once_and_one_currency(api: httpx.Client) -> None:
    for items, says in (
        ([ITEM, ITEM], "twice"),
        ([ITEM, ITEM | {"name": "other", "currency": "USD"}], "several currencies"),
    ):
        answer = api.put("/v1/prices", json={"items": items})
        assert answer.status_code == 422
        assert says in answer.json()["detail"]


def test_pools_and_plans_are_at_the_books_price(
    serve: Callable[[Settings], Any], settings: Settings, new_key: Callable[..., str], model_uri: str
) -> None:
    pools = {"cpu": Pool(instance="m7i.xlarge", price_per_hour=0.1)}
    server = serve(settings.model_copy(update={"pools": pools}))
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {new_key()}"}, timeout=20) as api:
        spec = {
            "model": model_uri,
            "recipe": [{"method": "rtn"}],
            "evaluation": {"sequence_length": 64},
        }
        without = api.post("/v1/plans", json=spec).json()
        assert without["currency"] == "USD"
        assert any("has no m7i.xlarge" in warning for warning in without["warnings"])
        api.put("/v1/prices", json=BOOK)
        plan = api.post("/v1/plans", json=spec).json()
        assert plan["currency"] == "EUR"
        assert plan["cost"] == pytest.approx(4 * without["cost"])
        assert not any("m7i.xlarge" in warning for warning in plan["warnings"])
        [pool] = api.get("/v1/pools").json()["items"]
        assert (pool["instance"], pool["price_per_hour"], pool["currency"]) == ("m7i.xlarge", 0.4, "EUR")
