"""/healthz and /metrics of a dispatcher, on a port that an operator chooses."""

import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from paredown.dispatcher.loop import MAX_BACKOFF_SECONDS, Dispatcher

# A dispatcher that has not reached the database for so long does nobody any good.
STALE_SECONDS = 4 * MAX_BACKOFF_SECONDS


def serve(dispatcher: Dispatcher, port: int, host: str = "0.0.0.0") -> ThreadingHTTPServer:  # noqa: S104 - the container's
    """Answer in a thread until shutdown()."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/healthz":
                silent = time.monotonic() - dispatcher.turned_at
                healthy = silent < STALE_SECONDS
                status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, "text/plain", f"{'ok' if healthy else f'no turn for {silent:.0f} s'}\n".encode())
            elif self.path == "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")

        def log_message(self, *_: object) -> None:
            """Probes come every few seconds; nobody reads of them."""

        def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="monitor", daemon=True).start()
    return server
