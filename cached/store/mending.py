"""Put back what somebody took out of the store by hand: names, snapshots, links; say which bytes are gone for good.

Law: downloads nothing and trusts nothing new. A blob comes back only as the very file that was verified, from a
snapshot that still links it; a snapshot only from committed blobs, marked as never looked at, so that the scrub hashes
it first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from cached.contract import limits
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.verified import VerifiedFile, VerifiedRecord
from cached.store import blobs, durable, snapshots

_NEVER = "1970-01-01T00:00:00Z"


def is_named(layout: Layout, refs: Collection[ModelRef], digest: Digest) -> bool:
    """Tell whether the names lead to the snapshot and its records are there: a few looks, whatever its size."""
    snapshot = layout.public.snapshot(digest)
    try:
        return all(snapshots.pointed(layout, ref) == digest for ref in refs) and all(
            stat.S_ISREG(os.lstat(path).st_mode) for path in (snapshot.manifest, snapshot.verified, snapshot.lease)
        )
    except (OSError, HoldfastError):  # gone, or something else is there
        return False


def is_whole(layout: Layout, digest: Digest, manifest: Manifest) -> bool:
    """Tell whether each file of the snapshot is there and is its blob: two looks a file."""
    snapshot = layout.public.snapshot(digest)
    try:
        return all(
            os.path.samestat(os.lstat(snapshot.path / entry.path), os.lstat(layout.blob(entry.sha256)))
            for entry in manifest.files
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


def restore(layout: Layout, refs: Collection[ModelRef], digest: Digest, manifest: Manifest) -> frozenset[str]:
    """Make a version what it was, as far as its bytes are on the disk; returns the blobs that are nowhere any more:
    then nothing was done."""
    try:
        relink(layout, digest, manifest)
        lost = frozenset(sha256 for sha256 in manifest.blob_sizes() if not blobs.has(layout, sha256))
        if lost:
            return lost
        if not (is_named(layout, (), digest) and is_whole(layout, digest, manifest)):
            damaged = snapshots.trash(layout, digest)
            if damaged is not None:
                snapshots.delete_trash(damaged)
            snapshots.publish(layout, manifest, _NEVER)
        for ref in refs:
            if not is_named(layout, (ref,), digest):
                snapshots.point(layout, ref, digest)
    except OSError as error:
        raise durable.disk_error(error, f"restoring snapshot {digest}") from error
    return frozenset()


def relink(layout: Layout, digest: Digest, manifest: Manifest) -> None:
    """Link blobs that are missing again from the snapshot, where its file is the one that was verified."""
    snapshot = layout.public.snapshot(digest)
    missing = [entry for entry in manifest.files if not blobs.has(layout, entry.sha256)]
    if not missing:
        return
    try:
        record = VerifiedRecord.parse(snapshot.verified.read_bytes()).files
    except (OSError, HoldfastError) as error:
        if limits.shortage(error, "reading a record") is not None:
            raise  # else a file that is there would pass for lost
        return
    for entry in missing:
        path, blob = snapshot.path / entry.path, layout.blob(entry.sha256)
        condemned = (layout.quarantine / entry.sha256).exists()  # a crash came before its snapshot was taken away
        if not condemned and not blob.exists() and entry.path in record and _is_unchanged(path, record[entry.path]):
            durable.make_dir(blob.parent, durable.PRIVATE_DIR_MODE)
            os.link(path, blob, follow_symlinks=False)
            durable.fsync_dir(blob.parent)


def _is_unchanged(path: Path, seen: VerifiedFile) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and VerifiedFile.of(found, seen.verified_at) == seen
