"""Both object stores through one set of promises: a directory, and S3 over real HTTP (moto's server)."""

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.s3 import s3_client, serve_s3
from tests.support.sources import source_settings

from paredown.core import storage_s3
from paredown.core.errors import DiskFull, NotFound, StorageUnavailable
from paredown.core.settings import Settings
from paredown.core.storage import LocalStore, ObjectStore, open_store, sign_download, verify_download

# fmt: off
UNSAFE_KEYS = [

    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a//b",
    "a/",
    "./a",
    ".staging/x",
    "a\\b",
    "a\0b",
    "a" * 2000,
]


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with serve_s3() as endpoint:
        s3_client(endpoint).create_bucket(Bucket="pare")
        yield endpoint


def s3_settings(tmp_path: Path, endpoint: str, **more: Any) -> Settings:
    return source_settings(
        tmp_path,
        **{
            "store_url": f"s3://pare/{tmp_path.name}",
            "s3_endpoint": endpoint,
            "s3_access_key": "key",
            "s3_secret_key": "secret",
            **more,
        },
    )


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return open_store(source_settings(tmp_path))
    return open_store(s3_settings(tmp_path, request.getfixturevalue("s3_endpoint")))


def written(path: Path, data: bytes) -> tuple[Path, str]:
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def test_what_is_stored_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    path, sha256 = written(tmp_path / "file", b"weights" * 1000)
    store.put_file("artifacts/one/1/model.safetensors", path, sha256)
    store.put_bytes("artifacts/one/1/manifest.json", b"{}")
    assert store.size("artifacts/one/1/model.safetensors") == 7000
    store.get_file("artifacts/one/1/model.safetensors", tmp_path / "deep" / "back")
    assert (tmp_path / "deep" / "back").read_bytes() == path.read_bytes()
    listed = list(store.list("artifacts/one/"))
    assert [item.key for item in listed] == ["artifacts/one/1/manifest.json", "artifacts/one/1/model.safetensors"]
    assert [item.size_bytes for item in listed] == [2, 7000]
    assert abs(listed[0].modified_at.timestamp() - time.time()) < 60
    store.check()


def test_a_second_put_replaces_the_first(store: ObjectStore) -> None:
    store.put_bytes("a/b", b"first")
    store.put_bytes("a/b", b"second")
    assert b"".join(store.read_range("a/b", 0, 100)) == b"second"


@pytest.mark.parametrize(
    ("start", "length", "expected"), [(0, 4, b"0123"), (6, 100, b"6789"), (3, 0, b""), (10, 5, b"")]
)
def test_ranges(start: int, length: int, expected: bytes, store: ObjectStore) -> None:
    store.put_bytes("ranged", b"0123456789")
    assert b"".join(store.read_range("ranged", start, length)) == expected


def test_what_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    assert store.size("none") is None
    assert list(store.list("none/")) == []
    store.delete("none")
    store.delete_prefix("none/")
    with pytest.raises(NotFound):
        store.read_range("none", 0, 1)
    with pytest.raises(NotFound):
        store.get_file("none", tmp_path / "x")
    assert not list(tmp_path.glob("*x*"))


def test_a_prefix_is_deleted_and_nothing_beside_it(store: ObjectStore) -> None:
    for key in ("jobs/1/a", "jobs/1/2/b", "jobs/10/c", "jobs/1x"):
        store.put_bytes(key, b"x")
    store.delete_prefix("jobs/1/")
    assert [item.key for item in store.list("jobs/")] == ["jobs/10/c", "jobs/1x"]
    store.delete("jobs/1x")
    assert [item.key for item in store.list("jobs/1")] == ["jobs/10/c"]
    with pytest.raises(ValueError, match="slash"):
        store.delete_prefix("jobs/1")


@pytest.mark.parametrize("key", UNSAFE_KEYS)
def test_a_key_that_could_leave_the_store_is_not_found(key: str, store: ObjectStore, tmp_path: Path) -> None:
    path, sha256 = written(tmp_path / "f", b"x")
    for attempt in (
        lambda: store.put_bytes(key, b"x"),
        lambda: store.put_file(key, path, sha256),
        lambda: store.read_range(key, 0, 1),
        lambda: store.delete(key),
        lambda: store.delete_prefix(f"{key}/"),
        lambda: store.get_file(key, path),
    ):
        with pytest.raises(NotFound):
            attempt()


def test_a_local_object_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "store")
    store.put_bytes("kept", b"old")
    path, _ = written(tmp_path / "file", b"new" * 1000)
    with pytest.raises(StorageUnavailable, match="changed while it was stored"):
        store.put_file("kept", path, "0" * 64)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="free some space") as raised:
        store.put_bytes("kept", b"new")
    assert raised.value.retryable
    monkeypatch.undo()
    assert b"".join(store.read_range("kept", 0, 10)) == b"old"
    assert not list((tmp_path / "store" / ".staging").iterdir())
    assert [item.key for item in store.list("")] == ["kept"]


