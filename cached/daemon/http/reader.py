"""Read requests from a connection's bytes: HTTP/1.1 (RFC 9112), of bounded size.

Law: no I/O. What could be read in two ways (a length beside chunks, two lengths, a space before a colon, folded lines)
is refused, not guessed. A body is read whole before its request is handled, 1 MiB at most.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from urllib.parse import unquote

from cached.daemon.http.messages import Refused, Request

_MOST_LINE = 8 * 1024  # of the request line
_MOST_HEAD = 32 * 1024  # with all headers, and of a chunked body's trailers
_MOST_BODY = 1024 * 1024
_MOST_CHUNK_LINE = 256
_LINE = re.compile(rb"([A-Z]{1,20}) (?:http://[!-.0-~]+)?(/[!-~]*|\*) HTTP/(\d)\.(\d)")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class RequestReader:
    """The requests of one connection, in order: `feed` bytes, then `take` until it returns None."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._data = bytearray()
        self._searched = 0  # bytes of `_data` that have no end of a head or line
        self._head: Request | None = None  # of the request whose body is being read
        self._body = bytearray()
        self._rest: int | None = 0  # bytes of the body, or of its chunk, still to come; None: a chunk's size
        self._trailing = False
        self.expects_go_ahead = False  # the client waits for `100 Continue` before it sends the body

    def feed(self, data: bytes) -> None:
        """Add bytes of the connection."""
        self._data += data

    def take(self) -> Request | None:
        """Return the next whole request, None while it is not all here; raises `Refused`."""
        if self._head is None:
            head = self._take_head()
            if head is None:
                return None
            self._head = self._parse_head(head)
        if not self._take_body():
            return None
        request, self._head = replace(self._head, body=bytes(self._body)), None
        self._body = bytearray()
        return request

    def _take_until(self, end: bytes, most: int) -> bytes | None:
        """Remove the bytes up to `end` and return them without it; None if it is not here. Refuse more than `most`."""
        at = self._data.find(end, max(0, self._searched - len(end) + 1))
        if at > most or (at < 0 and len(self._data) > most):
            raise Refused(431)
        if at < 0:
            self._searched = len(self._data)
            return None
        taken = bytes(self._data[:at])
        del self._data[: at + len(end)]
        self._searched = 0
        return taken

    def _take_head(self) -> bytes | None:
        while self._data.startswith(b"\r\n"):  # RFC 9112, 2.2: empty lines before a request
            del self._data[:2]
        line, found, _ = self._data[: _MOST_LINE + 2].partition(b"\r\n")
        if len(line) > _MOST_LINE:
            raise Refused(414 if re.match(rb"[A-Z]{1,20} /", line) else 400)
        if found:
            _check_line(bytes(line))  # at once: what follows may be no headers at all
        return self._take_until(b"\r\n\r\n", _MOST_HEAD)

    def _parse_head(self, head: bytes) -> Request:
        line, *fields = head.split(b"\r\n")
        method, target, minor = _check_line(line)
        headers: dict[str, str] = {}
        for field in fields:
            parsed = _FIELD.fullmatch(field)
            if parsed is None:
                raise Refused(400)
            name, value = parsed[1].decode().lower(), parsed[2].decode("latin-1")
            if name in headers and name in ("content-length", "transfer-encoding", "host"):
                raise Refused(400)
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self._rest, self._trailing = _find_length(headers), False
        expected = headers.get("expect", "").lower()
        if expected not in ("", "100-continue"):
            raise Refused(417)
        self.expects_go_ahead = bool(expected) and minor > 0 and self._rest != 0
        tokens = {token.strip().lower() for token in headers.get("connection", "").split(",")}
        path = unquote(target.partition("?")[0], errors="replace")
        return Request(method, path, headers, b"", self._transport, minor > 0 and "close" not in tokens)

    def _take_body(self) -> bool:
        """Move bytes to the body; return whether it is complete."""
        if self._rest is not None and not self._is_chunked():
            self._move()
            return self._rest == 0
        while True:
            if self._trailing:
                if self._data.startswith(b"\r\n"):
                    del self._data[:2]
                    return True
                return len(self._data) > 1 and self._take_until(b"\r\n\r\n", _MOST_HEAD) is not None
            if self._rest is None:
                line = self._take_until(b"\r\n", _MOST_CHUNK_LINE)
                if line is None:
                    return False
                size = _CHUNK.fullmatch(line)
                if size is None:
                    raise Refused(400)
                self._rest = int(size[1], 16)
                if len(self._body) + self._rest > _MOST_BODY:
                    raise Refused(413)
                if self._rest == 0:
                    self._trailing = True
                    continue
            self._move()
            if self._rest or len(self._data) < 2:
                return False
            if not self._data.startswith(b"\r\n"):
                raise Refused(400)
            del self._data[:2]
            self._rest = None

    def _is_chunked(self) -> bool:
        return self._head is not None and "transfer-encoding" in self._head.headers

    def _move(self) -> None:
        assert self._rest is not None
        taken = self._data[: self._rest]
        self._body += taken
        del self._data[: len(taken)]
        self._rest -= len(taken)


def _check_line(line: bytes) -> tuple[str, str, int]:
    """Return method, target and minor version of a request line; raises `Refused`."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise Refused(400)
    if found[3] != b"1":
        raise Refused(505)
    return found[1].decode(), found[2].decode(), int(found[4])


def _find_length(headers: dict[str, str]) -> int | None:
    """Return the length of a request's body in bytes, None of one in chunks; raises `Refused`."""
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise Refused(400)
        if coding.strip().lower() != "chunked":
            raise Refused(501)
        return None
    if length is None:
        return 0
    if re.fullmatch(r"[0-9]{1,18}", length) is None:
        raise Refused(400)
    if int(length) > _MOST_BODY:
        raise Refused(413)
    return int(length)
