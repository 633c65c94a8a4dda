"""The house of the fault tests: made once for each test, its servers once for each session."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from tests.faults.house import House
from tests.support.models import random_llama
from tests.support.s3 import GatedProxy, client, moto_server

from paredown.core.db import Database
from paredown.core.settings import Settings


@pytest.fixture(scope="session")
def s3_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedProxy]:
    """An S3 server that holds a small model of 12 blocks."""
    with moto_server() as port:
        proxy = GatedProxy(port)
        s3 = client(proxy.url)
        s3.create_bucket(Bucket="models")
        s3.create_bucket(Bucket="store")
        for path in sorted(random_llama(tmp_path_factory.mktemp("model") / "tiny", blocks=12).iterdir()):
            s3.upload_file(str(path), "models", f"tiny/{path.name}")
        yield proxy
        proxy.shutdown()
        proxy.server_close()


@pytest.fixture
def house(
    settings: Settings, database: Database, project: UUID, redis_url: str, s3_proxy: GatedProxy, tmp_path: Path
) -> Iterator[House]:
    keys = {"s3_access_key": "key", "s3_secret_key": "secret"}
    quick = Settings.model_validate(
        {
            **settings.model_dump(),
            **keys,
            **{f"source_{name}": value for name, value in keys.items()},
            "redis_url": redis_url,
            "store_url": f"s3://store/{tmp_path.name}",
            "s3_endpoint": s3_proxy.url,
            "source_s3_endpoint": s3_proxy.url,
            "lease_seconds": 3.0,
            "heartbeat_seconds": 0.5,
            "tick_timeout_seconds": 5.0,
            "dispatch_seconds": 0.2,
            "retry_delay_seconds": 0.0,
            "max_failures": 20,
            "cancel_grace_seconds": 2.0,
            "drain_grace_seconds": 20.0,
            "checkpoint_upload_seconds": 1.0,
            "engine_threads": 1,
        }
    )
    house = House(quick, database, project, s3_proxy, tmp_path / "logs")
    yield house
    house.close()
