"""Downloads: complete and correct or not there, over connections that break, and the key stays with the API."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest
from tests.client.conftest import BreakingProxy, House, make_manifest

from paredown.client.client import PareClient
from paredown.client.errors import PareApiError
from paredown.contracts.artifact import MANIFEST_NAME, Manifest, verify_files

pytestmark = pytest.mark.usefixtures("no_pauses")


def test_all_files_and_the_manifest_arrive(client: PareClient, house: House, tmp_path: Path) -> None:
    artifact_id = house.finish()
    heard: dict[str, tuple[int, int]] = {}
    directory = client.download(
        artifact_id, tmp_path / "out", lambda path, done, total: heard.__setitem__(path, (done, total))
    )
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.name != MANIFEST_NAME} == house.files
    assert heard == {path: (len(content), len(content)) for path, content in house.files.items()}
    manifest = Manifest.model_validate_json((directory / MANIFEST_NAME).read_bytes())
    assert manifest == client.manifest(artifact_id)
    assert list(verify_files(manifest, directory)) == []
    # As the worker wrote it, to the byte.
    assert (directory / MANIFEST_NAME).read_bytes() == house.stored(MANIFEST_NAME).read_bytes()


def test_a_broken_download_goes_on_where_it_broke(
    shaky: PareClient, proxy: BreakingProxy, house: House, tmp_path: Path
) -> None:
    artifact_id = house.finish()
    size = len(house.files["model.safetensors"])
    proxy.cuts = [900_000, 700_000, 0, 0, 800_000]
    directory = shaky.download(artifact_id, tmp_path / "out")
    assert (directory / "model.safetensors").read_bytes() == house.files["model.safetensors"]
    assert proxy.connections >= 6
    # Nothing was sent a second time but headers and the manifest.
    assert size < proxy.passed_bytes < size + 50_000


def test_a_download_that_was_given_up_is_taken_up_by_the_next(
    shaky: PareClient, proxy: BreakingProxy, client: PareClient, house: House, tmp_path: Path
) -> None:
    artifact_id = house.finish()
    proxy.cuts = [1_500_000, *[0] * 50]
    with pytest.raises(PareApiError) as caught:
        shaky.download(artifact_id, tmp_path / "out")
    assert caught.value.code == "service_unreachable"
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    proxy.cuts, proxy.passed_bytes = [], 0
    shaky.download(artifact_id, tmp_path / "out")
    assert proxy.passed_bytes < len(house.files["model.safetensors"]) * 0.6
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == house.files["model.safetensors"]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.endswith(".part")] == []


def test_a_rotten_part_is_fetched_anew(
    shaky: PareClient, proxy: BreakingProxy, client: PareClient, house: House, tmp_path: Path
) -> None:
    artifact_id = house.finish()
    proxy.cuts = [1_500_000, *[0] * 50]
    with pytest.raises(PareApiError):
        shaky.download(artifact_id, tmp_path / "out")
    [part] = (tmp_path / "out").glob(".*.part")
    part.write_bytes(b"?" * part.stat().st_size)
    client.download(artifact_id, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == house.files["model.safetensors"]


def test_bytes_that_the_manifest_does_not_know_are_refused(client: PareClient, house: House, tmp_path: Path) -> None:
    artifact_id = house.finish()
    stored = house.stored("model.safetensors")
    stored.write_bytes(b"!" + stored.read_bytes()[1:])
    with pytest.raises(PareApiError) as caught:
        client.download(artifact_id, tmp_path / "out")
    assert caught.value.code == "download_corrupt"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json"}


def test_another_artifacts_directory_is_left_alone(client: PareClient, house: House, tmp_path: Path) -> None:
    first = house.finish()
    client.download(first, tmp_path / "out")
    second = house.finish(files={"config.json": b"{ }"})
    with pytest.raises(PareApiError) as caught:
        client.download(second, tmp_path / "out")
    assert caught.value.code == "target_differs"
    client.download(first, tmp_path / "out")


def test_a_file_that_is_in_the_way_is_left_alone(client: PareClient, house: House, tmp_path: Path) -> None:
    artifact_id = house.finish()
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(PareApiError) as caught:
        client.download(artifact_id, tmp_path)
    assert caught.value.code == "target_differs"
    assert (tmp_path / "config.json").read_text() == "mine"


def test_stored_bytes_are_verified(client: PareClient, shaky: PareClient, proxy: BreakingProxy, house: House) -> None:
    artifact_id = house.finish()
    proxy.cuts = [500_000, 500_000]
    assert shaky.verify(artifact_id) == []
    stored = house.stored("model.safetensors")
    whole = stored.read_bytes()
    stored.write_bytes(b"!" + whole[1:])
    assert client.verify(artifact_id) == ["model.safetensors has another SHA-256 than the manifest says"]
    stored.unlink()
    assert client.verify(artifact_id) == ["model.safetensors is missing"]


class ObjectStore(BaseHTTPRequestHandler):
    """An API that sends downloads on to an object store on another port, as with S3; and that store."""

    manifest: Manifest
    content: bytes
    store_port: int
    seen: list[tuple[str, str | None, str | None]]
    expired: int

    def do_GET(self) -> None:
        kind = "store" if self.server.server_address[1] == self.store_port else "api"
        self.seen.append((kind, self.headers.get("Authorization"), self.headers.get("Range")))
        if kind == "store":
            self._store()
        elif self.path.endswith("/manifest"):
            self._answer(200, self.manifest.model_dump_json().encode())
        else:
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.store_port}/bucket/x?X-Amz-Signature=s")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _store(self) -> None:
        cls = type(self)
        if self.headers.get("Authorization"):
            self._answer(400, b"<Error>Only one auth mechanism allowed</Error>")
        elif cls.expired:
            cls.expired -= 1
            self._answer(403, b"<Error>Request has expired</Error>")
        else:
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self._answer(206 if start else 200, self.content[start:], start)

    def _answer(self, status: int, body: bytes, start: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            total = len(self.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        # The first answer of the store ends early.
        whole = start or not self.path.startswith("/bucket") or status != 200
        self.wfile.write(body if whole else body[: len(body) // 2])

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def handed_on(tmp_path: Path) -> Iterator[tuple[str, type[ObjectStore]]]:
    content = bytes(range(256)) * 4000
    handler = type("Handler", (ObjectStore,), {})
    api, store = (ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2))
    handler.manifest = make_manifest(uuid4(), {"model.safetensors": content}, None)
    handler.content, handler.store_port = content, store.server_address[1]
    handler.seen, handler.expired = [], 2
    for server in (api, store):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{api.server_address[1]}", handler
    for server in (api, store):
        server.shutdown()
        server.server_close()


def test_the_key_is_not_shown_to_the_object_store(handed_on: tuple[str, type[ObjectStore]], tmp_path: Path) -> None:
    url, handler = handed_on
    with PareClient(url, "secret-key") as client:
        client.download(handler.manifest.artifact_id, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == handler.content
    to_store = [(authorization, span) for kind, authorization, span in handler.seen if kind == "store"]
    # Two addresses that had expired, an answer that ended early, and its rest by range.
    assert [authorization for authorization, _ in to_store] == [None] * 4
    assert to_store[-1][1] == f"bytes={len(handler.content) // 2}-"
    assert {authorization for kind, authorization, _ in handler.seen if kind == "api"} == {"Bearer secret-key"}
