"""Delete versions: the name first, then the snapshot, then the blobs that no snapshot links.

Law: deletes nothing that is leased or claimed. Every step is a rename or an unlink: recovery sweeps the leftovers of
a crash.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.layout import TEMPORARY_PREFIX, Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.snapshot.lease import take_exclusive
from cached.core.space import Ledger
from cached.store.blob import blobs, ingest
from cached.store.blob.claims import Claims
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk import durable
from cached.store.version import fetch_records, repair, snapshots

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deletion:
    """The tree, the claims, the notes and the ledger of every deletion. The ledger counts after each change and before
    the next decision: a fetch of a blob that is being deleted counts it after this. `links`: by sha256, the number of
    snapshots that contain the blob, also if its link there was deleted by hand."""

    layout: Layout
    claims: Claims
    notes: HashNotes
    ledger: Ledger
    links: Mapping[str, int]


def lock(layout: Layout, ref: ModelRef, digest: Digest) -> contextlib.ExitStack | None:
    """Take the lease of a snapshot for the eviction of `ref`; None if the snapshot is leased. Until it is closed no
    gate opens; a snapshot that is gone has no lease, and needs none."""
    snapshot = layout.public.snapshot(digest)
    with durable.disk_errors(f"evicting {ref}"), contextlib.ExitStack() as held:
        lease = take_exclusive(snapshot.lease)
        if lease is not None:
            held.enter_context(lease)
        elif snapshot.path.exists():
            return None
        return held.pop_all()


def evict(deletion: Deletion, ref: ModelRef, digest: Digest, manifest: Manifest | None) -> int:
    """Delete the name `ref`, its snapshot unless `manifest` is None (another name points there too), and its blobs that
    are neither linked nor claimed; the caller holds the `lock`. Return the bytes freed."""
    layout = deletion.layout
    with durable.disk_errors(f"evicting {ref}"):
        snapshots.delete_name(layout, ref)
        fetch_records.remove(layout, ref)
        return 0 if manifest is None else _delete(deletion, digest, manifest)


def delete_unnamed(deletion: Deletion, digest: Digest, manifest: Manifest) -> int | None:
    """Delete a snapshot that no name points at; return the bytes freed, None if it is leased."""
    with durable.disk_errors(f"deleting snapshot {digest}"):
        lease = take_exclusive(deletion.layout.public.snapshot(digest).lease)
        if lease is None:
            return None
        with lease:
            return _delete(deletion, digest, manifest)


def sweep(deletion: Deletion) -> int:
    """Delete the quarantine, and the unlinked and partial blobs that are not claimed; return the bytes freed. A file in
    quarantine stays while a snapshot links it, whose withdrawal failed: it tells that those bytes are bad. Raises
    `HoldfastError` for a disk error."""
    layout, freed = deletion.layout, 0
    with durable.disk_errors("sweeping"):
        for name in sorted(os.listdir(layout.trash)):
            if not name.startswith(TEMPORARY_PREFIX):  # another program tries the file system: `holdfast doctor`
                _delete_trash(layout.trash / name)
        for blob in blobs.list_blobs(layout):
            freed += _remove_unclaimed(deletion, blob.name, 0) or 0
        for name in sorted(os.listdir(layout.ingest)):
            if not name.startswith(TEMPORARY_PREFIX):
                freed += _forget_unclaimed(deletion, name)
        with deletion.claims.deleting:
            journal = deletion.claims.journal
            journal.forget([id_ for id_ in journal.ids() if not deletion.claims.has_partial(id_)])
        journal.tidy()
        for name in sorted(os.listdir(layout.quarantine)):
            if not snapshots.is_linked(layout, layout.quarantine / name):
                freed += _remove_quarantined(deletion, name)
    return freed


def quarantine(layout: Layout, ledger: Ledger, sha256: str) -> None:
    """Move a corrupt blob into quarantine and count the result, also if the disk fails."""
    counting_blob = _counting(ledger.count_blob, blobs.size, layout, sha256)
    with counting_blob, _counting(ledger.count_quarantined, quarantined_bytes, layout, sha256):
        blobs.quarantine(layout, sha256)


def _delete(deletion: Deletion, digest: Digest, manifest: Manifest) -> int:
    recorded = repair.list_recorded(deletion.layout, digest, manifest)
    trashed = snapshots.trash(deletion.layout, digest)
    if trashed is not None:
        _delete_trash(trashed)
    sizes = manifest.blob_sizes()  # as counted, also if the files were changed by hand since
    removed = {sha256: size for sha256, size in sizes.items() if _remove_unclaimed(deletion, sha256, 1) is not None}
    claimed = [sha256 for sha256 in recorded.keys() - removed.keys() if blobs.is_unlinked(deletion.layout, sha256)]
    deletion.notes.add({sha256: recorded[sha256] for sha256 in claimed})
    return sum(removed.values())


def _delete_trash(path: Path) -> None:
    """Delete a tree in the trash; a file that cannot be deleted (`chattr +i`) waits for a sweep."""
    try:
        snapshots.delete_trash(path)
    except PermissionError as error:
        _log.warning("cannot delete %s, tried again later: %s", path, error)


def _forget_unclaimed(deletion: Deletion, id_: str) -> int:
    with deletion.claims.deleting:
        if deletion.claims.has_partial(id_):
            return 0
        folder = deletion.layout.ingest / id_
        size = ingest.allocated_bytes(folder)
        try:
            ingest.forget(deletion.layout, id_)
        finally:
            deletion.ledger.count_partial(id_, ingest.allocated_bytes(folder))
        return size


def _remove_quarantined(deletion: Deletion, name: str) -> int:
    path = deletion.layout.quarantine / name
    size = os.lstat(path).st_size
    with _counting(deletion.ledger.count_quarantined, quarantined_bytes, deletion.layout, name):
        durable.unlink(path)
    return size


def _remove_unclaimed(deletion: Deletion, sha256: str, going: int) -> int | None:
    """Delete an unlinked blob, unless claimed or in more than `going` snapshots; return its bytes, None if it stays."""
    layout, claims = deletion.layout, deletion.claims
    if deletion.links.get(sha256, 0) > going or not blobs.is_unlinked(layout, sha256):
        return None
    try:
        with claims.deleting:
            if claims.has_blob(sha256):
                return None
            deletion.notes.forget([sha256])  # before: once it is gone, it may be fetched and noted again
            with _counting(deletion.ledger.count_blob, blobs.size, layout, sha256):
                return blobs.remove_unlinked(layout, sha256)
    except PermissionError as error:
        _log.warning("cannot delete blob %s, tried again later: %s", sha256, error)
        return None


@contextlib.contextmanager
def _counting(
    count: Callable[[str, int], None], measure: Callable[[Layout, str], int | None], layout: Layout, name: str
) -> Iterator[None]:
    """Count a file after this block, also if it fails: the unlink may succeed and its sync fail. If its size cannot be
    read, the next recount corrects the account."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            count(name, measure(layout, name) or 0)


def quarantined_bytes(layout: Layout, name: str) -> int:
    """Return the size of a file in quarantine in bytes, 0 if it does not exist."""
    try:
        return os.lstat(layout.quarantine / name).st_size
    except FileNotFoundError:
        return 0
