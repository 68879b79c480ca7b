"""A reverse proxy on loopback that passes requests to a service, well or as badly as a case says.

Law: the standard library; real sockets on 127.0.0.1. A fault is used up by the requests that it is for.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"})
Choose = Callable[["ProxiedRequest"], bool]


@dataclass(frozen=True, slots=True)
class ProxiedRequest:
    """A request that came. Header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Fault:
    choose: Choose
    times: int | None
    apply: Callable[[_Handler, ProxiedRequest], bool]


def anything(_request: ProxiedRequest) -> bool:
    """Choose every request."""
    return True


@dataclass
class Front:
    """`url`: what the source is told to ask. `seen`: every request, in order. `rewrite`: changes the path and query
    that the service gets, for instance to have smaller pages; `alter`: changes headers and body of its answer, where
    the service at hand leaves out what the vendor's own sends."""

    upstream: str
    url: str = ""
    rewrite: Callable[[str], str] = str
    alter: Callable[[ProxiedRequest, dict[str, str], bytes], bytes] = lambda _request, _headers, body: body
    seen: list[ProxiedRequest] = field(default_factory=list)
    _faults: list[_Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        times: int | None = 1,
        choose: Choose = anything,
    ) -> None:
        """Answer `times` of the chosen requests (None: all) in place of the service."""

        def apply(handler: _Handler, _request: ProxiedRequest) -> bool:
            handler.reply(status, headers or {}, body)
            return True

        self._add(_Fault(choose, times, apply))

    def cut(self, at: int, *, times: int | None = 1, choose: Choose = anything) -> None:
        """Close the connection of `times` of the chosen requests after `at` bytes of the service's body; one whose body
        is no longer than that passes, and does not count."""

        def apply(handler: _Handler, request: ProxiedRequest) -> bool:
            if handler.pass_on(request, cut_at=at) <= at:
                with self._lock:
                    fault.times = None if fault.times is None else fault.times + 1
            return True

        fault = _Fault(choose, times, apply)
        self._add(fault)

    def before(self, call: Callable[[], None], *, choose: Choose = anything, skip: int = 0) -> None:
        """Call `call` before the next chosen request, once, after `skip` others have passed."""
        left = [skip]

        def apply(_handler: _Handler, _request: ProxiedRequest) -> bool:
            left[0] -= 1
            if left[0] == -1:
                call()
            return False

        self._add(_Fault(choose, skip + 1, apply))

    def mend(self) -> None:
        """Drop every fault."""
        with self._lock:
            self._faults.clear()

    def handle(self, handler: _Handler, request: ProxiedRequest) -> None:
        with self._lock:
            self.seen.append(request)
            due = [fault for fault in self._faults if fault.times != 0 and fault.choose(request)]
            for fault in due[:1]:
                fault.times = None if fault.times is None else fault.times - 1
        if not (due and due[0].apply(handler, request)):
            handler.pass_on(request)

    def _add(self, fault: _Fault) -> None:
        with self._lock:
            self._faults.append(fault)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, front: Front, *arguments: Any) -> None:
        self._front = front
        super().__init__(*arguments)

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._body = self.rfile.read(length) if length else b""
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._front.handle(self, ProxiedRequest(self.command, self.path, headers))

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def pass_on(self, request: ProxiedRequest, cut_at: int | None = None) -> int:
        """Answer as the service does; `cut_at`: no further than so many bytes of the body. Return how many it has."""
        upstream = urlsplit(self._front.upstream)
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        try:
            headers = {name: value for name, value in request.headers.items() if name not in _HOP}
            path = upstream.path + self._front.rewrite(self.path)
            connection.request(self.command, path, self._body or None, headers)
            answer = connection.getresponse()
            sent = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP - {"date"}}
            body = self._front.alter(request, sent, answer.read())
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
            self.send_response_only(answer.status, answer.reason)
            for name, value in sent.items():
                self.send_header(name, value)
            if answer.status not in (204, 304):
                self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(body if cut_at is None else body[:cut_at])
            self.close_connection = self.close_connection or cut_at is not None
            return len(body)
        finally:
            connection.close()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class _ProxyServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client may leave in the middle."""


@contextmanager
def front_of(upstream: str) -> Iterator[Front]:
    """Stand before `upstream` (`http://host:port`, perhaps with a path) until the end of the block."""
    front = Front(upstream)
    with _ProxyServer(("127.0.0.1", 0), lambda *arguments: _Handler(front, *arguments)) as server:
        front.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield front
        finally:
            server.shutdown()
            thread.join()
