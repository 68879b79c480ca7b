"""The chaining values of committed blobs: the states of SHA-256 at the boundaries of their pieces, for other nodes.

Law: a file a blob under `private/chains/`, which is a hint: it is lost, damaged or of no blob at no cost but a hash. So
nothing here is synced, and what does not end in its own sha256 counts for nothing.
"""

from __future__ import annotations

import hashlib
import os

from cached.contract.layout import TEMPORARY_PREFIX, Layout
from cached.store.blob import blobs
from cached.store.disk import durable

_SUM_BYTES = 32


def write(layout: Layout, sha256: str, states: bytes) -> None:
    """Keep the states of a blob, one after the other. Raises `HoldfastError`."""
    temporary = durable.temporary_beside(layout.chain(sha256))
    with durable.disk_errors(f"writing {layout.chain(sha256)}"):
        durable.make_dir(temporary.parent, durable.PRIVATE_DIR_MODE)
        durable.write_volatile(temporary, states + hashlib.sha256(states).digest(), 0o600)
        os.rename(temporary, layout.chain(sha256))


def read(layout: Layout, sha256: str, size_bytes: int) -> bytes | None:
    """Return the states of a blob, `size_bytes` in all; None if they are not known, or damaged."""
    try:
        with layout.chain(sha256).open("rb") as file:
            data = file.read(size_bytes + _SUM_BYTES + 1)
    except OSError:
        return None
    states, found = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    return states if len(states) == size_bytes and hashlib.sha256(states).digest() == found else None


def sweep(layout: Layout) -> None:
    """Delete what belongs to no blob, and what a crash left. Raises OSError."""
    try:
        names = os.listdir(layout.chains)
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(TEMPORARY_PREFIX) or blobs.size(layout, name) is None:
            layout.chains.joinpath(name).unlink(missing_ok=True)
