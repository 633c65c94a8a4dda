"""The API as a process of its own: how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import httpx
import pytest

from paredown.core.settings import Settings
from paredown.local.postgres import free_port

SECONDS = 60


@pytest.fixture
def process(settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`uvicorn --factory`, as deployments start it; its address."""
    port = free_port()
    environment = {
        **os.environ,
        "PARE_DATABASE_URL": settings.database_url,
        "PARE_STORE_URL": settings.store_url,
        "PARE_SECRET": settings.secret.get_secret_value(),
        "PARE_EVENT_POLL_SECONDS": "0.1",
    }
    command = [sys.executable, "-m", "uvicorn", "paredown.api.app:create_app", "--factory", "--no-access-log"]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--timeout-graceful-shutdown", "5"], env=environment
    ) as running:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                httpx.get(f"{url}/readyz").raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < deadline
                assert running.poll() is None
                time.sleep(0.1)
        yield running, url
        running.kill()


def test_a_stop_ends_open_streams_and_the_process(
    process: tuple[subprocess.Popen[bytes], str], new_key: Callable[..., str], new_job: Callable[..., UUID]
) -> None:
    running, url = process
    headers = {"Authorization": f"Bearer {new_key()}"}
    with httpx.stream("GET", f"{url}/v1/jobs/{new_job()}/events", headers=headers, timeout=SECONDS) as stream:
        lines = stream.iter_lines()
        assert any(line == "event: queued" for line in lines)
        running.send_signal(signal.SIGTERM)
        # The stream is closed, so the reader knows at once that it has to come back.
        try:
            list(lines)
        except httpx.RemoteProtocolError as error:
            assert "incomplete" in str(error)  # noqa: PT017 - either way of ending will do
    # uvicorn raises the signal again once it has shut down in order.
    assert running.wait(SECONDS) in (0, -signal.SIGTERM)