def test_a_local_store_without_its_directory_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable):
        LocalStore(tmp_path / "file" / "store").check()


def test_a_local_store_leaves_no_empty_directories(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put_bytes("a/b/c", b"x")
    store.put_bytes("a/d", b"x")
    store.delete("a/b/c")
    assert not (tmp_path / "store" / "a" / "b").exists()
    store.delete_prefix("a/")
    assert not (tmp_path / "store" / "a").exists()
    assert (tmp_path / "store").exists()


def test_a_large_file_travels_in_parts_with_checksums(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "PART_BYTES", 5 * 2**20)
    settings = s3_settings(tmp_path, s3_endpoint)
    store = open_store(settings)
    path, sha256 = written(tmp_path / "large", os.urandom(12 * 2**20))
    store.put_file("large", path, sha256)
    key = f"{tmp_path.name}/large"
    head = s3_client(s3_endpoint).head_object(Bucket="pare", Key=key)
    assert head["ETag"].strip('"').endswith("-3")
    assert head["Metadata"] == {"sha256": sha256}
    store.get_file("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


def test_a_presigned_address_works_without_credentials_until_it_ends(s3_endpoint: str, tmp_path: Path) -> None:
    # moto does not check signatures; what counts here is the host, the name to save under and the time in it.
    public = s3_endpoint.replace("127.0.0.1", "localhost")
    store = open_store(s3_settings(tmp_path, s3_endpoint, s3_public_endpoint=public))
    store.put_bytes("report", b"hello")
    url = store.url("report", 'a "name" – ü.safetensors', 60)
    assert url is not None
    assert url.startswith(f"{public}/pare/{tmp_path.name}/report?")
    assert "X-Amz-Expires=60" in url
    assert "X-Amz-SignedHeaders=host" in url
    answer = httpx.get(url, headers={"Range": "bytes=1-3"})
    assert (answer.status_code, answer.content) == (206, b"ell")
    assert "filename*=UTF-8''a%20%22name%22%20%E2%80%93%20%C3%BC.safetensors" in answer.headers["content-disposition"]


def test_the_local_store_leaves_addresses_to_the_api(tmp_path: Path) -> None:
    assert open_store(source_settings(tmp_path)).url("a", "a", 60) is None


def test_s3_troubles_have_names(s3_endpoint: str, tmp_path: Path) -> None:
    missing = open_store(s3_settings(tmp_path, s3_endpoint, store_url="s3://no-such-bucket/x"))
    with pytest.raises(StorageUnavailable, match="bucket no-such-bucket does not exist"):
        missing.check()
    gone = open_store(s3_settings(tmp_path, "http://127.0.0.1:9", connect_timeout_seconds=0.2))
    for attempt in (
        lambda: gone.put_bytes("a", b"x"),
        lambda: gone.size("a"),
        lambda: list(gone.list("a")),
        gone.check,
    ):
        with pytest.raises(StorageUnavailable, match="cannot be reached") as raised:
            attempt()
        assert raised.value.retryable


def test_more_objects_than_one_page_are_listed_and_deleted(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "PAGE_OBJECTS", 10)
    store = open_store(s3_settings(tmp_path, s3_endpoint))
    client = s3_client(s3_endpoint)
    for number in range(25):
        client.put_object(Bucket="pare", Key=f"{tmp_path.name}/many/{number:04}", Body=b"")
    assert len(list(store.list("many/"))) == 25
    store.delete_prefix("many/")
    assert list(store.list("many/")) == []


@pytest.mark.parametrize("url", ["", "ftp://x", "s3://", "file://host/x", "file://x", "/var/lib"])
def test_a_store_that_is_not_one_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="PARE_STORE_URL"):
        open_store(source_settings(tmp_path, store_url=url))


def test_a_signed_download_holds_for_its_path_its_time_and_its_secret(tmp_path: Path) -> None:
    settings = source_settings(tmp_path)
    later, earlier = int(time.time()) + 60, int(time.time()) - 1
    signature = sign_download(settings, "/v1/artifacts/1/files/a", later)
    assert verify_download(settings, "/v1/artifacts/1/files/a", later, signature)
    assert not verify_download(settings, "/v1/artifacts/1/files/b", later, signature)
    assert not verify_download(settings, "/v1/artifacts/1/files/a", later + 1, signature)
    assert not verify_download(settings, "/v1/artifacts/1/files/a", later, "é" * 64)
    assert not verify_download(settings, "a", earlier, sign_download(settings, "a", earlier))
    other = source_settings(tmp_path, secret="another secret of the tests, 32 or more")
    assert not verify_download(other, "/v1/artifacts/1/files/a", later, signature)


def test_readers_of_a_local_object_keep_what_they_opened(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put_bytes("a", b"first" * 300_000)
    chunks = store.read_range("a", 0, 1_500_000)
    first = next(chunks)
    store.put_bytes("a", b"other")
    assert first + b"".join(chunks) == b"first" * 300_000
