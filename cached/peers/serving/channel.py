"""The connection of a peer, in clear or over TLS: received with a time limit, sent to by sendfile(2) where that can be.

Law: blocking, one thread a connection. In clear the limits are the kernel's: a timeout of Python's makes the descriptor
non-blocking, and sendfile(2) with it. Over TLS the bytes of a blob pass through this process, which encrypts them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Protocol

from cached.peers.serving.contents import OpenRange, send_chunk

_RECEIVED_AT_ONCE = 64 * 1024
_ENCRYPTED_AT_ONCE = 1024 * 1024


class Channel(Protocol):
    """A peer's connection, of one thread; another one may shut it down."""

    def begin(self, seconds: float) -> None:
        """Agree on the connection's secrets, if it has any. Raises OSError, also where it takes longer."""

    def receive(self, seconds: float) -> bytes | None:
        """Return some bytes, none at the end of the connection; None where none come in time. Raises OSError."""

    def send(self, data: bytes, *, is_more_to_come: bool = False) -> None:
        """Send bytes; raises OSError, also where the peer takes none for long."""

    def send_chunk(self, opened: OpenRange, offset: int, length: int) -> None:
        """Send bytes of an open range; raises OSError: of the connection or of the disk."""

    def shut_down(self) -> None:
        """Wake the thread: its next use of the connection fails."""

    def close(self) -> None:
        """Close the connection."""


ChannelMaker = Callable[[socket.socket, float], Channel]  # of an accepted socket, and the seconds that a send may stall


class ClearChannel:
    """A connection in clear."""

    def __init__(self, accepted: socket.socket, stall_s: float) -> None:
        self._socket = accepted
        self._limit_s = 0.0  # of the next recv(2)
        accepted.settimeout(None)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _pack_seconds(stall_s))
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(self, seconds: float) -> None:
        """Do nothing: there are no secrets."""

    def receive(self, seconds: float) -> bytes | None:
        """Return some bytes, none at the end of the connection; None where none come in time."""
        if seconds != self._limit_s:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _pack_seconds(seconds))
            self._limit_s = seconds
        try:
            return self._socket.recv(_RECEIVED_AT_ONCE)
        except BlockingIOError:
            return None

    def send(self, data: bytes, *, is_more_to_come: bool = False) -> None:
        """Send bytes, together with those that follow if there are more to come."""
        self._socket.sendall(data, socket.MSG_MORE if is_more_to_come else 0)

    def send_chunk(self, opened: OpenRange, offset: int, length: int) -> None:
        """Let the kernel send bytes of a file."""
        send_chunk(self._socket, opened, offset, length)

    def shut_down(self) -> None:
        """Wake the thread."""
        _shut_down(self._socket)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class TlsChannel:
    """A connection over TLS."""

    def __init__(self, accepted: socket.socket, stall_s: float, context: ssl.SSLContext) -> None:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        self._stall_s = stall_s

    def begin(self, seconds: float) -> None:
        """Shake hands."""
        self._socket.settimeout(seconds)
        self._socket.do_handshake()

    def receive(self, seconds: float) -> bytes | None:
        """Return some bytes, none at the end of the connection; None where none come in time."""
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(_RECEIVED_AT_ONCE)
        except TimeoutError:
            return None

    def send(self, data: bytes, *, is_more_to_come: bool = False) -> None:  # noqa: ARG002 - a record is sent at once
        """Encrypt and send bytes."""
        self._socket.settimeout(self._stall_s)
        self._socket.sendall(data)

    def send_chunk(self, opened: OpenRange, offset: int, length: int) -> None:
        """Read, encrypt and send bytes of a file."""
        end = offset + length
        while offset < end:
            data = os.pread(opened.descriptor, min(_ENCRYPTED_AT_ONCE, end - offset), offset)
            if not data:
                raise OSError("the blob ended early")
            self.send(data)
            offset += len(data)

    def shut_down(self) -> None:
        """Wake the thread."""
        # Not SSLSocket's own: that forgets the keys, and what another thread sends then would go in clear.
        _shut_down(self._socket)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _pack_seconds(seconds: float) -> bytes:
    """Return a timeval that is not 0, which would mean without a limit."""
    return struct.pack("@ll", int(seconds), max(1, int(seconds % 1 * 1_000_000)))


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
