"""The head of a peer's request: strict HTTP/1.1, read from a socket.

Law: bounded in bytes, lines and time before anything is looked at. What is not exactly what our client sends is
`BadRequest`: no folded or repeated header, no encoding, no whitespace to disagree about.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from dataclasses import dataclass

from cached.peers.pieces import PIECE_BYTES

MAX_HEAD_BYTES = 8 * 1024
_REQUEST_LINE = re.compile(rb"(GET) (/[!-~]{0,1023}) HTTP/1\.1")
_HEADER = re.compile(rb"([A-Za-z0-9-]{1,64}): ([ -~]{0,1024})")
_RANGE = re.compile(r"bytes=(\d{1,16})-(\d{1,16})", re.ASCII)
_UNSUPPORTED = frozenset({"transfer-encoding", "content-length", "expect", "upgrade"})  # no request has a body


class BadRequest(Exception):
    """A request that is malformed or out of bounds. The text goes to the asker."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request; `headers` by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]

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
    """Reads the requests of one blocking connection, one after another."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffered = bytearray()

    def read(self, idle_s: float, head_s: float) -> Request | None:
        """Return the next request; None where the peer closed, sent nothing for `idle_s`, or did not finish a head
        within `head_s` of its first byte. Raises `BadRequest`, or OSError."""
        deadline = None if not self._buffered else time.monotonic() + head_s
        while (end := self._buffered.find(b"\r\n\r\n")) < 0:
            if len(self._buffered) >= MAX_HEAD_BYTES:
                raise BadRequest(f"expected a head of at most {MAX_HEAD_BYTES} bytes")
            left_s = idle_s if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                return None
            # The kernel's own timeout: a Python one makes the descriptor non-blocking, and sendfile(2) with it.
            limit = struct.pack("@ll", int(left_s), max(1, int(left_s % 1 * 1_000_000)))
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            try:
                data = self._connection.recv(MAX_HEAD_BYTES)
            except BlockingIOError:
                return None
            if not data:
                return None
            if deadline is None:
                deadline = time.monotonic() + head_s
            self._buffered += data
        head = bytes(self._buffered[:end])
        del self._buffered[: end + 4]
        return parse_head(head)


def parse_head(head: bytes) -> Request:
    """Return the request of a head without its last empty line; raises `BadRequest`."""
    if len(head) > MAX_HEAD_BYTES:
        raise BadRequest(f"expected a head of at most {MAX_HEAD_BYTES} bytes")
    lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise BadRequest("expected GET, a path, and HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadRequest("expected headers as `Name: value`")
        name = found[1].decode("ascii").lower()
        if name in headers:
            raise BadRequest("expected each header once")
        headers[name] = found[2].decode("ascii")
    if not _UNSUPPORTED.isdisjoint(headers):
        raise BadRequest("expected no body")
    return Request(match[1].decode("ascii"), match[2].decode("ascii"), headers)
