"""Pkt-lines: the framing of Git's answers, and the side bands within it.

Law: reads no further than one line ahead, whatever a server announces. Format: gitprotocol-common(5),
gitprotocol-v2(5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import Enum

from cached.contract.errors import Permanent, Transient
from cached.sources.oauth import quoted
from cached.transport.pages import page_error, page_in

ReadInto = Callable[[memoryview], int]
_MAX_LINE_BYTES = 65520
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_LOOKED_AT_BYTES = 512
_DATA, _PROGRESS, _ERROR = 1, 2, 3


class ControlPacket(Enum):
    """The packets without bytes."""

    FLUSH = b"0000"
    DELIMITER = b"0001"
    END = b"0002"
    EOF = b""  # the answer has ended


_MARKS = {mark.value: mark for mark in (ControlPacket.FLUSH, ControlPacket.DELIMITER, ControlPacket.END)}


def encode(lines: Iterable[str | ControlPacket]) -> bytes:
    """Return a request of lines, each with a line feed at its end."""
    return b"".join(
        line.value if isinstance(line, ControlPacket) else b"%04x%b\n" % (len(line.encode()) + 5, line.encode())
        for line in lines
    )


class Packets:
    """The packets of an answer. `read_into`: fills its view unless the answer ends; `where`: the repository, for
    messages."""

    def __init__(self, read_into: ReadInto, where: str) -> None:
        self._read_into = read_into
        self.where = where

    def next(self) -> bytes | ControlPacket:
        """Return the next packet. Raises `Transient` (`bad_response`) for what is none, `Permanent` (`refused`) for an
        error that the server sends as one."""
        head = self._read(4)
        if not head:
            return ControlPacket.EOF
        if head in _MARKS:
            return _MARKS[head]
        size = int(head, 16) - 4 if _HEX.fullmatch(head) else -1
        if not 0 <= size <= _MAX_LINE_BYTES - 4:
            raise self._no_packet(head)
        data = self._read(size)
        if len(data) < size:
            raise self.bad(f"an answer that ends after {len(data)} of {size} bytes of a packet")
        if data.startswith(b"ERR "):
            raise self.refused(data[4:])
        return data

    def line(self) -> str | ControlPacket:
        """Return the next packet as text, without its line feed."""
        found = self.next()
        return found if isinstance(found, ControlPacket) else found.decode("utf-8", "replace").removesuffix("\n")

    def bad(self, found: str) -> Transient:
        """Return the error of an answer that no Git server sends."""
        return Transient(
            "bad_response",
            f"{self.where}: expected an answer of Git's protocol, found {found}",
            "check that the address is a repository's; a proxy in between may have cut or replaced the answer",
        )

    def refused(self, message: bytes) -> Permanent:
        """Return the error that the server sent."""
        said = quoted(message.decode("utf-8", "replace"))
        return Permanent("refused", f"{self.where}: the server says: {said}", "look at the server's log")

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: self._read_into(memoryview(data))]) if size else b""

    def _no_packet(self, head: bytes) -> Transient:
        beginning = head + self._read(_LOOKED_AT_BYTES)
        page = page_in(beginning)
        if page is not None:
            return page_error("an answer of Git's protocol", self.where, page)
        return self.bad(f"{beginning[:40]!r}")


class SideBand:
    """The bytes of the first band of an answer, from here to its flush packet."""

    def __init__(self, packets: Packets) -> None:
        self._packets = packets
        self._ended = False

    def read(self) -> bytes:
        """Return the next bytes, none at the end. Raises as `Packets.next`, also for an error in the third band."""
        while not self._ended:
            packet = self._packets.next()
            if packet is ControlPacket.FLUSH:
                self._ended = True
            elif isinstance(packet, ControlPacket):
                raise self._packets.bad("an answer that ends in the middle of a pack")
            elif packet[:1] == bytes([_DATA]):
                if len(packet) > 1:
                    return packet[1:]
            elif packet[:1] == bytes([_ERROR]):
                raise self._packets.refused(packet[1:])
            elif packet[:1] != bytes([_PROGRESS]):
                raise self._packets.bad("a packet of no side band")
        return b""
