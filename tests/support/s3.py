"""moto's S3 server, and a proxy before it that can hold a request until a test lets it go."""

import http.client
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3

from paredown.local.postgres import free_port

HOLD_SECONDS = 120


@contextmanager
def moto_server() -> Iterator[int]:
    """A process of its own; the port it listens on."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
                connection.request("GET", "/moto-api/")
                connection.getresponse().read()
                connection.close()
                break
            except OSError:
                assert time.monotonic() < deadline, "moto's server did not start"
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def client(endpoint: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )


class Gate:
    """Holds the requests whose line matches, until it is opened."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)
        self.reached = threading.Event()
        self.opened = threading.Event()


class GatedProxy(ThreadingHTTPServer):
    """Passes everything on to a server on this machine."""

    daemon_threads = True

    def __init__(self, upstream_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = upstream_port
        self._gates: list[Gate] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def hold(self, pattern: str) -> Iterator[Gate]:
        gate = Gate(pattern)
        self._gates.append(gate)
        try:
            yield gate
        finally:
            self._gates.remove(gate)
            gate.opened.set()

    def pass_gates(self, request: str) -> None:
        for gate in list(self._gates):
            if gate.pattern.search(request):
                gate.reached.set()
                gate.opened.wait(HOLD_SECONDS)


class _Handler(BaseHTTPRequestHandler):
    server: GatedProxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.pass_gates(f"{self.command} {self.path}")
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=60)
        try:
            upstream.request(self.command, self.path, body=body, headers=dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            # A client that was killed in the middle of its request: what these tests are about.
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serve_s3() -> Iterator[str]:
    """Address of an empty S3 server on a free port of 127.0.0.1."""
    with moto_server() as port:
        yield f"http://127.0.0.1:{port}"


s3_client = client
