"""A small HTTP server for tests: ranges, ETags, redirects, broken transfers. It remembers what it was asked."""

import hashlib
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Served:
    """What the server knows. Tests change it while it runs."""

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    extra_headers: dict[str, dict[str, str]] = field(default_factory=dict)
    # Path → bytes after which the connection is closed, once for each entry.
    breaks: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    requests: list[Request] = field(default_factory=list)
    address: str = ""

    def seen(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.note(path)
        if path in self.served.redirects:
            self.plain(302, b"", {"Location": self.served.redirects[path]})
        elif path in self.served.files:
            self.file(self.served.files[path], self.served.extra_headers.get(path, {}), body=body)
        else:
            self.plain(404, b"not here")

    def note(self, path: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.served.requests.append(Request(self.command, path, headers))

    def plain(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def file(self, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        headers = {"Accept-Ranges": "bytes", **headers}
        if self.served.etags:
            headers.setdefault("ETag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.served.ranges else None
        if asked is None:
            status, part = 200, data
        else:
            first = int(asked[1])
            if first >= len(data):
                self.plain(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            part = data[first : int(asked[2]) + 1 if asked[2] else None]
            status, headers["Content-Range"] = 206, f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(part)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.send_body(part)

    def send_body(self, part: bytes) -> None:
        breaks = self.served.breaks.get(self.path.partition("?")[0])
        if breaks and len(part) > breaks[0]:
            part = part[: breaks.pop(0)]
            self.close_connection = True
        try:
            self.wfile.write(part)
        except OSError:
            # A client that has read what it wanted hangs up.
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Tests read the list of requests instead."""


@contextmanager
def serve(
    served: Served | None = None, *, handler: type[Handler] = Handler, tls: ssl.SSLContext | None = None
) -> Iterator[Served]:
    """A server on a free port of 127.0.0.1, described by what it serves."""
    known = served if served is not None else Served()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"served": known}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a refused TLS handshake is what a test wants
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    known.address = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
