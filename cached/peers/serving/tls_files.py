"""The certificate with which a node answers its pool over TLS, and the authorities by which it knows the others.

Law: reads the files again when they change, as a Secret's volume changes them; what cannot be used leaves the previous
ones in force. A node proves itself by a certificate with the pool's one name, an asker by the pool's key: addresses are
no names. Never shows a key.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import Permanent
from cached.peers.serving.channel import TlsChannel

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """PEM files: this node's certificate chain, its key, and the authorities of all nodes' certificates."""

    certificate: Path
    key: Path
    authorities: Path


class TlsFiles:
    """The TLS contexts of a pool's nodes. Thread-safe."""

    def __init__(self, paths: TlsPaths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._server = _Latest((paths.certificate, paths.key), self._make_server)
        self._client = _Latest((paths.authorities,), self._make_client)

    def read(self) -> None:
        """Read the files. Raises `Permanent` (`bad_peer_tls`)."""
        self.read_server()
        self.read_client()

    def read_server(self) -> ssl.SSLContext:
        """Return the current context of a server. Raises `Permanent` (`bad_peer_tls`) where there never was one."""
        with self._lock:
            return self._server.read()

    def read_client(self) -> ssl.SSLContext:
        """Return the current context of a client. Raises as `read_server` does."""
        with self._lock:
            return self._client.read()

    def open_channel(self, accepted: socket.socket, stall_s: float) -> TlsChannel:
        """Return the connection of a peer over TLS, with the current certificate."""
        return TlsChannel(accepted, stall_s, self.read_server())

    def _make_server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
        # With a password OpenSSL fails on an encrypted key; without one it asks the terminal.
        context.load_cert_chain(self._paths.certificate, self._paths.key, password="")
        return context

    def _make_client(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and name
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self._paths.authorities)
        return context


class _Latest:
    """A context that is made again when its files change."""

    def __init__(self, paths: tuple[Path, ...], make: Callable[[], ssl.SSLContext]) -> None:
        self._paths = paths
        self._make = make
        self._stamp: _Stamp = ()
        self._context: ssl.SSLContext | None = None

    def read(self) -> ssl.SSLContext:
        """Return the context of the files as they are now, or were when they could be used last."""
        try:
            found = [os.stat(path) for path in self._paths]
            stamp = tuple((each.st_mtime_ns, each.st_ino, each.st_size) for each in found)
            if self._context is None or stamp != self._stamp:
                self._context = self._make()
                self._stamp = stamp
        except OSError as error:  # ssl.SSLError is one
            if self._context is None:
                names = " and ".join(map(str, self._paths))
                reason = getattr(error, "reason", None) or error.strerror or "they cannot be read"
                raise Permanent(
                    "bad_peer_tls",
                    f"{names}: not usable for TLS between nodes: {reason}",
                    "give PEM files: a certificate chain, its key without a password, the authorities of all nodes",
                ) from error
        return self._context
