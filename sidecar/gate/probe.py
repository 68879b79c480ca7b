"""Answer the kubelet's probes and Prometheus over HTTP.

Law: serves three paths and reads one request per connection; never delays or fails the gate once it listens. Bare
sockets: http.server takes 30 ms to import, a fifth of the time in which a gate may open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from cached.contract.errors import Permanent
from cached.contract.program import limits

_REQUEST_BYTES = 8192
_PATIENCE_S = 5.0  # for a whole request, and for sending the response
_CONNECTIONS = 16  # the connection limit: one more closes the oldest, so that idle clients block no other
_END = b"\r\n\r\n"  # of a request's and a response's headers


@dataclass(slots=True)
class GateReadiness:
    """The state that probes report. `text` is for a person; `opened_at`: seconds since the epoch, once open."""

    text: str = "starting"
    opened_at: float | None = None


class Probe:
    """Listens on `address` (host, port) and answers in threads of its own until the process ends. The constructor
    raises `Permanent` (`listen_failed`) and `Transient` (`no_thread`)."""

    def __init__(self, address: tuple[str, int], readiness: GateReadiness) -> None:
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            raise limits.find_limit_error(error, f"listening on {host}:{port}") or Permanent(
                "listen_failed",
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                "choose another address with --listen; in a pod with hostNetwork, another gate or program has the port",
            ) from error
        self._readiness = readiness
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []  # connections, the oldest first
        limits.start_thread(threading.Thread(target=self._accept, name="probe", daemon=True), "answering probes")

    @property
    def address(self) -> str:
        """The `HOST:PORT` that is bound, also for port 0."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the client disconnected, or no descriptor is free: later ones may succeed
                time.sleep(0.05)
                continue
            with self._lock:
                self._open.append(connection)
                while len(self._open) > _CONNECTIONS:
                    with contextlib.suppress(OSError):  # its thread may be closing it
                        self._open.pop(0).shutdown(socket.SHUT_RDWR)
            answering = threading.Thread(target=self._serve, args=(connection,), name="probe-answer", daemon=True)
            if not limits.start_threads([answering]):
                self._serve(connection)  # without threads, one at a time

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_PATIENCE_S)
                request = _read_request(connection)
                if request:
                    connection.sendall(self._respond(request))
        except OSError:  # too slow, disconnected, or closed for a newer connection
            return
        finally:
            with self._lock:
                if connection in self._open:
                    self._open.remove(connection)

    def _respond(self, request: bytes) -> bytes:
        parts = request.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST, "bad request\n")
        method, path = parts[0], parts[1].split(b"?", 1)[0]
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD\n", allow="Allow: GET, HEAD\r\n")
        response = self._page(path)
        return response if method == b"GET" else response[: response.index(_END) + len(_END)]

    def _page(self, path: bytes) -> bytes:
        opened_at = self._readiness.opened_at
        if path == b"/readyz" and opened_at is None:
            return _response(HTTPStatus.SERVICE_UNAVAILABLE, f"{self._readiness.text}\n")
        if path == b"/readyz":
            return _response(HTTPStatus.OK, "ready\n")
        if path == b"/healthz":
            return _response(HTTPStatus.OK, "ok\n")
        if path == b"/metrics":
            return _response(HTTPStatus.OK, _metrics(opened_at), kind="text/plain; version=0.0.4; charset=utf-8")
        return _response(HTTPStatus.NOT_FOUND, "there are /readyz, /healthz and /metrics\n")


def _read_request(connection: socket.socket) -> bytes:
    """Read to the end of the headers; return nothing where the client disconnects, sends too much or is too slow."""
    request = b""
    deadline = time.monotonic() + _PATIENCE_S
    while _END not in request:
        more = connection.recv(_REQUEST_BYTES)
        request += more
        if not more or len(request) > _REQUEST_BYTES or time.monotonic() > deadline:
            return b""
    return request


def _response(status: HTTPStatus, text: str, *, kind: str = "text/plain; charset=utf-8", allow: str = "") -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\n{allow}Connection: close"
    )
    return head.encode() + _END + body


def _metrics(opened_at: float | None) -> str:
    from cached.contract.metrics import gate as table  # a gate that is not scraped opens without it
    from cached.contract.release import VERSION

    text = table.READY.head() + table.READY.sample(int(opened_at is not None))
    text += table.PROCESS_START.head() + table.PROCESS_START.sample(_process_start())
    text += table.BUILD_INFO.head() + table.BUILD_INFO.sample(1, VERSION)
    if opened_at is not None:
        text += table.OPENED.head() + table.OPENED.sample(round(opened_at, 3))
    return text


def _process_start() -> float:
    """Return this process's start in seconds since the epoch: proc(5), field 22 of stat, in ticks after boot."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
