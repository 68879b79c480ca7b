"""Whether a file or folder has a `flock`, which is what leases and doubts are.

Law: opens read-only, never writes; a lock of its own lasts for a moment.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def is_locked(path: str | Path, flags: int) -> bool:
    """Return whether `path`, opened with `flags`, is locked now, shared or not; False where it is missing. Locks it
    itself for a moment. Raises OSError."""
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
