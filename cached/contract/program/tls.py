"""Load a TLS certificate and its key from memory: Python loads them from paths only.

Law: standard library only; no key is written to a disk.
"""

from __future__ import annotations

import os
import ssl


def load_identity(context: ssl.SSLContext, pem: bytes) -> None:
    """Load certificate chain and key. Raises `ssl.SSLError`, also for an encrypted key."""
    descriptor = os.memfd_create("holdfast-identity")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        # With a password OpenSSL fails on an encrypted key; without one it asks the terminal.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    finally:
        os.close(descriptor)
