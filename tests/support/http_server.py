"""An HTTP server in this process, for tests that write the answers themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]  # status, headers, body


@contextmanager
def serve_http(
    handler: Callable[..., BaseHTTPRequestHandler], kind: type[ThreadingHTTPServer] = ThreadingHTTPServer
) -> Iterator[str]:
    """Answer with `handler` on a free loopback port; yields `127.0.0.1:PORT`."""
    server = kind(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serve_replies(reply: Callable[[str, str, Message, bytes], Reply]) -> Iterator[str]:
    """Answer GET, HEAD and POST with what `reply` returns for method, target, headers and body, and keep connections;
    yields `127.0.0.1:PORT`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a head and its body are two writes: 40 ms apart otherwise

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, data = reply(self.command, self.path, self.headers, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with serve_http(Handler, QuietServer) as address:
        yield address


def make_range_reply(data: bytes, asked: str, headers: dict[str, str]) -> Reply:
    """Return the answer to a request for `data` with the header `Range: asked`; empty: for all of it."""
    if not asked.startswith("bytes="):
        return 200, headers, data
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
    if start >= len(data):
        return 416, headers | {"Content-Range": f"bytes */{len(data)}"}, b""
    return 206, headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1]


class QuietServer(ThreadingHTTPServer):
    """A server that writes no traceback."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client may leave in the middle."""
