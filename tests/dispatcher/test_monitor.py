"""The dispatcher's own port."""

import time
from collections.abc import Iterator

import httpx
import pytest

from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store
from paredown.core.transport import create_celery
from paredown.dispatcher.loop import Dispatcher
from paredown.dispatcher.monitor import STALE_SECONDS, serve
from paredown.local.postgres import free_port


@pytest.fixture
def dispatcher(settings: Settings, database: Database) -> Dispatcher:
    return Dispatcher(settings, database, open_store(settings), create_celery(settings))


@pytest.fixture
def address(dispatcher: Dispatcher) -> Iterator[str]:
    port = free_port()
    server = serve(dispatcher, port, host="127.0.0.1")
    yield f"http://127.0.0.1:{port}"
    server.shutdown()
    server.server_close()


def test_health_says_whether_the_database_was_reached_lately(dispatcher: Dispatcher, address: str) -> None:
    assert httpx.get(f"{address}/healthz").status_code == 200
    dispatcher.turned_at = time.monotonic() - STALE_SECONDS - 1
    assert httpx.get(f"{address}/healthz").status_code == 503


def test_metrics_are_prometheus_text(address: str) -> None:
    answer = httpx.get(f"{address}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "python_info" in answer.text
    assert httpx.get(f"{address}/other").status_code == 404
