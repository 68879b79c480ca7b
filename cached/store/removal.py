"""Take versions away: the name first, then the snapshot, then the blobs that nothing links any more.

Law: never what somebody holds a lease on, nor what a version under way claims. Every step is a rename or an unlink: a
crash leaves only what recovery sweeps.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.lease import take_exclusive
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.store import blobs, durable, ingest, snapshots
from cached.store.claims import Claims

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """Bytes given back: by committed blobs, and by what was dying (partial blobs, the quarantine); and what ended the
    sweep early, if anything did."""

    committed: int
    dying: int
    trouble: HoldfastError | None = None


def evict(layout: Layout, ref: ModelRef, digest: Digest, manifest: Manifest | None, claims: Claims) -> int | None:
    """Remove the name `ref`, and its snapshot unless `manifest` is None (another name points there too).

    Blobs that no snapshot links and nobody claims are deleted. Returns the bytes given back; None, with nothing done,
    where the snapshot is in use.
    """
    try:
        lease = take_exclusive(layout.public.snapshot(digest).lease)
        if lease is None and layout.public.snapshot(digest).path.exists():
            return None
        try:
            snapshots.unpoint(layout, ref)
            return 0 if manifest is None else _delete(layout, digest, manifest, claims)
        finally:
            if lease is not None:
                lease.close()
    except OSError as error:
        raise durable.disk_error(error, f"evicting {ref}") from error


def delete_unnamed(layout: Layout, digest: Digest, manifest: Manifest, claims: Claims) -> int | None:
    """Remove a snapshot that no name points at; returns the bytes given back, None where it is in use."""
    try:
        lease = take_exclusive(layout.public.snapshot(digest).lease)
        if lease is None:
            return None
        with lease:
            return _delete(layout, digest, manifest, claims)
    except OSError as error:
        raise durable.disk_error(error, f"deleting snapshot {digest}") from error


def sweep(layout: Layout, claims: Claims) -> Swept:
    """Delete blobs that no snapshot links and partial blobs, except what is claimed; and the quarantine."""
    committed = dying = 0
    trouble: HoldfastError | None = None
    try:
        for name in sorted(os.listdir(layout.trash)):
            _delete_trash(layout.trash / name)
        for blob in blobs.listed(layout):
            committed += _remove_unclaimed(layout, blob.name, claims) or 0
        for name in sorted(os.listdir(layout.ingest)):
            dying += _forget_unclaimed(layout, name, claims)
        for name in sorted(os.listdir(layout.quarantine)):
            size = os.lstat(layout.quarantine / name).st_size
            durable.unlink(layout.quarantine / name)
            dying += size
    except OSError as error:
        trouble = durable.disk_error(error, "sweeping")
        trouble.__cause__ = error
    except HoldfastError as error:
        trouble = error
    return Swept(committed, dying, trouble)


def _delete(layout: Layout, digest: Digest, manifest: Manifest, claims: Claims) -> int:
    trashed = snapshots.trash(layout, digest)
    if trashed is not None:
        _delete_trash(trashed)
    # As they were counted, whatever somebody has made of their files meanwhile.
    sizes = manifest.blob_sizes()
    return sum(size for sha256, size in sizes.items() if _remove_unclaimed(layout, sha256, claims) is not None)


def _delete_trash(path: Path) -> None:
    """The version is gone when it is in the trash: what cannot be deleted there (`chattr +i`) waits for a sweep."""
    try:
        snapshots.delete_trash(path)
    except PermissionError as error:
        _log.warning("cannot delete %s, tried again later: %s", path, error)


def _forget_unclaimed(layout: Layout, id_: str, claims: Claims) -> int:
    with claims.deciding():
        if claims.has_partial(id_):
            return 0
        size = ingest.allocated_bytes(layout.ingest / id_)
        ingest.forget(layout, id_)
        return size


def _remove_unclaimed(layout: Layout, sha256: str, claims: Claims) -> int | None:
    """Delete a blob that nothing links, unless it is claimed, by its digest or as what a partial blob became: that is
    noted before the blob appears. Returns its size, None where it stays."""
    if not blobs.is_unlinked(layout, sha256):
        return None
    try:
        with claims.deciding():
            if claims.has_blob(sha256) or sha256 in {ingest.committed_as(layout, id_) for id_ in claims.unpromised()}:
                return None
            return blobs.remove_unlinked(layout, sha256)
    except PermissionError as error:
        _log.warning("cannot delete blob %s, tried again later: %s", sha256, error)
        return None
