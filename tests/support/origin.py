"""A scripted origin: an HTTP server in this process that serves what it was given, well or as badly as a script says.

    with HostileOrigin() as origin:
        origin.put("/model.bin", data, etag='"v1"')
        origin.script("/model.bin", ResetAfter(1000), Status(503, {"Retry-After": "1"}))
        origin.url("/model.bin")      # the first request is reset, the second gets 503, all others are served well
        origin.requests               # what was asked, in order

The faults are in `tests.support.origin_faults`. A fault is consumed by one request for its path (GET and HEAD
alike). Several faults for one request: `Both(a, b)`.
`always(path, fault)` spoils every request that no script is for.
Without faults it honours Range, If-Match and If-Unmodified-Since, and keeps connections alive. `Stall` lasts until the
origin is closed, and so do `Drip` and `Endless`. With `tls=` (an `ssl.SSLContext`) it speaks https.

Law: real sockets, on 127.0.0.1 only; every thread and connection ends with the `with` block.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cached.contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from tests.support.origin_faults import Fault, Reply

_SIOCOUTQ = 0x5411  # how many bytes were sent and not yet acknowledged, see tcp(7)


@dataclass(frozen=True)
class Seen:
    """One request. `connection` numbers the connections in the order they were accepted; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    connection: int


@dataclass
class _Object:
    data: memoryview
    etag: str | None
    last_modified: str | None
    content_type: str
    headers: Mapping[str, str]


class HostileOrigin:
    """See the module's docstring. Thread-safe."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, host: str = "localhost", port: int = 0) -> None:
        """`host`: the name in the URLs it gives, `localhost` or `127.0.0.1`; it answers to both. `port`: 0 for any."""
        self._host = host
        self._tls = tls
        self._lock = threading.Lock()
        self._objects: dict[str, _Object] = {}
        self._scripts: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}
        self._requests: list[Seen] = []
        self._released = threading.Event()
        self._connections: dict[socket.socket, int] = {}
        self._accepted = 0
        self.most_connections = 0  # that stood at the same time
        self._server = _Server(self, port)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def put(
        self,
        path: str,
        data: bytes,
        *,
        etag: str | None = None,
        last_modified: str | None = None,
        content_type: str = "application/octet-stream",
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Serve `data` at `path`, with more `headers`; returns its URL."""
        with self._lock:
            self._objects[path] = _Object(memoryview(data), etag, last_modified, content_type, headers or {})
        return self.url(path)

    def publish(self, folder: str, files: Mapping[str, bytes]) -> Manifest:
        """Serve files with ETags below `folder`, and their manifest, as `holdfast publish` leaves them; returns it."""
        entries = [FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items()]
        manifest = Manifest.build(entries)
        for entry in entries:
            self.put(f"{folder}{entry.path}", files[entry.path], etag=f'"{entry.sha256[:16]}"')
        self.put(f"{folder}{MANIFEST_NAME}", manifest.canonical())
        return manifest

    def remove(self, path: str) -> None:
        with self._lock:
            del self._objects[path]

    def script(self, path: str, *faults: Fault) -> None:
        """Spoil the next requests for `path`, one fault each."""
        with self._lock:
            self._scripts[path].extend(faults)

    def always(self, path: str, fault: Fault) -> None:
        """Spoil every request for `path` that no script is for."""
        with self._lock:
            self._always[path] = fault

    def heal(self, path: str) -> None:
        """Spoil no request for `path` from now on."""
        with self._lock:
            self._scripts.pop(path, None)
            self._always.pop(path, None)

    def url(self, path: str) -> str:
        return f"{'https' if self._tls else 'http'}://{self._host}:{self.port}{path}"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def requests(self) -> list[Seen]:
        with self._lock:
            return list(self._requests)

    def drop_connections(self) -> None:
        """Close every connection that is open now."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self.drop_connections()
        self._server.server_close()  # joins the threads of the connections

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- what the handler needs ------------------------------------------------------------------------------------

    def _secure(self, connection: socket.socket) -> socket.socket:
        return self._tls.wrap_socket(connection, server_side=True) if self._tls else connection

    @contextlib.contextmanager
    def _counted(self, connection: socket.socket) -> Iterator[int]:
        with self._lock:
            if self._released.is_set():
                raise ConnectionAbortedError("the origin is closing")
            self._accepted += 1
            number = self._connections[connection] = self._accepted
            self.most_connections = max(self.most_connections, len(self._connections))
        try:
            yield number
        finally:
            with self._lock:
                del self._connections[connection]

    def _reply(self, seen: Seen) -> Reply:
        path = seen.path.partition("?")[0]
        with self._lock:
            self._requests.append(seen)
            script = self._scripts[path]
            fault = script.popleft() if script else self._always.get(path)
        reply, whole = self._due(seen)
        return fault.apply(reply, whole) if fault else reply

    def _due(self, seen: Seen) -> tuple[Reply, memoryview]:
        """The answer of a server that does all as it should, and the bytes of the object that it is about."""
        with self._lock:
            found = self._objects.get(seen.path.partition("?")[0])
        return (_served(found, seen.headers), found.data) if found else (_plain(404), memoryview(b""))


def _plain(status: int, **headers: str) -> Reply:
    return Reply(status, {"Content-Length": "0"}, memoryview(b"")).with_headers(**headers)


def _served(found: _Object, headers: Mapping[str, str]) -> Reply:
    """The answer of a server that does all as it should."""
    validators = {"ETag": found.etag, "Last_Modified": found.last_modified}
    if (wanted := headers.get("if-match")) is not None and wanted != found.etag:
        return _plain(412)
    since = headers.get("if-unmodified-since")
    changed = found.last_modified
    if since is not None and changed is not None and parsedate_to_datetime(changed) > parsedate_to_datetime(since):
        return _plain(412)
    size = len(found.data)
    base = Reply(200, {"Content-Type": found.content_type}, found.data)
    reply = base.with_headers(Accept_Ranges="bytes", Content_Length=str(size), **validators)
    reply = replace(reply, headers=reply.headers | dict(found.headers))
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
    if match is None:
        return reply
    start = int(match[1])
    end = min(int(match[2]) if match[2] else size - 1, size - 1)
    if start > end:
        return _plain(416, Content_Range=f"bytes */{size}")
    part = replace(reply, status=206, body=found.data[start : end + 1])
    return part.with_headers(Content_Length=str(end + 1 - start), Content_Range=f"bytes {start}-{end}/{size}")


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def __init__(self, origin: HostileOrigin, port: int) -> None:
        self.origin = origin
        super().__init__(("127.0.0.1", port), _handler_of(origin))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client hung up, or refused our certificate: part of the game."""


