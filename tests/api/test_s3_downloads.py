"""Artifacts and uploads in an S3 store: moto's server, over HTTP."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from tests.support.s3 import s3_client, serve_s3

from paredown.core.settings import Settings


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with serve_s3() as endpoint:
        s3_client(endpoint).create_bucket(Bucket="pare")
        yield endpoint


@pytest.fixture
def settings(settings: Settings, s3_endpoint: str) -> Settings:
    return settings.model_copy(
        update={
            "store_url": "s3://pare/store",
            "s3_endpoint": s3_endpoint,
            "s3_access_key": SecretStr("key"),
            "s3_secret_key": SecretStr("secret"),
        }
    )


def test_a_file_is_fetched_from_the_store_itself(
    api: httpx.Client, new_artifact: Callable[..., UUID], s3_endpoint: str
) -> None:
    artifact = new_artifact()
    answer = api.get(f"/v1/artifacts/{artifact}/files/sub/config.json")
    assert answer.status_code == 302
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"].startswith(f"{s3_endpoint}/pare/store/artifacts/")
    assert httpx.get(answer.headers["location"]).content == b"{}"
    for link in api.get(f"/v1/artifacts/{artifact}/files").json()["items"]:
        got = httpx.get(link["url"])
        assert got.status_code == 200
        assert link["sha256"] in (None, hashlib.sha256(got.content).hexdigest())
        assert "attachment" in got.headers["content-disposition"]
    ranged = httpx.get(answer.headers["location"], headers={"Range": "bytes=1-"})
    assert (ranged.status_code, ranged.content) == (206, b"}")


def test_an_upload_lies_in_the_store(api: httpx.Client, server: Any) -> None:
    view = api.post("/v1/datasets", files={"file": b"some text"}).json()
    store = server.app.state.service.store
    assert b"".join(store.read_range(f"datasets/{view['id']}", 0, 9)) == b"some text"
    api.delete(f"/v1/datasets/{view['id']}")
    assert store.size(f"datasets/{view['id']}") is None


def test_a_store_that_is_away_is_told_as_such(
    serve: Callable[[Settings], Any], settings: Settings, new_key: Callable[..., str]
) -> None:
    away = settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:1", "connect_timeout_seconds": 0.2})
    server = serve(away)
    headers = {"Authorization": f"Bearer {new_key()}"}
    answer = httpx.post(f"{server.url}/v1/datasets", files={"file": b"text"}, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    # Nothing is listed that has no bytes.
    assert httpx.get(f"{server.url}/v1/datasets", headers=headers).json()["items"] == []
