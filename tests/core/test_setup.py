"""`python -m paredown.core.setup`: a fresh deployment becomes ready, and a ready one stays as it is."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import s3

from paredown.core.settings import Settings


def run_setup(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paredown.core.setup"],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_migrates_makes_the_bucket_and_prints_the_first_key_once(
    empty_database_url: str, settings: Settings
) -> None:
    with s3.moto_server() as port:
        endpoint = f"http://127.0.0.1:{port}"
        environment = {
            "PARE_DATABASE_URL": empty_database_url,
            "PARE_STORE_URL": "s3://fresh-bucket/pare",
            "PARE_S3_ENDPOINT": endpoint,
            "PARE_S3_ACCESS_KEY": "key",
            "PARE_S3_SECRET_KEY": "secret",
            "PARE_SECRET": settings.secret.get_secret_value(),
        }
        first = run_setup(environment)
        again = run_setup(environment)
        buckets = [bucket["Name"] for bucket in s3.client(endpoint).list_buckets()["Buckets"]]
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert "First API key (shown once): pare_" in first.stdout
    assert again.stdout == "Ready; keys exist already.\n"
    assert buckets == ["fresh-bucket"]


def test_a_database_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    done = run_setup(
        {
            "PARE_DATABASE_URL": "postgresql+psycopg://pare@127.0.0.1:1/pare",
            "PARE_STORE_URL": f"file://{tmp_path}/store",
            "PARE_SECRET": "x" * 32,
        }
    )
    assert done.returncode == 1
    assert "database" in done.stderr
    assert "Traceback" not in done.stderr
