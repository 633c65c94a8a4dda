"""artifact:// models: the catalogue's own files, from a directory or from moto's S3 server over real HTTP."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from tests.core.builders import make_artifact
from tests.support.models import random_llama
from tests.support.s3 import s3_client, serve_s3
from tests.support.sources import contents, source_settings

from paredown.contracts.artifact import MANIFEST_NAME, Ancestor, Manifest, ManifestFile
from paredown.contracts.job import Format
from paredown.contracts.recipes import Rtn, Wanda
from paredown.core.errors import (
    DiskFull,
    ModelRejected,
    NotFound,
    SafetensorsInvalid,
    SourceNotAllowed,
    SourceNotFound,
    SourceUnreachable,
)
from paredown.core.settings import Settings
from paredown.core.sources import FetchCancelled, FetchedModel, Shelf, describe, fetch_model
from paredown.core.sources.cache import fingerprint_of
from paredown.core.storage import LocalStore, ObjectStore, open_store

GRANDPARENT = Ancestor(artifact_id=uuid4(), manifest_sha256="d" * 64, recipe=(Wanda(),))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serve_s3() as endpoint:
        s3_client(endpoint).create_bucket(Bucket="artifacts")
        yield endpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    files = contents(random_llama(tmp_path_factory.mktemp("artifact") / "tiny"))
    # Large enough to be cut off in the middle.
    return {**files, "tokenizer.json": b'{"x": "' + b"y" * (3 * 2**20) + b'"}'}


@pytest.fixture(params=["directory", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "directory":
        return source_settings(tmp_path)
    endpoint = request.getfixturevalue("endpoint")
    keys = {"s3_endpoint": endpoint, "s3_access_key": "key", "s3_secret_key": "secret"}
    return source_settings(tmp_path, store_url=f"s3://artifacts/{tmp_path.name}", **keys)


class House:
    """A catalogue of one artifact, and its store."""

    def __init__(self, store: ObjectStore, files: dict[str, bytes], written_as: Format = Format.SAFETENSORS) -> None:
        job_id = uuid4()
        self.prefix = f"artifacts/{job_id}/1"
        listed = [ManifestFile(path=path, size_bytes=len(data), sha256=digest(data)) for path, data in files.items()]
        self.manifest = make_artifact(job_id).manifest.model_copy(
            update={
                "format": written_as,
                "files": (*listed, ManifestFile(path="sub/notes", size_bytes=1, sha256="0" * 64)),
                "lineage": (GRANDPARENT,),
            }
        )
        for path, data in files.items():
            store.put_bytes(f"{self.prefix}/{path}", data)
        store.put_bytes(f"{self.prefix}/{MANIFEST_NAME}", self.manifest.model_dump_json().encode())
        self.store = store
        self.readable = True
        self.uri = f"artifact://{self.manifest.artifact_id}"

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.find, self.store)

    def find(self, artifact_id: UUID) -> tuple[Manifest, str]:
        if artifact_id != self.manifest.artifact_id or not self.readable:
            raise NotFound(f"There is no artifact {artifact_id}.")
        return self.manifest, self.prefix

    def fetch(self, settings: Settings) -> FetchedModel:
        return fetch_model(self.uri, settings, self.shelf, progress=lambda *_: None, cancelled=lambda: False)


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


@pytest.fixture
def house(settings: Settings, files: dict[str, bytes]) -> House:
    return House(open_store(settings), files)


def test_an_artifact_is_described_and_fetched_with_its_lineage(
    house: House, settings: Settings, files: dict[str, bytes]
) -> None:
    described = describe(house.uri, settings, house.shelf)
    assert described.container == "safetensors"
    assert {file.path for file in described.files} == set(files)
    assert described.base == house.manifest.base
    assert described.base_bytes == house.manifest.base.base_bytes != described.shape.base_bytes
    assert described.earlier == (Wanda(), Rtn())
    fetched = house.fetch(settings)
    assert contents(fetched.directory) == files
    # What is made of it is measured against the model that it was made of itself.
    assert fetched.record == house.manifest.base
    assert fetched.earlier == described.earlier
    itself = fetched.lineage[-1]
    assert fetched.lineage == (GRANDPARENT, itself)
    stored = b"".join(house.store.read_range(f"{house.prefix}/{MANIFEST_NAME}", 0, 2**20))
    assert (itself.artifact_id, itself.manifest_sha256) == (house.manifest.artifact_id, digest(stored))
    assert itself.recipe == house.manifest.recipe


def test_it_shares_the_cache_with_the_same_files_from_elsewhere(
    house: House, settings: Settings, files: dict[str, bytes]
) -> None:
    fetched = house.fetch(settings)
    found = [{"path": path, "sha256": digest(data)} for path, data in files.items()]
    assert fetched.directory == settings.cache_dir / "models" / fingerprint_of(found) / "files"


def test_a_hit_is_given_to_whoever_may_still_read_the_artifact(house: House, settings: Settings) -> None:
    house.fetch(settings).close()
    house.readable = False
    with pytest.raises(SourceNotFound, match="There is no artifact") as raised:
        house.fetch(settings)
    assert raised.value.field == "model"


def test_a_cancelled_download_is_resumed(house: House, settings: Settings, files: dict[str, bytes]) -> None:
    heard = [0]
    with pytest.raises(FetchCancelled):
        fetch_model(
            house.uri,
            settings,
            house.shelf,
            progress=lambda done, total: heard.append(done),
            cancelled=lambda: heard[-1] > 2**20,
        )
    before = heard[-1]
    heard.clear()
    fetched = fetch_model(
        house.uri, settings, house.shelf, progress=lambda *now: heard.append(now[0]), cancelled=lambda: False
    )
    assert contents(fetched.directory) == files
    assert heard[0] > before - 1000


def test_bytes_that_the_manifest_does_not_know_are_refused(house: House, settings: Settings) -> None:
    weights = bytearray(b"".join(house.store.read_range(f"{house.prefix}/model.safetensors", 0, 2**24)))
    weights[-1] ^= 1
    house.store.put_bytes(f"{house.prefix}/model.safetensors", bytes(weights))
    with pytest.raises(SourceUnreachable, match=r"model\.safetensors arrived with another SHA-256"):
        house.fetch(settings)
    assert not list((settings.cache_dir / "models").glob("*/files"))


def test_a_manifest_that_is_not_the_catalogues_is_refused(house: House, settings: Settings) -> None:
    other = house.manifest.model_copy(update={"files": house.manifest.files[1:]}).model_dump_json().encode()
    for raw in (other, b"{}", b""):
        house.store.put_bytes(f"{house.prefix}/{MANIFEST_NAME}", raw)
        with pytest.raises(SourceUnreachable, match="is not the catalogue's"):
            house.fetch(settings)


def test_what_is_gone_from_the_store_is_said(house: House, settings: Settings) -> None:
    house.store.delete(f"{house.prefix}/model.safetensors")
    with pytest.raises(SourceNotFound, match=r"model\.safetensors is not in the object store any more"):
        house.fetch(settings)
    house.store.delete(f"{house.prefix}/{MANIFEST_NAME}")
    with pytest.raises(SourceNotFound, match=r"manifest\.json is not in the object store"):
        house.fetch(settings)


def test_room_is_made_before_the_first_byte(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    house, settings = House(LocalStore(tmp_path / "store"), files), source_settings(tmp_path)
    monkeypatch.setattr("paredown.core.sources.cache.RESERVE_BYTES", 2**60)
    with pytest.raises(DiskFull):
        house.fetch(settings)
    assert not list((settings.cache_dir / "partial").glob("*/model.safetensors"))


@pytest.mark.parametrize("written_as", [Format.COMPRESSED_TENSORS, Format.GGUF])
def test_weights_that_are_not_dense_are_refused_with_the_way_out(
    tmp_path: Path, files: dict[str, bytes], written_as: Format
) -> None:
    house = House(LocalStore(tmp_path / "store"), files, written_as)
    with pytest.raises(ModelRejected, match=f"as {written_as}, which cannot be compressed further") as raised:
        describe(house.uri, source_settings(tmp_path), house.shelf)
    assert raised.value.field == "model"
    assert house.manifest.base.uri in raised.value.detail
    assert "format safetensors" in raised.value.detail


def test_an_artifact_whose_header_lies_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    house = House(LocalStore(tmp_path / "store"), {**files, "model.safetensors": b"\0" * 100})
    with pytest.raises(SafetensorsInvalid):
        house.fetch(source_settings(tmp_path))


def test_without_a_catalogue_the_way_out_is_a_download(tmp_path: Path) -> None:
    artifact_id = uuid4()
    with pytest.raises(SourceNotAllowed, match=f"pare download {artifact_id} DIRECTORY"):
        describe(f"artifact://{artifact_id}", source_settings(tmp_path))
    with pytest.raises(SourceNotFound, match="write artifact:// and its id"):
        describe("artifact://tiny", source_settings(tmp_path))
