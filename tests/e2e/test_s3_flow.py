"""Everything over HTTP: the API, an S3 server for models and artifacts, a real worker, `pare` as its users run it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from tests.client.conftest import ApiServer
from tests.faults.conftest import house, s3_proxy  # noqa: F401 - fixtures
from tests.faults.house import MODEL, House
from tests.support import s3

from paredown.core import access
from paredown.core.storage import open_store
from paredown.core.storage_s3 import PART_BYTES

RECIPE = """
recipe: [{method: gptq, bits: 4, group_size: 64}]
calibration: {samples: 4, sequence_length: 64}
evaluation: {samples: 4, sequence_length: 64, speed: false}
budget: {max_size_ratio: 1.0}
"""


class Pare:
    """Runs `pare` as a process; returns what it printed."""

    def __init__(self, house: House, url: str, key: str, directory: Path) -> None:  # noqa: F811
        self.house, self.url, self.key, self.directory = house, url, key, directory

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("pare"), *arguments],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.directory),
                "PARE_API_URL": self.url,
                "PARE_API_KEY": self.key,
            },
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stderr}\n{self.house.tail()}"
        return done.stdout


@pytest.fixture
def pare(house: House, tmp_path: Path) -> Iterator[Pare]:  # noqa: F811
    """`pare` against a real API whose artifacts lie in S3."""
    server = ApiServer(house.settings)
    with house.database.transaction() as session:
        key = access.bootstrap(session, house.settings)
    assert key
    yield Pare(house, server.url, key, tmp_path)
    server.stop()


def test_submit_compress_download_and_verify_over_s3(house: House, pare: Pare, tmp_path: Path) -> None:  # noqa: F811
    house.start()
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    job = json.loads(pare("submit", MODEL, "recipe.yaml", "--wait", "--json"))
    artifact = job["artifact_id"]

    pare("download", artifact, "out")
    pare("verify", "out")
    pare("verify", artifact)
    # The files came from S3 itself, by an address that needs no key of ours.
    with httpx.Client(base_url=pare.url, headers={"Authorization": f"Bearer {pare.key}"}) as client:
        answer = client.get(f"/v1/artifacts/{artifact}/files/model.safetensors", follow_redirects=False)
    assert answer.status_code in (302, 307)
    assert answer.headers["location"].startswith(house.settings.s3_endpoint or "")
    assert httpx.get(answer.headers["location"]).content == (tmp_path / "out/model.safetensors").read_bytes()

    # One byte changed in the bucket is found from outside, and one changed on disk as well.
    key = f"{tmp_path.name}/artifacts/{job['id']}/1/model.safetensors"
    client = s3.client(house.settings.s3_endpoint or "")
    body = bytearray(client.get_object(Bucket="store", Key=key)["Body"].read())
    body[-1] ^= 1
    client.put_object(Bucket="store", Key=key, Body=bytes(body))
    pare("verify", artifact, code=1)
    (tmp_path / "out/model.safetensors").write_bytes(bytes(body))
    pare("verify", "out", code=1)


def test_large_files_go_up_in_parts(house: House, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "large"
    path.write_bytes(os.urandom(PART_BYTES + 12345))
    store = open_store(house.settings)
    store.put_file("artifacts/large", path, sha256(path.read_bytes()).hexdigest())
    head = s3.client(house.settings.s3_endpoint or "").head_object(
        Bucket="store", Key=f"{tmp_path.name}/artifacts/large"
    )
    assert re.fullmatch(r'"[0-9a-f]{32}-2"', head["ETag"]), "S3 writes the number of parts into the ETag"
    store.get_file("artifacts/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
