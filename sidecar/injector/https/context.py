"""The TLS context of a server whose certificate changes while it runs.

Law: private keys stay in memory, never on a disk. A certificate that is not usable leaves the previous one in force.
"""

from __future__ import annotations

import ssl

from cryptography import x509

from cached.contract.errors import Permanent
from cached.contract.program.tls import load_identity


class ServingTls:
    """`context` for a server; each handshake gets the latest certificate. `certificate` is in PEM, `expires` is its end
    in seconds since the epoch; empty and 0 before the first `set_certificate`."""

    def __init__(self) -> None:
        self.expires = 0.0
        self.certificate = b""
        self._key = b""
        self._current: ssl.SSLContext | None = None
        # It has no certificate itself: loading another into a context in use would keep the old one beside it where
        # the key's type changes, and break it where key and certificate do not match.
        self.context = _context()
        self.context.sni_callback = self._choose

    def set_certificate(self, certificate: bytes, key: bytes) -> bool:
        """Serve this certificate chain and key (PEM) from now on; return whether they changed. Raises `Permanent`
        (`invalid_certificate`), whose message quotes neither."""
        if (self.certificate, self._key) == (certificate, key):
            return False
        fresh = _context()
        try:
            expires = x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
            load_identity(fresh, certificate + b"\n" + key)
        except (ValueError, ssl.SSLError) as error:
            raise Permanent(
                "invalid_certificate",
                f"not a certificate and its key in PEM: {getattr(error, 'reason', None) or 'they cannot be read'}",
                "check tls.crt and tls.key; the certificate before stays in force",
            ) from error
        self.certificate, self._key = certificate, key
        self._current, self.expires = fresh, expires
        return True

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> int | None:
        """Select the certificate; OpenSSL calls it at every handshake, also where the client names no server."""
        if self._current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
