"""Take versions away: the name first, then the snapshot, then the blobs that nothing links any more.

Law: never what somebody holds a lease on, nor what a version under way claims. Every step is a rename or an unlink: a
crash leaves only what recovery sweeps.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import TEMPORARY_PREFIX, Layout
from cached.contract.lease import take_exclusive
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.store import blobs, fetched, ingest, snapshots
from cached.store.claims import Claims
from cached.store.disk import durable

_log = logging.getLogger(__name__)


class Account(Protocol):
    """Who is told what is on the disk, as soon as it changed and before the next thing is decided: whoever fetches a
    blob anew that is just being deleted counts it after this."""

    def count_blob(self, sha256: str, size: int) -> None: ...

    def count_partial(self, id_: str, size: int) -> None: ...

    def count_quarantined(self, name: str, size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Deletion:
    """What every deletion needs: the tree, what must stay, and who counts what is there afterwards. `held` has, by
    sha256, of how many snapshots a blob is a part: one that has lost its link there, by hand, still is."""

    layout: Layout
    claims: Claims
    account: Account
    held: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Swept:
    """Bytes given back: by committed blobs, and by what was dying (partial blobs, the quarantine); and what ended the
    sweep early, if anything did."""

    committed: int
    dying: int
    trouble: HoldfastError | None = None


def evict(within: Deletion, ref: ModelRef, digest: Digest, manifest: Manifest | None) -> int | None:
    """Remove the name `ref`, and its snapshot unless `manifest` is None (another name points there too).

    Blobs that no snapshot links and nobody claims are deleted. Returns the bytes given back; None, with nothing done,
    where the snapshot is in use.
    """
    layout = within.layout
    try:
        lease = take_exclusive(layout.public.snapshot(digest).lease)
        if lease is None and layout.public.snapshot(digest).path.exists():
            return None
        try:
            snapshots.unpoint(layout, ref)
            fetched.remove(layout, ref)
            return 0 if manifest is None else _delete(within, digest, manifest)
        finally:
            if lease is not None:
                lease.close()
    except OSError as error:
        raise durable.disk_error(error, f"evicting {ref}") from error


def delete_unnamed(within: Deletion, digest: Digest, manifest: Manifest) -> int | None:
    """Remove a snapshot that no name points at; returns the bytes given back, None where it is in use."""
    try:
        lease = take_exclusive(within.layout.public.snapshot(digest).lease)
        if lease is None:
            return None
        with lease:
            return _delete(within, digest, manifest)
    except OSError as error:
        raise durable.disk_error(error, f"deleting snapshot {digest}") from error


def sweep(within: Deletion) -> Swept:
    """Delete blobs that no snapshot links and partial blobs, except what is claimed; and the quarantine."""
    layout = within.layout
    committed = dying = 0
    trouble: HoldfastError | None = None
    try:
        for name in sorted(os.listdir(layout.trash)):
            _delete_trash(layout.trash / name)
        for blob in blobs.listed(layout):
            committed += _remove_unclaimed(within, blob.name, 0) or 0
        for name in sorted(os.listdir(layout.ingest)):
            if not name.startswith(TEMPORARY_PREFIX):
                dying += _forget_unclaimed(within, name)
        with within.claims.deciding():
            journal = within.claims.journal
            journal.forget([id_ for id_ in journal.ids() if not within.claims.has_partial(id_)])
        journal.tidy()
        for name in sorted(os.listdir(layout.quarantine)):
            dying += _remove_quarantined(within, name)
    except OSError as error:
        trouble = durable.disk_error(error, "sweeping")
        trouble.__cause__ = error
    except HoldfastError as error:
        trouble = error
    return Swept(committed, dying, trouble)


def quarantine(layout: Layout, account: Account, sha256: str) -> None:
    """Take a blob whose bytes went bad out of use, and count what lies where then, also where the disk fails."""
    with _counting_blob(layout, account, sha256), _counting_quarantined(layout, account, sha256):
        blobs.quarantine(layout, sha256)


def _delete(within: Deletion, digest: Digest, manifest: Manifest) -> int:
    trashed = snapshots.trash(within.layout, digest)
    if trashed is not None:
        _delete_trash(trashed)
    # As they were counted, whatever somebody has made of their files meanwhile.
    sizes = manifest.blob_sizes()
    return sum(size for sha256, size in sizes.items() if _remove_unclaimed(within, sha256, 1) is not None)


def _delete_trash(path: Path) -> None:
    """The version is gone when it is in the trash: what cannot be deleted there (`chattr +i`) waits for a sweep."""
    try:
        snapshots.delete_trash(path)
    except PermissionError as error:
        _log.warning("cannot delete %s, tried again later: %s", path, error)


def _forget_unclaimed(within: Deletion, id_: str) -> int:
    with within.claims.deciding():
        if within.claims.has_partial(id_):
            return 0
        folder = within.layout.ingest / id_
        size = ingest.allocated_bytes(folder)
        try:
            ingest.forget(within.layout, id_)
        finally:
            within.account.count_partial(id_, ingest.allocated_bytes(folder))
        return size


def _remove_quarantined(within: Deletion, name: str) -> int:
    path = within.layout.quarantine / name
    size = os.lstat(path).st_size
    with _counting_quarantined(within.layout, within.account, name):
        durable.unlink(path)
    return size


def _remove_unclaimed(within: Deletion, sha256: str, going: int) -> int | None:
    """Delete a blob that nothing links, unless it is claimed, or more snapshots than the `going` one hold it. Returns
    its size, None where it stays."""
    layout, claims = within.layout, within.claims
    if within.held.get(sha256, 0) > going or not blobs.is_unlinked(layout, sha256):
        return None
    try:
        with claims.deciding():
            if claims.has_blob(sha256):
                return None
            with _counting_blob(layout, within.account, sha256):
                return blobs.remove_unlinked(layout, sha256)
    except PermissionError as error:
        _log.warning("cannot delete blob %s, tried again later: %s", sha256, error)
        return None


@contextlib.contextmanager
def _counting_blob(layout: Layout, account: Account, sha256: str) -> Iterator[None]:
    """Count a blob as it is after this block, however that ends: an unlink may be done and its sync fail. Where the
    disk does not even say, the next recount finds out."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            account.count_blob(sha256, blobs.size(layout, sha256) or 0)


@contextlib.contextmanager
def _counting_quarantined(layout: Layout, account: Account, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            account.count_quarantined(name, quarantined_bytes(layout, name))


def quarantined_bytes(layout: Layout, name: str) -> int:
    """The size of a file in quarantine; 0 where it is not there."""
    try:
        return os.lstat(layout.quarantine / name).st_size
    except FileNotFoundError:
        return 0
