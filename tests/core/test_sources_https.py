"""https://: only public hosts, whatever their names resolve to; downloads that resume; every redirect judged."""

import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.support.file_server import Served, serve
from tests.support.models import random_llama
from tests.support.sources import PACKAGED, contents, fetch, source_settings
from transformers import LlamaForCausalLM

from paredown.core.errors import (
    NotAModel,
    PareError,
    PickleRefused,
    ShardNameUnsafe,
    SourceError,
    SourceNotAllowed,
    SourceNotFound,
    SourceUnreachable,
)
from paredown.core.settings import Settings
from paredown.core.sources import FetchCancelled, check_text_uri, describe, fetch_model
from paredown.core.sources.http import is_public


@pytest.fixture
def server() -> Iterator[Served]:
    with serve() as served:
        yield served


@pytest.fixture
def tiny(server: Served, tmp_path: Path) -> dict[str, bytes]:
    """A model below /tiny/ of the server; returns its files."""
    files = contents(random_llama(tmp_path / "tiny"))
    server.files |= {f"/tiny/{name}": data for name, data in files.items()}
    return files


def trusting(tmp_path: Path, **more: Any) -> Settings:
    return source_settings(tmp_path, **{"allowed_private_hosts": ["127.0.0.1"], **more})


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::a00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0", "LOCALHOST."],
)
def test_a_private_host_is_refused_however_it_is_written(host: str, tmp_path: Path) -> None:
    with pytest.raises(SourceNotAllowed, match="private address") as raised:
        describe(f"https://{host}/model/", source_settings(tmp_path))
    assert raised.value.field == "model"


