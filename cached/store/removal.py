"""Take versions away: the name first, then the snapshot, then the blobs that nothing links any more.

Law: never what somebody holds a lease on. Every step is a rename or an unlink, so a crash leaves only what recovery
sweeps.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from cached.contract.digest import Digest, is_hex
from cached.contract.layout import Layout
from cached.contract.lease import take_exclusive
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.store import blobs, durable, ingest, snapshots


@dataclass(frozen=True, slots=True)
class Swept:
    """Bytes given back: by committed blobs, and by what was dying (partial blobs, the quarantine)."""

    committed: int
    dying: int


def evict(
    layout: Layout, ref: ModelRef, digest: Digest, manifest: Manifest | None, needed: Collection[str]
) -> int | None:
    """Remove the name `ref`, and its snapshot unless `manifest` is None (another name points there too).

    Blobs that no snapshot links are deleted, except `needed`. Returns the bytes given back; None, with nothing done,
    where the snapshot is in use.
    """
    try:
        lease = take_exclusive(layout.public.snapshot(digest).lease)
        if lease is None and layout.public.snapshot(digest).path.exists():
            return None
        try:
            snapshots.unpoint(layout, ref)
            return 0 if manifest is None else _delete(layout, digest, manifest, needed)
        finally:
            if lease is not None:
                lease.close()
    except OSError as error:
        raise durable.disk_error(error, f"evicting {ref}") from error


def delete_unnamed(layout: Layout, digest: Digest, manifest: Manifest) -> int | None:
    """Remove a snapshot that no name points at; returns the bytes given back, None where it is in use."""
    try:
        lease = take_exclusive(layout.public.snapshot(digest).lease)
        if lease is None:
            return None
        with lease:
            return _delete(layout, digest, manifest, ())
    except OSError as error:
        raise durable.disk_error(error, f"deleting snapshot {digest}") from error


def sweep(layout: Layout, needed: Collection[str], busy: Collection[str]) -> Swept:
    """Delete blobs that no snapshot links, except `needed`; partial blobs, except those in `busy`; the quarantine."""
    committed = dying = 0
    try:
        # A blob whose digest was not known beforehand is noted before it appears, so that nobody deletes it in between.
        noted = {ingest.committed_as(layout, name) for name in busy}
        for prefix in sorted(os.listdir(layout.blobs)):
            for name in sorted(os.listdir(layout.blobs / prefix)):
                if is_hex(name) and name not in needed and name not in noted:
                    committed += blobs.remove_unlinked(layout, name)
        for name in sorted(os.listdir(layout.ingest)):
            if name not in busy:
                dying += ingest.allocated_bytes(layout.ingest / name)
                ingest.forget(layout, name)
        for name in sorted(os.listdir(layout.quarantine)):
            dying += os.lstat(layout.quarantine / name).st_size
            durable.unlink(layout.quarantine / name)
    except OSError as error:
        raise durable.disk_error(error, "sweeping") from error
    return Swept(committed, dying)


def _delete(layout: Layout, digest: Digest, manifest: Manifest, needed: Collection[str]) -> int:
    trashed = snapshots.trash(layout, digest)
    if trashed is not None:
        snapshots.delete_trash(trashed)
    return sum(blobs.remove_unlinked(layout, sha256) for sha256 in manifest.blob_sizes() if sha256 not in needed)
