"""The head of a peer's request: strict HTTP/1.1, read from a socket.

Law: bounded in bytes, lines and time before anything is looked at. What is not exactly what our client sends is
`BadRequest`: no folded or repeated header, no encoding, no whitespace to disagree about.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from cached.peers.messages import MAX_BODY_BYTES
from cached.peers.pieces import PIECE_BYTES
from cached.peers.serving.channel import Channel

MAX_HEAD_BYTES = 8 * 1024
_REQUEST_LINE = re.compile(rb"(GET|POST) (/[!-~]{0,1023}) HTTP/1\.1")
_HEADER = re.compile(rb"([A-Za-z0-9-]{1,64}): ([ -~]{0,1024})")
_TLS_HANDSHAKE = b"\x16\x03"  # the first bytes of a ClientHello's record
_RANGE = re.compile(r"bytes=(\d{1,16})-(\d{1,16})", re.ASCII)
_LENGTH = re.compile(r"\d{1,7}", re.ASCII)
_UNSUPPORTED = frozenset({"transfer-encoding", "expect", "upgrade"})


class BadRequest(Exception):
    """A request that is malformed or out of bounds. The text goes to the asker."""


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """A request; `headers` by lower-case name; `body_bytes`: the length of the body that follows, 0 without one."""

    method: str
    path: str
    headers: dict[str, str]
    body_bytes: int = 0

    def parse_range(self) -> tuple[int, int]:
        """Return the bytes `[start, end)` that are asked for. Raises `BadRequest` unless it is one range of at most one
        piece."""
        match = _RANGE.fullmatch(self.headers.get("range", ""))
        if match is None:
            raise BadRequest("expected one range: bytes=FIRST-LAST")
        start, end = int(match[1]), int(match[2]) + 1
        if not start < end <= start + PIECE_BYTES:
            raise BadRequest(f"expected a range of 1 to {PIECE_BYTES} bytes")
        return start, end


class RequestReader:
    """Reads the requests of one connection, one after another."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffered = bytearray()

    def read(self, idle_s: float, head_s: float) -> PeerRequest | None:
        """Return the next request; None where the peer closed, sent nothing for `idle_s`, or did not finish a head
        within `head_s` of its first byte. Raises `BadRequest`, or OSError."""
        deadline = None if not self._buffered else time.monotonic() + head_s
        while (end := self._buffered.find(b"\r\n\r\n")) < 0:
            if self._buffered.startswith(_TLS_HANDSHAKE):  # it has no line's end, and its sender waits for an answer
                raise BadRequest("expected HTTP in clear, found TLS: all nodes of a pool need --peer-tls-cert, or none")
            if len(self._buffered) >= MAX_HEAD_BYTES:
                raise BadRequest(f"expected a head of at most {MAX_HEAD_BYTES} bytes")
            if not self._receive(idle_s if deadline is None else deadline - time.monotonic()):
                return None
            if deadline is None:
                deadline = time.monotonic() + head_s
        return parse_head(self._take(end, end + 4))

    def read_body(self, request: PeerRequest, seconds: float) -> bytes | None:
        """Return the body of the request that was read last; None where it does not come within `seconds`. Raises
        OSError."""
        deadline = time.monotonic() + seconds
        while len(self._buffered) < request.body_bytes:
            if not self._receive(deadline - time.monotonic()):
                return None
        return self._take(request.body_bytes, request.body_bytes)

    def _take(self, length: int, used: int) -> bytes:
        data = bytes(self._buffered[:length])
        del self._buffered[:used]
        return data

    def _receive(self, seconds: float) -> bool:
        """Receive some bytes; return False where none come, or the peer closed."""
        if seconds <= 0:
            return False
        data = self._channel.receive(seconds) or b""
        self._buffered += data
        return bool(data)


def parse_head(head: bytes) -> PeerRequest:
    """Return the request of a head without its last empty line; raises `BadRequest`."""
    if len(head) > MAX_HEAD_BYTES:
        raise BadRequest(f"expected a head of at most {MAX_HEAD_BYTES} bytes")
    lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise BadRequest("expected GET or POST, a path, and HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadRequest("expected headers as `Name: value`")
        name = found[1].decode("ascii").lower()
        if name in headers:
            raise BadRequest("expected each header once")
        headers[name] = found[2].decode("ascii")
    method = match[1].decode("ascii")
    if not _UNSUPPORTED.isdisjoint(headers):
        raise BadRequest("expected a plain request")
    return PeerRequest(method, match[2].decode("ascii"), headers, _parse_length(method, headers.get("content-length")))


def _parse_length(method: str, text: str | None) -> int:
    """Return the length of the body that follows: a POST has one, a GET has none."""
    if method == "GET":
        if text is not None:
            raise BadRequest("expected no body")
        return 0
    if text is None or not _LENGTH.fullmatch(text) or not 0 < int(text) <= MAX_BODY_BYTES:
        raise BadRequest(f"expected a body of 1 to {MAX_BODY_BYTES} bytes, with its Content-Length")
    return int(text)