def test_plain_http_is_only_for_hosts_an_operator_lists(server: Served, tiny: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(SourceNotAllowed, match="not https"):
        describe(f"{server.address}/tiny/", source_settings(tmp_path))
    assert describe(f"{server.address}/tiny/", trusting(tmp_path)).shape.hidden_size == 64
    port = server.address.rpartition(":")[2]
    listed = source_settings(tmp_path, allowed_private_hosts=[f"127.0.0.1:{port}"])
    assert describe(f"{server.address}/tiny/", listed).shape.hidden_size == 64
    other = source_settings(tmp_path, allowed_private_hosts=["127.0.0.1:1"])
    with pytest.raises(SourceNotAllowed):
        describe(f"{server.address}/tiny/", other)


def test_a_name_that_resolves_anew_to_a_private_address_gains_nothing(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the connection goes to the address that was judged, not to a second answer."""
    asked: list[str] = []

    def resolve(host: str, port: int, *args: Any, **kwargs: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        address = "192.0.2.1" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("paredown.core.sources.http.is_public", lambda address: str(address) == "192.0.2.1")
    connected: list[Any] = []

    def refuse(self: Any, host: str, *args: Any) -> None:
        connected.append(host)
        raise OSError("no route")

    monkeypatch.setattr("httpcore.SyncBackend.connect_tcp", refuse)
    with pytest.raises(OSError, match="no route"):
        describe("https://rebinding.example/tiny/", source_settings(tmp_path))
    assert connected == ["192.0.2.1"]


def test_a_redirect_is_judged_like_the_address_itself(server: Served, tmp_path: Path) -> None:
    server.redirects["/m/config.json"] = "http://localhost:1/config.json"
    with pytest.raises(SourceNotAllowed, match="not https"):
        describe(f"{server.address}/m/", trusting(tmp_path))
    server.redirects["/m/config.json"] = "https://[::1]:1/config.json"
    with pytest.raises(SourceNotAllowed, match="private address"):
        describe(f"{server.address}/m/", trusting(tmp_path))
    server.redirects["/m/config.json"] = "file:///etc/passwd"
    with pytest.raises(SourceNotAllowed):
        describe(f"{server.address}/m/", trusting(tmp_path))


def test_redirects_end(server: Served, tmp_path: Path) -> None:
    server.redirects["/m/config.json"] = "/m/config.json"
    with pytest.raises(SourceUnreachable, match="redirects more than 5 times"):
        describe(f"{server.address}/m/", trusting(tmp_path))


def test_a_directory_is_fetched(server: Served, tiny: dict[str, bytes], tmp_path: Path) -> None:
    server.files["/tiny/modeling.py"] = b"raise SystemExit"
    fetched = fetch(f"{server.address}/tiny/", trusting(tmp_path))
    assert contents(fetched.directory) == tiny
    assert fetched.record.revision == fetched.record.fingerprint


def test_shards_behind_https_are_fetched(server: Served, tmp_path: Path) -> None:
    whole = LlamaForCausalLM.from_pretrained(random_llama(tmp_path / "t"))
    whole.save_pretrained(tmp_path / "s", max_shard_size="64KB")
    files = contents(tmp_path / "s")
    server.files |= {f"/s/{name}": data for name, data in files.items()}
    assert contents(fetch(f"{server.address}/s/", trusting(tmp_path)).directory) == files


@pytest.mark.model
def test_a_gguf_file_is_described_by_its_first_bytes_alone(server: Served, tmp_path: Path) -> None:
    packaged = fetch(PACKAGED, source_settings(tmp_path))
    assert packaged.gguf_file is not None
    server.files["/m/tiny%20model.gguf"] = (packaged.directory / packaged.gguf_file).read_bytes()
    description = describe(f"{server.address}/m/tiny%20model.gguf", trusting(tmp_path))
    assert description.gguf_file == "tiny model.gguf"
    assert description.shape.parameters == 134_515_008


def test_a_broken_download_goes_on_where_it_ended(server: Served, tiny: dict[str, bytes], tmp_path: Path) -> None:
    server.breaks["/tiny/model.safetensors"] = [100_000, 50_000]
    assert contents(fetch(f"{server.address}/tiny/", trusting(tmp_path)).directory) == tiny
    ranges = [request.headers.get("range") for request in server.seen("/tiny/model.safetensors")]
    assert ranges == ["bytes=0-0", None, "bytes=100000-", "bytes=150000-"]


def test_a_cancelled_download_is_resumed_by_the_next(server: Served, tiny: dict[str, bytes], tmp_path: Path) -> None:
    settings = trusting(tmp_path)
    server.breaks["/tiny/model.safetensors"] = [100_000]
    heard = [0]
    with pytest.raises(FetchCancelled):
        fetch_model(
            f"{server.address}/tiny/",
            settings,
            progress=lambda done, total: heard.append(done),
            cancelled=lambda: heard[-1] > 100_000,
        )
    server.requests.clear()
    assert contents(fetch(f"{server.address}/tiny/", settings).directory) == tiny
    start = int(server.seen("/tiny/model.safetensors")[-1].headers["range"].removeprefix("bytes=").rstrip("-"))
    assert start >= 65_536


@pytest.mark.parametrize("kind", ["no ranges", "no etags"])
def test_a_poor_server_still_gives_the_right_bytes(
    kind: str, server: Served, tiny: dict[str, bytes], tmp_path: Path
) -> None:
    server.ranges, server.etags = kind != "no ranges", kind != "no etags"
    server.breaks["/tiny/model.safetensors"] = [100_000]
    assert contents(fetch(f"{server.address}/tiny/", trusting(tmp_path)).directory) == tiny


def test_a_file_that_changes_in_between_is_never_mixed(server: Served, tiny: dict[str, bytes], tmp_path: Path) -> None:
    settings = trusting(tmp_path)
    changed = bytearray(tiny["model.safetensors"])
    changed[-1] ^= 1
    server.breaks["/tiny/model.safetensors"] = [100_000]

    def change(done: int, total: int) -> None:
        if not server.breaks["/tiny/model.safetensors"]:
            server.files["/tiny/model.safetensors"] = bytes(changed)

    with pytest.raises(SourceUnreachable, match="changed while it was fetched"):
        fetch_model(f"{server.address}/tiny/", settings, progress=change, cancelled=lambda: False)
    assert contents(fetch(f"{server.address}/tiny/", settings).directory)["model.safetensors"] == bytes(changed)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/model", SourceError),
        ("/model.bin", SourceError),
        ("/none/", NotAModel),
        ("/none.gguf", SourceNotFound),
        ("/a b/", SourceError),
    ],
)
def test_an_address_of_no_model_is_refused(path: str, error: type[PareError], server: Served, tmp_path: Path) -> None:
    with pytest.raises(error):
        describe(f"{server.address}{path}", trusting(tmp_path))


def test_a_password_in_the_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotAllowed, match="password"):
        describe("https://user:secret@example.com/model/", source_settings(tmp_path))


def test_pickle_alone_is_refused(server: Served, tiny: dict[str, bytes], tmp_path: Path) -> None:
    del server.files["/tiny/model.safetensors"]
    server.files["/tiny/pytorch_model.bin"] = b"\x80\x04."
    with pytest.raises(PickleRefused):
        describe(f"{server.address}/tiny/", trusting(tmp_path))


def test_an_unsafe_shard_is_not_asked_for(server: Served, tiny: dict[str, bytes], tmp_path: Path) -> None:
    del server.files["/tiny/model.safetensors"]
    server.files["/tiny/model.safetensors.index.json"] = b'{"weight_map": {"a": "../../secret.safetensors"}}'
    with pytest.raises(ShardNameUnsafe):
        describe(f"{server.address}/tiny/", trusting(tmp_path))
    assert not [request for request in server.requests if "secret" in request.path]


def test_an_unreachable_host_is_named(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SourceUnreachable, match="cannot be read") as raised:
        describe(f"http://127.0.0.1:{port}/m/", trusting(tmp_path))
    assert raised.value.retryable
    with pytest.raises(SourceUnreachable, match="cannot be found"):
        describe("https://no-such-host.invalid/m/", source_settings(tmp_path))


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        settings = trusting(tmp_path, read_timeout_seconds=0.2)
        with pytest.raises(SourceUnreachable):
            describe(f"http://127.0.0.1:{mute.getsockname()[1]}/m/", settings)


def test_tls_is_checked_by_name_though_the_connection_is_by_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, other = self_signed(tmp_path, "localhost"), self_signed(tmp_path, "elsewhere.example")
    files = contents(random_llama(tmp_path / "tiny"))
    settings = source_settings(tmp_path, allowed_private_hosts=["localhost"])
    for certificate, accepted in ((good, True), (other, False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with serve(Served(files={f"/t/{name}": data for name, data in files.items()}), tls=context) as served:
            uri = served.address.replace("127.0.0.1", "localhost") + "/t/"
            if accepted:
                assert contents(fetch(uri, settings).directory) == files
                assert served.requests[0].headers["host"].startswith("localhost:")
            else:
                with pytest.raises(SourceUnreachable, match="certificate"):
                    describe(uri, settings)


def test_a_text_on_a_private_host_is_refused_at_submit(tmp_path: Path) -> None:
    with pytest.raises(SourceNotAllowed, match="private address"):
        check_text_uri("https://127.0.0.1/text.txt", source_settings(tmp_path))


def self_signed(directory: Path, name: str) -> Path:
    """A PEM file with key and certificate for a host name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
