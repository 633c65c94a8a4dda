"""Bytes over HTTP from hosts that users name, without letting them reach what only we can reach.

A host is resolved once, every address of it is judged, and the connection goes to an address that was judged: a name
that answers differently the second time changes nothing. TLS and the Host header keep the name. Redirects are followed
here, a bounded number, each judged anew. Proxies from the environment are not used.
"""

import ipaddress
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import certifi
import httpcore

from paredown.core.errors import SourceError, SourceNotAllowed, SourceNotFound, SourceUnreachable
from paredown.core.settings import Settings
from paredown.core.sources.base import CHUNK_BYTES, SourceChanged, SourceFile

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# https://www.rfc-editor.org/rfc/rfc6052: an IPv4 address behind a translator.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether anyone on the internet could reach it: nothing private, local, reserved or multicast, however wrapped."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class _JudgingBackend(httpcore.NetworkBackend):
    """Resolves and judges a host, then connects to the judged address."""

    def __init__(self, trusted: frozenset[str]) -> None:
        self._trusted = trusted
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = judged_addresses(host, port, self._trusted)
        for position, address in enumerate(addresses):
            try:
                return self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(addresses) - 1:
                    raise
        raise httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(self, path: str, *_: Any, **__: Any) -> httpcore.NetworkStream:
        raise SourceNotAllowed(f"{path} is a socket of this machine.")

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


def judged_addresses(host: str, port: int, trusted: frozenset[str]) -> list[str]:
    """The host's addresses. Raises SourceNotAllowed where one is private and neither it nor the host is trusted."""
    bare = host.strip("[]").rstrip(".").lower()
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceUnreachable(f"The host {bare[:200]} cannot be found; check the address.") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if is_trusted(bare, port, trusted):
        return addresses
    for address in addresses:
        judged = ipaddress.ip_address(address.partition("%")[0])
        if not is_public(judged) and not is_trusted(str(judged), port, trusted):
            raise SourceNotAllowed(
                f"{bare[:200]} is at a private address, which this service does not fetch from; an operator can list "
                "the host in PARE_ALLOWED_PRIVATE_HOSTS."
            )
    return addresses


def is_trusted(host: str, port: int, trusted: frozenset[str]) -> bool:
    """Entries are hosts, or hosts with a port."""
    return host in trusted or f"{host}:{port}" in trusted


@dataclass(frozen=True)
class Head:
    """What the answer to a request for a file says of the file."""

    size_bytes: int | None
    identity: str | None
    start: int


