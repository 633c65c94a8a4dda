"""hf:// against a local server, through the real huggingface_hub client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow
import pytest
from huggingface_hub import hf_hub_download
from pyarrow import parquet
from tests.support.file_server import serve
from tests.support.hub import Hub, serve_hub, stored_path
from tests.support.models import random_llama
from tests.support.sources import contents, fetch, source_settings

from paredown.core.errors import (
    NotFound,
    PareError,
    PickleRefused,
    SourceError,
    SourceNotAllowed,
    SourceNotFound,
    SourceUnreachable,
    TextUnusable,
)
from paredown.core.settings import Settings
from paredown.core.sources import check_text_uri, describe, fetch_text
from paredown.core.storage import LocalStore


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(random_llama(tmp_path_factory.mktemp("hub") / "tiny"))


def using(hub: Hub, tmp_path: Path, **more: Any) -> Settings:
    return source_settings(tmp_path, hf_endpoint=hub.address, **more)


def text_of(uri: str, settings: Settings) -> str:
    def unknown(dataset: UUID) -> str:
        raise NotFound(str(dataset))

    store = LocalStore(settings.cache_dir / "store")
    return fetch_text(uri, settings, part="calibration", store=store, resolve_dataset=unknown).read_text()


def test_the_real_client_can_read_this_hub(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """Our fake is only worth something while the real client takes it for a hub."""
    hub.model("org/tiny").commit(files)
    # The client follows redirects within a host by itself, and expects large files at another.
    hub.cdn = hub.address.replace("127.0.0.1", "localhost")
    for name in ("config.json", "model.safetensors"):
        path = hf_hub_download("org/tiny", name, endpoint=hub.address, cache_dir=tmp_path, token=False)
        assert Path(path).read_bytes() == files[name]


def test_only_what_a_model_needs_is_fetched_and_the_commit_is_pinned(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    extra = {"pytorch_model.bin": b"\x80", "modeling.py": b"x", "README.md": b"x", "onnx/model.onnx": b"x"}
    commit = hub.model("org/tiny").commit(files | extra)
    fetched = fetch("hf://org/tiny", using(hub, tmp_path))
    assert contents(fetched.directory) == files
    assert fetched.record.revision == commit
    assert not [request for request in hub.requests if "pytorch_model" in request.path]


def test_a_branch_that_moves_is_another_revision(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    settings, repository = using(hub, tmp_path), hub.model("org/tiny")
    first = repository.commit(files)
    assert fetch("hf://org/tiny@main", settings).record.revision == first
    second = repository.commit(files | {"generation_config.json": b"{}"})
    moved = fetch("hf://org/tiny@main", settings)
    assert moved.record.revision == second
    assert contents(moved.directory)["generation_config.json"] == b"{}"
    pinned = fetch(f"hf://org/tiny@{first}", settings)
    assert pinned.record.fingerprint != moved.record.fingerprint
    repository.names["refs/pr/1"] = first
    assert describe("hf://org/tiny@refs%2Fpr%2F1", settings).revision == first


def test_a_hit_downloads_nothing_but_asks_again(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    settings, repository = using(hub, tmp_path, hf_token="t"), hub.model("org/tiny")
    repository.commit(files)
    repository.token = "t"
    fetch("hf://org/tiny", settings)
    hub.requests.clear()
    fetch("hf://org/tiny", settings)
    assert not [request for request in hub.requests if request.path.endswith(".safetensors")]
    with pytest.raises(SourceNotFound, match="PARE_HF_TOKEN"):
        fetch("hf://org/tiny", using(hub, tmp_path))


def test_the_token_goes_to_the_hub_and_never_to_its_file_servers(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    repository = hub.model("org/private")
    repository.commit(files)
    repository.token = "hf_secret"
    with serve() as elsewhere:
        # Another name for the same machine: to a client, another host.
        hub.cdn = elsewhere.address.replace("127.0.0.1", "localhost")
        elsewhere.files = hub.files
        settings = using(hub, tmp_path, hf_token="hf_secret", allowed_private_hosts=["localhost"])
        assert contents(fetch("hf://org/private", settings).directory) == files
        assert all(request.headers["authorization"] == "Bearer hf_secret" for request in hub.requests)
        assert elsewhere.requests
        assert not [request for request in elsewhere.requests if "authorization" in request.headers]


def test_a_redirect_to_a_private_host_is_refused(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.model("org/tiny").commit(files)
    hub.cdn = "https://[::1]:1"
    with pytest.raises(SourceNotAllowed, match="private address"):
        fetch("hf://org/tiny", using(hub, tmp_path))


def test_a_broken_download_goes_on_where_it_ended(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.model("org/tiny").commit(files)
    stored = stored_path(files["model.safetensors"])
    hub.breaks[stored] = [100_000]
    assert contents(fetch("hf://org/tiny", using(hub, tmp_path)).directory) == files
    assert [request.headers.get("range") for request in hub.seen(stored)] == [None, "bytes=100000-"]


def test_bytes_that_are_not_those_the_hub_promised_are_refused(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.model("org/tiny").commit(files)
    damaged = bytearray(files["model.safetensors"])
    damaged[-1] ^= 1
    with serve() as elsewhere:
        hub.cdn = elsewhere.address
        elsewhere.files[stored_path(files["model.safetensors"])] = bytes(damaged)
        with pytest.raises(SourceUnreachable, match="another SHA-256"):
            fetch("hf://org/tiny", using(hub, tmp_path))


def test_a_repository_of_pickles_is_refused(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.model("org/old").commit({"config.json": files["config.json"], "pytorch_model.bin": b"\x80"})
    with pytest.raises(PickleRefused, match="save_pretrained"):
        describe("hf://org/old", using(hub, tmp_path))


@pytest.mark.parametrize(
    ("uri", "error", "sentence"),
    [
        ("hf://org/none", SourceNotFound, "no org/none on the hub"),
        ("hf://org/tiny@nowhere", SourceNotFound, "no revision 'nowhere'"),
        ("hf://org/gated", SourceNotAllowed, "gated"),
        ("hf://tiny", SourceError, "write hf://org/name"),
        ("hf://org/tiny/none.gguf", SourceNotFound, "no file"),
        ("hf://org/../tiny", SourceError, "write hf"),
        ("hf://--/..", SourceError, "not a repository"),
        ("hf://datasets/org/name", SourceError, "write hf://org/name"),
    ],
)
def test_what_is_not_there_is_said(
    uri: str, error: type[PareError], sentence: str, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.model("org/tiny").commit(files)
    gated = hub.model("org/gated")
    gated.commit(files)
    gated.token, gated.gated = "t", True
    with pytest.raises(error, match=sentence) as raised:
        describe(uri, using(hub, tmp_path))
    assert raised.value.field == "model"


def test_a_hub_out_of_reach_is_worth_another_try(tmp_path: Path) -> None:
    settings = source_settings(tmp_path, hf_endpoint="http://127.0.0.1:9")
    with pytest.raises(SourceUnreachable, match="cannot be asked") as raised:
        describe("hf://org/tiny", settings)
    assert raised.value.retryable


def test_data_sets_give_text_lines_and_columns(hub: Hub, tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["one", "two"], "other": ["three", "four"], "number": [1, 2]})
    parquet.write_table(table, tmp_path / "t.parquet")
    hub.dataset("org/words").commit(
        {
            "a.txt": "plain — text".encode(),
            "data/b.jsonl": b'{"text": "first"}\n\n{"text": "second"}\n',
            "c.parquet": (tmp_path / "t.parquet").read_bytes(),
        }
    )
    settings = using(hub, tmp_path)
    assert text_of("hf://datasets/org/words/a.txt", settings) == "plain — text"
    assert text_of("hf://datasets/org/words@main/data/b.jsonl", settings).split() == ["first", "second"]
    assert text_of("hf://datasets/org/words/c.parquet", settings).split() == ["one", "two"]
    assert text_of("hf://datasets/org/words/c.parquet?column=other", settings).split() == ["three", "four"]
    with pytest.raises(TextUnusable, match="no column 'none'; it has text, other, number"):
        text_of("hf://datasets/org/words/c.parquet?column=none", settings)
    with pytest.raises(TextUnusable, match="does not hold strings"):
        text_of("hf://datasets/org/words/c.parquet?column=number", settings)
    with pytest.raises(SourceNotFound, match="no file d"):
        text_of("hf://datasets/org/words/d.txt", settings)


def test_a_parquet_file_of_garbage_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.dataset("org/words").commit({"c.parquet": b"PAR1" + bytes(100) + b"PAR1"})
    with pytest.raises(TextUnusable, match="not a readable Parquet"):
        text_of("hf://datasets/org/words/c.parquet", using(hub, tmp_path))


def test_a_data_set_address_is_checked_at_submit(tmp_path: Path) -> None:
    settings = source_settings(tmp_path)
    check_text_uri("hf://datasets/org/words@v1/a.txt", settings)
    with pytest.raises(SourceError, match="write hf://datasets"):
        check_text_uri("hf://org/words", settings)
