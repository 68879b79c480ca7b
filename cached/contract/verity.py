"""The fs-verity digest of a sealed file, from the kernel.

Law: reads only, works through a read-only mount. The kernel checks the bytes against the seal at each read, and fails
the read with EIO if they differ. Format: struct fsverity_digest, https://docs.kernel.org/filesystems/fsverity.html.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from enum import Enum

_MEASURE = 0xC0046686  # FS_IOC_MEASURE_VERITY
_LONGEST_DIGEST = 64
_ALGORITHMS = {1: "sha256", 2: "sha512"}
# A kernel or file system without fs-verity, a sandbox without ioctls (gVisor, virtiofs), a seccomp profile.
_CANNOT_TELL = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL})


class NoSeal(Enum):
    """Why there is no digest."""

    NONE = "not sealed"
    UNKNOWN = "not reported by this kernel"


def measure(descriptor: int) -> str | NoSeal:
    """Return the fs-verity digest of an open file, as `sha256:<hex>`. Raises OSError for a disk error."""
    buffer = bytearray(struct.pack("<HH", 0, _LONGEST_DIGEST) + bytes(_LONGEST_DIGEST))
    try:
        fcntl.ioctl(descriptor, _MEASURE, buffer, True)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return NoSeal.NONE
        if error.errno in _CANNOT_TELL:
            return NoSeal.UNKNOWN
        raise
    algorithm, size = struct.unpack_from("<HH", buffer)
    return f"{_ALGORITHMS.get(algorithm, algorithm)}:{buffer[4 : 4 + size].hex()}"
