"""s3:// models and texts, from moto's server over real HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.support.models import random_llama
from tests.support.s3 import s3_client, serve_s3
from tests.support.sources import contents, fetch, source_settings

from paredown.core.errors import NotAModel, NotFound, SourceError, SourceNotFound, SourceUnreachable
from paredown.core.settings import Settings
from paredown.core.sources import FetchCancelled, check_text_uri, describe, fetch_model, fetch_text
from paredown.core.storage import LocalStore


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serve_s3() as endpoint:
        s3_client(endpoint).create_bucket(Bucket="models")
        yield endpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, endpoint: str) -> dict[str, bytes]:
    files = contents(random_llama(tmp_path_factory.mktemp("s3") / "tiny"))
    upload(endpoint, "team/tiny", files | {"readme.md": b"x", "sub/other.safetensors": b"x"})
    return files


def upload(endpoint: str, prefix: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        s3_client(endpoint).put_object(Bucket="models", Key=f"{prefix}/{name}", Body=data)


def using(endpoint: str, tmp_path: Path, **more: Any) -> Settings:
    keys = {"source_s3_access_key": "key", "source_s3_secret_key": "secret"}
    return source_settings(tmp_path, source_s3_endpoint=endpoint, **keys, **more)


@pytest.mark.parametrize("uri", ["s3://models/team/tiny", "s3://models/team/tiny/"])
def test_a_prefix_is_fetched(uri: str, endpoint: str, files: dict[str, bytes], tmp_path: Path) -> None:
    fetched = fetch(uri, using(endpoint, tmp_path))
    assert contents(fetched.directory) == files


def test_a_cancelled_download_is_resumed(endpoint: str, files: dict[str, bytes], tmp_path: Path) -> None:
    settings = using(endpoint, tmp_path)
    big = {**files, "tokenizer.json": b'{"x": "' + b"y" * (3 * 2**20) + b'"}'}
    upload(endpoint, "team/big", big)
    heard = [0]
    with pytest.raises(FetchCancelled):
        fetch_model(
            "s3://models/team/big",
            settings,
            progress=lambda done, total: heard.append(done),
            cancelled=lambda: heard[-1] > 2**20,
        )
    partial = next((settings.cache_dir / "partial").iterdir())
    before = sum(path.stat().st_size for path in partial.iterdir())
    assert before > 2**20
    heard.clear()
    fetched = fetch_model("s3://models/team/big", settings, progress=lambda *now: heard.append(now[0]), cancelled=bool)
    assert contents(fetched.directory) == big
    assert heard[0] > before - 1000


def test_an_object_that_changed_is_noticed(endpoint: str, files: dict[str, bytes], tmp_path: Path) -> None:
    settings = using(endpoint, tmp_path)
    upload(endpoint, "team/moving", files)
    changed = bytearray(files["model.safetensors"])
    changed[-1] ^= 1

    def change(done: int, total: int) -> None:
        upload(endpoint, "team/moving", {"model.safetensors": bytes(changed)})

    with pytest.raises(SourceUnreachable, match="changed while it was fetched"):
        fetch_model("s3://models/team/moving", settings, progress=change, cancelled=lambda: False)


def test_what_is_not_there_is_said(endpoint: str, files: dict[str, bytes], tmp_path: Path) -> None:
    settings = using(endpoint, tmp_path)
    with pytest.raises(SourceNotFound, match="holds no objects"):
        describe("s3://models/none", settings)
    with pytest.raises(SourceNotFound, match="does not exist"):
        describe("s3://no-such-bucket/none", settings)
    with pytest.raises(SourceNotFound, match=r"none\.gguf does not exist"):
        describe("s3://models/none.gguf", settings)
    with pytest.raises(NotAModel):
        describe("s3://models/team/tiny/sub", settings)
    with pytest.raises(SourceError):
        describe("s3:///x", settings)
    gone = source_settings(tmp_path, source_s3_endpoint="http://127.0.0.1:9", connect_timeout_seconds=0.2)
    with pytest.raises(SourceUnreachable, match="cannot be read"):
        describe("s3://models/team/tiny", gone)


def test_without_keys_requests_are_not_signed(
    endpoint: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's own role must not lend itself to whoever names a bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "role")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "role-secret")
    sent: list[str | None] = []
    monkeypatch.setattr(
        "botocore.httpsession.URLLib3Session.send",
        lambda self, request: sent.append(request.headers.get("Authorization")) or _stop(),
    )
    with pytest.raises(ConnectionError):
        describe("s3://models/team/tiny", source_settings(tmp_path, source_s3_endpoint=endpoint))
    assert sent
    assert set(sent) == {None}


def _stop() -> None:
    raise ConnectionError("seen enough")


def test_a_text_object_is_read(endpoint: str, files: dict[str, bytes], tmp_path: Path) -> None:
    upload(endpoint, "texts", {"a.jsonl": b'{"text": "one"}\n{"text": "two"}\n'})
    settings = using(endpoint, tmp_path)

    def unknown(dataset: UUID) -> str:
        raise NotFound(str(dataset))

    store = LocalStore(tmp_path / "store")
    path = fetch_text("s3://models/texts/a.jsonl", settings, part="calibration", store=store, resolve_dataset=unknown)
    assert path.read_text().split() == ["one", "two"]
    with pytest.raises(SourceError, match="names no object"):
        check_text_uri("s3://models", settings)
