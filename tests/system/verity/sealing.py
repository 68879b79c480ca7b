"""The fs-verity digest, computed without the kernel.

Law: pure. Format: https://docs.kernel.org/filesystems/fsverity.html, sha256, 4 KiB blocks, no salt.
"""

from __future__ import annotations

import hashlib
import struct

_BLOCK = 4096


def merkle_digest(data: bytes) -> str:
    """The fs-verity digest of `data` with sha256, 4 KiB blocks and no salt, by the kernel's documentation."""
    level = _hashes(data)
    while len(level) > 1:
        level = _hashes(b"".join(level))
    root = level[0] if level else bytes(32)
    descriptor = struct.pack("<BBBBIQ64s32s144x", 1, 1, 12, 0, 0, len(data), root, b"")
    return f"sha256:{hashlib.sha256(descriptor).hexdigest()}"


def _hashes(data: bytes) -> list[bytes]:
    return [hashlib.sha256(data[at : at + _BLOCK].ljust(_BLOCK, b"\0")).digest() for at in range(0, len(data), _BLOCK)]
