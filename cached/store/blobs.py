"""Committed blobs: complete and verified by construction, named by their sha256, mode 0444.

Law: a blob appears by one rename of a file that is already whole, synced and read-only; nothing writes to it again.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from cached.contract.digest import is_hex
from cached.contract.layout import Layout
from cached.store.disk import durable

_one_at_a_time = threading.Lock()  # two flights may find at the same moment that they have the same bytes


def has(layout: Layout, sha256: str) -> bool:
    """Tell whether the blob is committed."""
    return layout.blob(sha256).exists()


def size(layout: Layout, sha256: str) -> int | None:
    """A committed blob's size in bytes; None where it is not there."""
    try:
        return os.lstat(layout.blob(sha256)).st_size
    except FileNotFoundError:
        return None


def listed(layout: Layout) -> Iterator[os.DirEntry[str]]:
    """Every committed blob, in the order of their names. What else lies there is somebody else's, and left alone."""
    for prefix in sorted(os.listdir(layout.blobs)):
        try:
            with os.scandir(layout.blobs / prefix) as entries:
                found = sorted((entry for entry in entries if is_hex(entry.name)), key=lambda entry: entry.name)
        except (NotADirectoryError, FileNotFoundError):
            continue
        yield from found


def commit(layout: Layout, finished: Path, sha256: str) -> bool:
    """Rename a finished, synced file into its place, durably; where the blob is there already, delete the new copy.

    Returns whether the blob is new. The caller has compared the sha256 of the bytes with `sha256`.
    """
    fresh = place(layout, finished, sha256)
    settle(layout, finished, sha256)
    return fresh


def place(layout: Layout, finished: Path, sha256: str) -> bool:
    """The first half of `commit`: whoever accounts for the disk counts a new blob from here on, synced or not."""
    target = layout.blob(sha256)
    try:
        durable.make_dir(target.parent, durable.PRIVATE_DIR_MODE)
        with _one_at_a_time:
            there = size(layout, sha256)
            if there != os.lstat(finished).st_size:  # not there, or cut short by somebody, and certainly not this
                os.rename(finished, target)
                return True
        durable.unlink(finished)
    except OSError as error:
        raise durable.disk_error(error, f"committing blob {sha256}") from error
    return False


def settle(layout: Layout, finished: Path, sha256: str) -> None:
    """The second half of `commit`: make the rename durable."""
    try:
        durable.fsync_dir(layout.blob(sha256).parent)
        durable.fsync_dir(finished.parent)
    except OSError as error:
        raise durable.disk_error(error, f"committing blob {sha256}") from error


def commit_noted(layout: Layout, ingest_id: str, sha256: str) -> None:
    """Do the rename that a crash came before: an ingest whose digest is in the journal is whole, synced and verified.

    For recovery, before anybody accounts for what is on the disk.
    """
    finished = layout.ingest / ingest_id / "data"
    if not finished.exists():
        return
    if stat.S_IMODE(os.lstat(finished).st_mode) == durable.READ_ONLY_MODE:  # else a later try has opened it again
        commit(layout, finished, sha256)


def is_unlinked(layout: Layout, sha256: str) -> bool:
    """Tell whether the blob is here and no snapshot links it."""
    try:
        return os.lstat(layout.blob(sha256)).st_nlink == 1
    except FileNotFoundError:
        return False


def remove_unlinked(layout: Layout, sha256: str) -> int | None:
    """Delete the blob if no snapshot links it any more; returns its size in bytes, None where it stays or is gone."""
    path = layout.blob(sha256)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if found.st_nlink > 1:
        return None
    durable.unlink(path)
    return found.st_size


def quarantine(layout: Layout, sha256: str) -> None:
    """Take a blob whose bytes went bad out of use; of one that did so before, the newer remains are kept."""
    try:
        durable.rename(layout.blob(sha256), layout.quarantine / sha256)
    except FileNotFoundError:
        return
    except OSError as error:
        raise durable.disk_error(error, f"quarantining blob {sha256}") from error
