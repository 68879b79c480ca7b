"""What an origin can do wrong: each fault takes the answer that was due and returns the one that is sent.

Law: values only; `tests.support.origin` acts on them. A new kind of fault is one more class with `apply`.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(frozen=True)
class Reply:
    """What is going to be sent; a fault returns a changed one.

    `cut`: send only so many bytes of `body`, then do `ending`: `keep` or `close` the connection, `reset` it, `stall`,
    `pause` until `resume` is set, or `drip` on byte by byte; `endless`: send `trailing` again and again. `raw`: send
    exactly these bytes and nothing else. `chunk`: the size of chunks. `trailing`: what is sent behind the body.
    """

    status: int
    headers: dict[str, str]
    body: memoryview
    cut: int | None = None
    ending: str = "keep"
    raw: bytes | None = None
    chunk: int | None = None
    trailing: bytes = b""
    resume: threading.Event | None = None

    def with_headers(self, **headers: str | None) -> Reply:
        """Set headers (`Content_Range="…"`), or remove them (None)."""
        changed = {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {name: value for name, value in self.headers.items() if name not in changed}
        return replace(self, headers=kept | {name: value for name, value in changed.items() if value is not None})


class Fault(Protocol):
    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        """Spoil `reply`, an answer about the object whose bytes are `whole`."""


@dataclass(frozen=True)
class Both:
    """Two faults for one request."""

    first: Fault
    second: Fault

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return self.second.apply(self.first.apply(reply, whole), whole)


@dataclass(frozen=True)
class Hangup:
    """Close the connection without an answer."""

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, raw=b"", ending="close")


@dataclass(frozen=True)
class ResetAfter:
    """Reset the connection after `sent` bytes of the body."""

    sent: int

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, cut=self.sent, ending="reset")


@dataclass(frozen=True)
class Truncate:
    """Close the connection in good order after `sent` bytes of the body."""

    sent: int

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, cut=self.sent, ending="close")


@dataclass(frozen=True)
class Stall:
    """Say nothing any more after `sent` bytes of the body (None: not even a head), and keep the connection open."""

    sent: int | None = 0

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        if self.sent is None:
            return replace(reply, raw=b"", ending="stall")
        return replace(reply, cut=self.sent, ending="stall")


@dataclass(frozen=True)
class Pause:
    """Say nothing after `sent` bytes of the body until the test sets `let_go`, then go on."""

    sent: int
    let_go: threading.Event

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, cut=self.sent, ending="pause", resume=self.let_go)


@dataclass(frozen=True)
class Drip:
    """After `sent` bytes of the body send the others one by one, a hundred a second."""

    sent: int = 0

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, cut=self.sent, ending="drip")


@dataclass(frozen=True)
class Extra:
    """Send more bytes than Content-Length says."""

    data: bytes = b"extra"

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, trailing=self.data)


@dataclass(frozen=True)
class FlipBit:
    """Change one bit of the byte at `offset` of the object, where the answer has it."""

    offset: int

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        match = re.match(r"bytes (\d+)", reply.headers.get("Content-Range", ""))
        index = self.offset - (int(match[1]) if match else 0)
        changed = bytearray(reply.body)
        if 0 <= index < len(changed):
            changed[index] ^= 1
        return replace(reply, body=memoryview(changed))


@dataclass(frozen=True)
class IgnoreRange:
    """Answer 200 with the whole object."""

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        whole_reply = replace(reply, status=200, body=whole)
        return whole_reply.with_headers(Content_Range=None, Content_Length=str(len(whole)))


@dataclass(frozen=True)
class RangeAs200:
    """Answer the range that was asked for, Content-Range and all, under status 200, as rclone does."""

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, status=200)


@dataclass(frozen=True)
class Headers:
    """Set headers, or remove them (None)."""

    headers: Mapping[str, str | None]

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return reply.with_headers(**{name.replace("-", "_"): value for name, value in self.headers.items()})


@dataclass(frozen=True)
class Status:
    """Answer `status` with this body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        own = {"Content-Length": str(len(self.body)), **self.headers}
        return Reply(self.status, own, memoryview(self.body))


@dataclass(frozen=True)
class Redirect:
    location: str
    status: int = 302

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return Reply(self.status, {"Location": self.location, "Content-Length": "0"}, memoryview(b""))


@dataclass(frozen=True)
class InChunks:
    """Send the body with Transfer-Encoding chunked, `size` bytes a chunk."""

    size: int = 1000

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, chunk=self.size).with_headers(Content_Length=None, Transfer_Encoding="chunked")


@dataclass(frozen=True)
class Raw:
    """Send exactly these bytes, then close."""

    data: bytes

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, raw=self.data, ending="close")


@dataclass(frozen=True)
class DripHead:
    """Send a head without an end, byte by byte, a hundred a second."""

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, raw=b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 1\r\n" * 10_000, ending="drip")


@dataclass(frozen=True)
class Endless:
    """Say nothing of a length, and go on after the body for as long as the client reads."""

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        endless = replace(reply, trailing=bytes(64 * 1024), ending="endless")
        return endless.with_headers(Content_Length=None, Content_Range=None)


@dataclass(frozen=True)
class DoFirst:
    """Do something at the origin while this request is being answered, and answer as `then` says."""

    action: Callable[[], object]
    then: Fault

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        self.action()
        return self.then.apply(reply, whole)


@dataclass(frozen=True)
class Content:
    """Answer 200 with this body instead of the object's."""

    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        own = {"Content-Length": str(len(self.data)), **self.headers}
        kept = {name: value for name, value in reply.headers.items() if name == "Content-Type"}
        return Reply(200, kept | own, memoryview(self.data))


@dataclass(frozen=True)
class EachTime:
    """Another fault for every request: `make` is given 0, 1, 2 …"""

    make: Callable[[int], Fault]
    count: Iterator[int] = field(default_factory=itertools.count)

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return self.make(next(self.count)).apply(reply, whole)


@dataclass(frozen=True)
class CloseAfterwards:
    """Answer well, and close the connection although the answer does not say so."""

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        return replace(reply, ending="close")
