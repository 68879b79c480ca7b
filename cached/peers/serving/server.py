"""The port that other nodes of the pool fetch from.

Law: a thread for each connection, none without one. So many uploads at once, the node served longest ago first; a
request that waits longer than `wait_s` is told to ask another node. What is not signed by the pool gets 401, whatever
it asks for. Past the limit of connections the longest idle one is closed, of those that never showed the pool's key if
there are any.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program import limits
from cached.peers import bundles
from cached.peers.access import NotOfThisPool, PoolKeys, SignedRequest, digest_content
from cached.peers.members import format_address, parse_address
from cached.peers.messages import (
    Announce,
    BadMessage,
    Reply,
    decode_announce,
    encode_announce,
    encode_holders,
    encode_reply,
)
from cached.peers.serving.channel import Channel, ChannelMaker, ClearChannel
from cached.peers.serving.contents import CHUNK_BYTES, Contents, OpenRange, PageCacheManners
from cached.peers.serving.request import BadRequest, PeerRequest, RequestReader
from cached.peers.trackers import TooMany
from cached.peers.uploads import Uploads, UploadVerdict
from cached.transport.connection.bandwidth import BandwidthLimit
from cached.transport.connection.cancel import Cancellation, Cancelled

_log = logging.getLogger(__name__)

_BLOB_PATH = re.compile(r"/v1/blobs/sha256/([0-9a-f]{64})(?:\?pieces=([0-9a-f]{64}))?")
_ANNOUNCE_PATH = re.compile(r"/v1/announces/([1-9][0-9]{0,4})")  # the port at which the asker serves
_PIECES_PATH = re.compile(r"/v1/versions/([0-9a-f]{64})/pieces")
_CHAIN_PATH = re.compile(r"/v1/versions/([0-9a-f]{64})/chain")
_DIGESTS_PATH = re.compile(r"/v1/versions/([0-9a-f]{64})/digests")
_MANIFEST_PATH = re.compile(r"/v1/manifests/sha256/([0-9a-f]{64})")
_SNAPSHOT_PATH = re.compile(r"/v1/snapshots/sha256/([0-9a-f]{64})")
_HOLDERS_PATH = re.compile(r"/v1/holders/sha256/([0-9a-f]{64})")
_NUMBERS = re.compile(r"\d+")
_REMEMBERED = 1024  # hosts that were refused
_BACKLOG = 256
_PAUSE_S = 1.0  # after a connection that could not be accepted
_LEAST_RATE, _LEAST_RATE_AFTER_S = 256 * 1024, 10.0  # of a reader, not counting our own limit
_REASONS = {
    200: "OK",
    206: "Partial Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    503: "Service Unavailable",
}


class Announces(Protocol):
    """Answers what other nodes say of versions. Thread-safe."""

    def announce(self, address: str, message: Announce, now: float) -> Reply:
        """Let the tracker of a version answer the node at `address`. Raises `TooMany` or `BadMessage`."""

    def seed(self, message: Announce) -> Announce | None:
        """Return what is here of a version, None for nothing; announce it from now on. Raises `BadMessage`."""

    def find_holders(self, digest: Digest) -> tuple[str, ...]:
        """Return nodes that have the snapshot of a manifest; asks all members, which takes seconds at most. Raises
        `TooMany`."""


class ServingMetrics(Protocol):
    """The metrics of what is served."""

    def sent(self, size: int) -> None:
        """Count bytes of blobs that were sent."""

    def refused(self, status: int) -> None:
        """Count a request that got an error status."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`uploads` at once, `queue` more may wait for `wait_s`; `rate` in bytes a second in all (None: no limit);
    a peer that takes no byte for `stall_s` is dropped. At most so many `connections`, each idle for `idle_s` at most, a
    thread of 45 KiB each: nodes that announce to a tracker each second keep theirs, else each announce is a new one. A
    head takes `head_s` at most."""

    uploads: int = 12
    queue: int = 64
    wait_s: float = 2.0
    rate: int | None = None
    stall_s: float = 2.0
    connections: int = 1024
    idle_s: float = 60.0
    head_s: float = 5.0


class PeerServer:
    """A listening port. `announces`: who answers the pool's announces; `read_keys` returns the pool's
    current keys, or raises `Permanent` while there are none; `clock` is in seconds since the epoch."""

    def __init__(
        self,
        contents: Contents,
        announces: Announces,
        read_keys: Callable[[], PoolKeys],
        settings: ServerSettings,
        metrics: ServingMetrics,
        clock: Callable[[], float] = time.time,
        open_channel: ChannelMaker = ClearChannel,
    ) -> None:
        self._open_channel = open_channel
        self._contents = contents
        self._announces = announces
        self._read_keys = read_keys
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._refusals = _Refusals()
        self._limit = BandwidthLimit(settings.rate, time.monotonic, time.sleep)
        self._lock = threading.Lock()
        self._uploads = Uploads[threading.Event](settings.uploads, settings.queue)
        self._connections: dict[_Connection, None] = {}
        self._closing = Cancellation()
        self._ended = threading.Event()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    def open(self, address: tuple[str, int]) -> tuple[str, int]:
        """Listen; return the bound address. Raises `Permanent` (`cannot_listen`) or `Transient` (`no_thread`)."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._listener = socket.create_server(address, family=family, backlog=_BACKLOG)
        except OSError as error:
            raise Permanent(
                "cannot_listen",
                f"{address[0]}:{address[1]}: {error.strerror or error}",
                "choose another address for peers, or end the process that uses it",
            ) from error
        acceptor = threading.Thread(target=self._accept, args=(self._listener,), name="peers", daemon=True)
        limits.start_thread(acceptor, "the port for peers")
        self._acceptor = acceptor
        bound = self._listener.getsockname()
        return bound[0], bound[1]

    def close(self) -> None:
        """Close the port and all connections, and wait for their threads."""
        self._closing.cancel()
        self._ended.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(2); close(2) alone does not
            self._listener.close()
        if self._acceptor is not None:
            self._acceptor.join()
        with self._lock:
            connections = list(self._connections)
        for each in connections:
            each.shut_down()
        for each in connections:
            each.thread.join()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.cancelled:
            try:
                accepted, address = listener.accept()
            except OSError as error:
                if self._closing.cancelled:
                    return
                reason = limits.find_limit_error(error, "accepting a peer")
                _log.warning("%s", reason or f"accepting a peer: {error.strerror or error}")
                self._ended.wait(_PAUSE_S)
                continue
            try:
                self._begin(accepted, address[0])
            except (OSError, HoldfastError) as error:  # reset by the peer since it was accepted; or no thread
                _log.debug("peer %s: %s", address[0], error)
                accepted.close()

    def _begin(self, accepted: socket.socket, peer: str) -> None:
        connection = _Connection(self._serve, self._open_channel(accepted, self._settings.stall_s), peer)
        with self._lock:
            if len(self._connections) >= self._settings.connections and not self._make_room():
                connection.channel.close()
                return
            self._connections[connection] = None
        try:
            limits.start_thread(connection.thread, "serving a peer")
        except HoldfastError as error:
            _log.warning("%s", error.message)
            self._end(connection)

    def _make_room(self) -> bool:
        """End a connection; return False where all are busy, or end already: so there are never more than twice as many
        as allowed. Call with the lock held."""
        idle = [each for each in self._connections if each.idle_since is not None and not each.is_ending]
        if not idle:
            return False
        min(idle, key=lambda each: (each.is_member, each.idle_since or 0.0)).shut_down()
        return True

    def _end(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.pop(connection, None)
        connection.channel.close()

    # --- one request -----------------------------------------------------------------------------------------------

    def _serve(self, connection: _Connection) -> None:
        """Serve the requests of one connection until it ends."""
        reader = RequestReader(connection.channel)
        settings = self._settings
        try:
            if not self._begin_channel(connection):
                return
            while not self._closing.cancelled:
                connection.idle_since = time.monotonic()
                request = reader.read(settings.idle_s, settings.head_s)
                connection.idle_since = None
                if request is None:
                    return
                if not self._is_of_pool(connection, request):
                    return
                connection.is_member = True
                body = reader.read_body(request, settings.head_s)
                if body is None:
                    return
                self._answer(connection, request, body)
        except (BadRequest, bundles.BadBundle) as error:
            self._refusals.log(connection.peer, str(error))
            self._refuse(connection, 400, str(error))
        except (OSError, Cancelled) as error:  # the peer, or the disk: the peer asks another node
            _log.debug("peer %s: %s", connection.peer, error)
        except Exception:  # noqa: BLE001 - one connection ends, the others go on
            _log.exception("serving peer %s", connection.peer)
        finally:
            self._end(connection)

    def _begin_channel(self, connection: _Connection) -> bool:
        """Shake hands where the pool speaks TLS; return False where the peer does not, or is of another pool."""
        try:
            connection.channel.begin(self._settings.head_s)
        except ssl.SSLError as error:
            why = error.reason or "the connection ended in the handshake"
            self._refusals.log(connection.peer, f"TLS: {why}; all nodes of a pool need --peer-tls-cert, or none")
            return False
        return True

    def _is_of_pool(self, connection: _Connection, request: PeerRequest) -> bool:
        headers = request.headers
        signed = SignedRequest(
            request.method, request.path, headers.get("range", ""), headers.get("content-digest", "")
        )
        try:
            self._read_keys().check(signed, headers.get("authorization", ""), self._clock())
        except NotOfThisPool as error:
            self._refusals.log(connection.peer, str(error))
            self._refuse(connection, 401, "expected a request that is signed by this pool")
            return False
        except HoldfastError:  # no key yet, which the log says once
            self._refuse(connection, 401, "this node has no key of a pool yet")
            return False
        return True

    def _answer(self, connection: _Connection, request: PeerRequest, body: bytes) -> None:
        blob, manifest = _BLOB_PATH.fullmatch(request.path), _MANIFEST_PATH.fullmatch(request.path)
        port, version = _ANNOUNCE_PATH.fullmatch(request.path), _PIECES_PATH.fullmatch(request.path)
        if body and digest_content(body) != request.headers.get("content-digest"):
            raise BadRequest("expected the body that was signed")
        if request.method == "POST" and port is not None:
            self._answer_announce(connection, int(port[1]), body)
        elif request.method == "POST" and request.path == "/v1/seeds":
            self._answer_seed(connection, body)
        elif request.method == "POST" and request.path == "/v1/blobs":
            self._answer_bundle(connection, bundles.decode_wanted(body))
        elif request.method == "POST":
            self._refuse(connection, 404, "no such resource")
        elif blob is not None:
            self._answer_blob(connection, blob, *request.parse_range())
        elif version is not None:
            self._answer_bytes(connection, self._contents.list_have(version[1]))
        elif manifest is not None:
            self._answer_bytes(connection, self._contents.read_manifest(Digest(manifest[1])))
        elif (chained := _CHAIN_PATH.fullmatch(request.path)) is not None:
            self._answer_bytes(connection, self._contents.read_chain(chained[1]))
        elif (hashed := _DIGESTS_PATH.fullmatch(request.path)) is not None:
            self._answer_bytes(connection, b"" if self._contents.want_digests(hashed[1]) else None)
        elif (snapshot := _SNAPSHOT_PATH.fullmatch(request.path)) is not None:
            self._answer_bytes(connection, b"" if self._contents.has_snapshot(Digest(snapshot[1])) else None)
        elif (wanted := _HOLDERS_PATH.fullmatch(request.path)) is not None:
            self._answer_holders(connection, Digest(wanted[1]))
        else:
            self._refuse(connection, 404, "no such resource")

    def _answer_announce(self, connection: _Connection, port: int, body: bytes) -> None:
        """Let the tracker of the version answer a node, which is the address that it asks from and the port it says."""
        address = format_address(connection.peer, port)
        try:
            parse_address(address)
            message = decode_announce(body)
            reply = self._announces.announce(address, message, time.monotonic())
        except TooMany as error:
            self._refuse(connection, 503, str(error))
        except ValueError as error:  # also `BadMessage`
            self._refusals.log(connection.peer, str(error))
            self._refuse(connection, 400, str(error))
        else:
            self._send(connection, 200, encode_reply(reply))

    def _answer_seed(self, connection: _Connection, body: bytes) -> None:
        try:
            found = self._announces.seed(decode_announce(body))
        except BadMessage as error:
            self._refuse(connection, 400, str(error))
        else:
            self._answer_bytes(connection, None if found is None else encode_announce(found))

    def _answer_holders(self, connection: _Connection, digest: Digest) -> None:
        try:
            self._answer_bytes(connection, encode_holders(self._announces.find_holders(digest)))
        except TooMany as error:
            self._refuse(connection, 503, str(error))

    def _answer_bytes(self, connection: _Connection, data: bytes | None) -> None:
        if data is None:
            self._refuse(connection, 404, "not here")
        else:
            self._send(connection, 200, data)

    def _answer_blob(self, connection: _Connection, path: re.Match[str], start: int, end: int) -> None:
        """Send a range of a blob; where the path names a version, say which of its pieces are here."""
        with self._contents.open_range(path[1], start, end) as opened:
            if opened is None:
                self._refuse(connection, 404, "not here")
                return
            if not self._wait_for_turn(connection.peer):
                self._refuse(connection, 503, "busy: ask another node")
                return
            try:
                self._send_range(connection, opened, None if path[2] is None else self._contents.list_have(path[2]))
            finally:
                self._end_turn(connection.peer)

    def _answer_bundle(self, connection: _Connection, sha256s: Sequence[str]) -> None:
        """Send those of these small blobs that are here, in one answer."""
        found = self._contents.find_small(sha256s)
        if not self._wait_for_turn(connection.peer):
            self._refuse(connection, 503, "busy: ask another node")
            return
        sent, sending_s = 0, 0.0
        try:
            self._send_head(connection, 200, sum(bundles.RECORD_BYTES + size for _, size in found))
            for records, size in self._contents.read_small(found):
                self._limit.take(size, self._closing)
                began = time.monotonic()
                connection.channel.send(records)
                sending_s += time.monotonic() - began
                sent += size
                _check_pace(sent, sending_s)
        finally:
            self._metrics.sent(sent)
            self._end_turn(connection.peer)

    def _wait_for_turn(self, peer: str) -> bool:
        """Wait until this peer may be served; return False if that takes too long."""
        turn = threading.Event()
        with self._lock:
            verdict = self._uploads.ask(peer, turn)
        if verdict is not UploadVerdict.WAIT:
            return verdict is UploadVerdict.SERVE
        if turn.wait(self._settings.wait_s):
            return True
        with self._lock:
            return not self._uploads.withdraw(peer, turn)  # else its turn came at the last moment

    def _end_turn(self, peer: str) -> None:
        with self._lock:
            following = self._uploads.end(peer)
        if following is not None:
            following.set()

    def _send_range(self, connection: _Connection, opened: OpenRange, have: bytes | None) -> None:
        manners = PageCacheManners(opened)
        more = [("Content-Range", f"bytes {opened.start}-{opened.end - 1}/{opened.size}")]
        if have is not None:
            more.append(("Holdfast-Pieces", base64.b64encode(have).decode("ascii")))
        self._send_head(connection, 206, opened.end - opened.start, *more)
        sent, sending_s = 0, 0.0
        try:
            while (offset := opened.start + sent) < opened.end:
                length = min(self._limit.chunk(CHUNK_BYTES), opened.end - offset)
                self._limit.take(length, self._closing)
                began = time.monotonic()
                connection.channel.send_chunk(opened, offset, length)
                sending_s += time.monotonic() - began
                sent += length
                _check_pace(sent, sending_s)
        finally:
            self._metrics.sent(sent)
            manners.drop_behind()

    def _refuse(self, connection: _Connection, status: int, text: str) -> None:
        self._metrics.refused(status)
        data = text.encode() + b"\n"
        with contextlib.suppress(OSError):
            self._send(connection, status, data)

    def _send(self, connection: _Connection, status: int, data: bytes) -> None:
        """Send a whole answer by one call."""
        connection.channel.send(self._make_head(status, len(data)) + data)

    def _send_head(self, connection: _Connection, status: int, length: int, *more: tuple[str, str]) -> None:
        head = self._make_head(status, length, *more)
        connection.channel.send(head, is_more_to_come=length > 0)

    def _make_head(self, status: int, length: int, *more: tuple[str, str]) -> bytes:
        with self._lock:
            serving, waiting = self._uploads.serving, self._uploads.waiting
        headers = (("Content-Length", str(length)), ("Holdfast-Load", f"{serving},{waiting}"), *more)
        lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("ascii")


def _check_pace(sent: int, sending_s: float) -> None:
    """Raise TimeoutError for a client that reads too slowly."""
    if sending_s > _LEAST_RATE_AFTER_S and sent < _LEAST_RATE * sending_s:
        raise TimeoutError(f"reads less than {_LEAST_RATE} bytes a second")


class _Connection:
    """A connection and its thread. `idle_since` is set while it waits for a request, in monotonic seconds; `is_member`
    from its first signed request on."""

    def __init__(self, serve: Callable[[_Connection], None], channel: Channel, peer: str) -> None:
        self.channel = channel
        self.peer = peer
        self.idle_since: float | None = time.monotonic()
        self.is_member = self.is_ending = False
        self.thread = threading.Thread(target=serve, args=(self,), name=f"peer {peer}"[:15], daemon=True)

    def shut_down(self) -> None:
        """Wake the thread: its next use of the socket fails."""
        self.is_ending = True
        self.channel.shut_down()


class _Refusals:
    """Why each host is refused: logged when that begins or changes, not with each request. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, str] = {}

    def log(self, host: str, why: str) -> None:
        """Log why a host is refused, unless it is what was logged of it last."""
        kind = _NUMBERS.sub("", why)
        with self._lock:
            if self._last.pop(host, None) == kind:
                self._last[host] = kind
                return
            self._last[host] = kind
            if len(self._last) > _REMEMBERED:
                del self._last[next(iter(self._last))]  # the one refused longest ago
        _log.warning("peer %s: refused: %s", host, why)