@dataclass
class HttpClient:
    """GET with ranges, redirects and bounded waits. `headers` go to `headers_host` only, never along a redirect."""

    settings: Settings
    trusted: frozenset[str] = frozenset()
    headers: Mapping[str, str] = field(default_factory=dict)
    headers_host: str | None = None

    def __post_init__(self) -> None:
        self.trusted |= {host.strip("[]").lower() for host in self.settings.allowed_private_hosts}
        # The system's certificates (SSL_CERT_FILE included), and the usual ones where a container has none.
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            network_backend=_JudgingBackend(self.trusted),
            max_connections=4,
            keepalive_expiry=30,
        )

    def close(self) -> None:
        self._pool.close()

    def judge(self, url: str) -> None:
        """Refuse an address by its scheme and its host's addresses, without a request. Raises SourceError."""
        self._judge_scheme(url)
        parts = urlsplit(url)
        judged_addresses(parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443), self.trusted)

    def head(self, url: str) -> Head | None:
        """Size and identity of a file, by asking for its first byte; None where there is no such file."""
        try:
            with self._get(url, {"Range": "bytes=0-0"}) as answer:
                return _head(answer)
        except SourceNotFound:
            return None

    def stream(self, url: str, start: int, length: int | None, identity: str | None) -> Iterator[bytes]:
        """Bytes from `start`. Raises SourceUnreachable where the file is no longer the one that `identity` names."""
        end = "" if length is None else str(start + length - 1)
        headers = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}
        left = length
        with self._get(url, headers) as answer:
            head = _head(answer)
            if identity is not None and head.identity != identity:
                raise SourceChanged(_shown(url))
            # A server that knows no ranges sends the whole file: what comes before `start` is let go.
            if answer.status == 416:
                return
            unwanted = start - head.start
            if unwanted < 0:
                raise SourceUnreachable(f"{_shown(url)} answered with another range than was asked for.")
            with _named(url):
                for chunk in answer.iter_stream():
                    piece = chunk[unwanted:] if unwanted else chunk
                    unwanted = max(0, unwanted - len(chunk))
                    if left is not None:
                        piece = piece[:left]
                        left -= len(piece)
                    for first in range(0, len(piece), CHUNK_BYTES):
                        yield piece[first : first + CHUNK_BYTES]
                    if left == 0:
                        return

    @contextmanager
    def _get(self, url: str, headers: Mapping[str, str]) -> Iterator[httpcore.Response]:
        asked = url
        for _ in range(MAX_REDIRECTS + 1):
            self._judge_scheme(url)
            host = urlsplit(url).hostname
            sent = {"Accept-Encoding": "identity", "User-Agent": "pare", **headers}
            if host == self.headers_host:
                sent |= self.headers
            with _named(asked), self._stream(url, sent) as answer:
                location = _header(answer, b"location")
                if answer.status not in _REDIRECTS or location is None:
                    _judge_status(answer, asked)
                    yield answer
                    return
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise SourceUnreachable(f"{_shown(asked)} redirects to no usable address.") from error
        raise SourceUnreachable(f"{_shown(asked)} redirects more than {MAX_REDIRECTS} times.")

    @contextmanager
    def _stream(self, url: str, headers: Mapping[str, str]) -> Iterator[httpcore.Response]:
        timeouts = {
            "connect": self.settings.connect_timeout_seconds,
            "read": self.settings.read_timeout_seconds,
            "write": self.settings.read_timeout_seconds,
            "pool": self.settings.read_timeout_seconds,
        }
        with self._pool.stream("GET", url, headers=list(headers.items()), extensions={"timeout": timeouts}) as answer:
            yield answer

    def _judge_scheme(self, url: str) -> None:
        try:
            url.encode("ascii")
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise SourceError(f"{url[:200]!r} is not a usable address; write it in ASCII, escaped.") from error
        if parts.username is not None or parts.password is not None:
            raise SourceNotAllowed("An address must not hold a user name or a password: jobs are shown to others.")
        plain = parts.scheme == "http" and is_trusted(host.lower(), port or 80, self.trusted)
        if parts.scheme != "https" and not plain:
            raise SourceNotAllowed(f"{_shown(url)} is not https://, which models and texts are fetched over.")
        if not host:
            raise SourceError(f"{url[:200]} names no host.")


def _shown(url: str) -> str:
    """The address without its query, which may hold a signature."""
    return url.partition("?")[0][:300]


def _header(answer: httpcore.Response, name: bytes) -> str | None:
    found = next((value for key, value in answer.headers if key.lower() == name), None)
    return found.decode("latin-1") if found is not None else None


def _judge_status(answer: httpcore.Response, url: str) -> None:
    shown = _shown(url)
    if answer.status in (404, 410):
        raise SourceNotFound(f"{shown} does not exist.")
    if answer.status in (401, 403):
        raise SourceNotAllowed(f"{shown} may not be read: the server answered {answer.status}.")
    if answer.status not in (200, 206, 416):
        raise SourceUnreachable(f"{shown} answered {answer.status}; retry, or check the address.")
    if _header(answer, b"content-encoding") not in (None, "identity"):
        raise SourceUnreachable(f"{shown} is sent compressed though it was asked for plain.")


def _head(answer: httpcore.Response) -> Head:
    length = _number(_header(answer, b"content-length"))
    start, size = 0, length
    if answer.status in (206, 416):
        # "bytes 0-0/1234", or "bytes */0" of an empty file
        span, _, total = (_header(answer, b"content-range") or "").removeprefix("bytes ").partition("/")
        size = _number(total)
        start = _number(span.partition("-")[0]) or 0
        if answer.status == 416:
            start = size or 0
    etag = _header(answer, b"etag")
    # A weak ETag does not promise equal bytes; the date of the last change, with the size, promises about as much.
    weak = etag is None or etag.startswith("W/")
    return Head(size, _header(answer, b"last-modified") if weak else etag, start)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


@contextmanager
def _named(url: str) -> Iterator[None]:
    try:
        yield
    except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol) as error:
        raise SourceError(f"{_shown(url)} is not a usable address: {str(error)[:200]}.") from error
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
        reason = str(error) or type(error).__name__
        raise SourceUnreachable(f"{_shown(url)} cannot be read: {reason[:200]}.") from error


def http_file(client: HttpClient, url: str, name: str) -> SourceFile | None:
    """The file behind an address; None where there is none. Raises SourceUnreachable where its size is not told."""
    head = client.head(url)
    if head is None:
        return None
    if head.size_bytes is None:
        raise SourceUnreachable(f"{_shown(url)} does not tell its size, so it cannot be checked.")
    return SourceFile(path=name, size_bytes=head.size_bytes, identity=head.identity)
