"""A small HTTP proxy in this process: forwards absolute-form GETs and CONNECT tunnels, and remembers what it was asked.

Law: 127.0.0.1 only; every thread and connection ends with the `with` block.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.origin import Seen


class ForwardProxy:
    """`requires`: the Proxy-Authorization it wants, None for any; else it answers 407."""

    def __init__(self, requires: str | None = None) -> None:
        self.requires = requires
        self.requests: list[Seen] = []
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.closing = threading.Event()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, proxy: ForwardProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5

    def do_GET(self) -> None:
        if self._refused():
            return
        parts = urlsplit(self.path)
        onward = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
        resource = parts.path + (f"?{parts.query}" if parts.query else "")
        kept = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        with contextlib.closing(onward):
            onward.request("GET", resource, headers=kept)
            answer = onward.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())

    def do_CONNECT(self) -> None:
        if self._refused():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=120) as onward:
            self.send_response(200, "Connection established")
            self.end_headers()
            self._relay(onward)
        self.close_connection = True

    def _relay(self, onward: socket.socket) -> None:
        ends = {self.connection: onward, onward: self.connection}
        while not self.server.proxy.closing.is_set():
            readable, _, _ = select.select(list(ends), [], [], 0.02)
            for end in readable:
                data = end.recv(65536)
                if not data:
                    return
                ends[end].sendall(data)

    def _refused(self) -> bool:
        headers = {name.lower(): value for name, value in self.headers.items()}
        proxy = self.server.proxy
        proxy.requests.append(Seen(self.command, self.path, headers, 0))
        if proxy.requires is None or headers.get("proxy-authorization") == proxy.requires:
            return False
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests look at `requests` instead."""