def _handler_of(origin: HostileOrigin) -> Callable[..., BaseHTTPRequestHandler]:
    def make(request: socket.socket, *arguments: Any) -> BaseHTTPRequestHandler:
        return _Handler(origin, request, *arguments)

    return make


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, origin: HostileOrigin, request: socket.socket, *arguments: Any) -> None:
        self._origin = origin
        secured = origin._secure(request)
        try:
            with origin._counted(secured) as self._number, contextlib.suppress(OSError):
                super().__init__(secured, *arguments)
        finally:
            secured.close()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self._origin._reply(Seen(self.command, self.path, headers, self._number))
        if reply.raw is not None and reply.ending == "drip":
            self._drip(reply.raw)
        elif reply.raw is not None:
            self.wfile.write(reply.raw)
        else:
            self._send(reply)
        if reply.ending == "stall":
            self._origin._released.wait()
        if reply.ending == "pause" and self.command != "HEAD":
            assert reply.resume is not None
            while not reply.resume.wait(0.1) and not self._origin._released.is_set():
                pass
            self.wfile.write(reply.body[reply.cut :])
        if reply.ending == "drip" and reply.raw is None:
            self._drip(reply.body[reply.cut :])
        if reply.ending == "endless":
            while not self._origin._released.is_set():
                self.wfile.write(reply.trailing)
        if reply.ending == "reset":
            # Linger of zero: close() sends RST, and drops what was not delivered yet; so let it be delivered first.
            _wait_until_delivered(self.connection)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if reply.ending == "close" and isinstance(self.connection, ssl.SSLSocket):
            self.connection.settimeout(0)  # say that this is the end, and don't wait for the client to say so too
            with contextlib.suppress(ssl.SSLWantReadError):
                self.connection.unwrap()
        if reply.ending not in ("keep", "pause"):
            self.close_connection = True

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.do_GET()

    def _drip(self, data: bytes | memoryview) -> None:
        for byte in data:
            if self._origin._released.wait(0.01):
                break
            self.wfile.write(bytes([byte]))

    def _send(self, reply: Reply) -> None:
        lines = [f"HTTP/1.1 {reply.status} Scripted", *(f"{name}: {value}" for name, value in reply.headers.items())]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if self.command == "HEAD":
            self.wfile.write(head)
            return
        body = reply.body if reply.cut is None else reply.body[: reply.cut]
        if reply.chunk is not None:
            self.wfile.write(head)
            for at in range(0, len(body), reply.chunk):
                part = body[at : at + reply.chunk]
                self.wfile.write(b"%x;name=value\r\n%b\r\n" % (len(part), bytes(part)))
            if reply.cut is None:
                self.wfile.write(b"0\r\nTrailer: x\r\n\r\n" + reply.trailing)
        elif reply.trailing and reply.ending != "endless":
            # One segment: what is too much arrives together with the end of the body.
            self.wfile.write(head + bytes(body) + reply.trailing)
        else:
            self.wfile.write(head)
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests look at `requests` instead."""


def _wait_until_delivered(connection: socket.socket) -> None:
    unsent = b"\0\0\0\0"
    broken = select.poll()
    broken.register(connection, 0)  # once the client has hung up, what it did not take counts as unsent for ever
    while struct.unpack("i", fcntl.ioctl(connection.fileno(), _SIOCOUTQ, unsent))[0] and not broken.poll(0):
        time.sleep(0.001)
