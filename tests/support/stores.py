"""Roots that are full already.

Law: made with the store's own functions, as a daemon leaves them, less their syncs.
"""

from __future__ import annotations

import os
import time

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import timestamp
from cached.store.start import recovery
from cached.store.version import snapshots


def fill_root(layout: Layout, versions: int, files: int) -> dict[ModelRef, Digest]:
    """Publish versions as the store does, less their syncs: blobs of eight bytes."""
    recovery.prepare(layout)
    published = {}
    for number in range(versions):
        entries = []
        for index in range(files):
            data = os.urandom(8)
            entries.append(FileEntry(f"part-{index}.bin", Digest.of(data).hex, len(data)))
            blob = layout.blob(entries[-1].sha256)
            blob.parent.mkdir(mode=0o700, exist_ok=True)
            blob.write_bytes(data)
            blob.chmod(0o444)
        ref = ModelRef(f"model-{number}", "v1")
        published[ref] = snapshots.publish(layout, Manifest.build(entries), timestamp(time.time()))
        snapshots.set_name(layout, ref, published[ref])
    return published
