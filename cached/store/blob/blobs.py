"""Committed blobs: complete and verified by construction, named by their sha256, mode 0444.

Law: a blob appears by one rename of a complete, synced, read-only file; nothing writes to it again.
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

_one_at_a_time = threading.Lock()  # two downloads may finish with the same bytes at the same moment


def has(layout: Layout, sha256: str) -> bool:
    """Return whether the blob is committed."""
    return layout.blob(sha256).exists()


def size(layout: Layout, sha256: str) -> int | None:
    """Return a committed blob's size in bytes, None if there is no such blob."""
    try:
        return os.lstat(layout.blob(sha256)).st_size
    except FileNotFoundError:
        return None


def list_blobs(layout: Layout) -> Iterator[os.DirEntry[str]]:
    """Yield every committed blob, sorted by name; ignore files that are not named by a sha256."""
    for prefix in sorted(os.listdir(layout.blobs)):
        try:
            with os.scandir(layout.blobs / prefix) as entries:
                found = sorted((entry for entry in entries if is_hex(entry.name)), key=lambda entry: entry.name)
        except (NotADirectoryError, FileNotFoundError):
            continue
        yield from found


def commit(layout: Layout, finished: Path, sha256: str) -> bool:
    """Rename a finished, synced file to its blob, durably, or delete it if the blob exists; return whether it is new.
    The caller has compared the sha256 of the bytes with `sha256`. Raises `HoldfastError` for a disk error."""
    fresh = place(layout, finished, sha256)
    sync(layout, finished, sha256)
    return fresh


def place(layout: Layout, finished: Path, sha256: str) -> bool:
    """Do the rename of `commit`: from here on the ledger counts a new blob, synced or not."""
    target = layout.blob(sha256)
    with durable.disk_errors(f"committing blob {sha256}"):
        durable.make_dir(target.parent, durable.PRIVATE_DIR_MODE)
        with _one_at_a_time:
            there = size(layout, sha256)
            if there != os.lstat(finished).st_size:  # missing, or truncated by hand
                os.rename(finished, target)
                return True
        durable.unlink(finished)
    return False


def sync(layout: Layout, finished: Path, sha256: str) -> None:
    """Do the syncs of `commit`: make the rename durable."""
    with durable.disk_errors(f"committing blob {sha256}"):
        durable.fsync_dir(layout.blob(sha256).parent)
        durable.fsync_dir(finished.parent)


def commit_noted(layout: Layout, ingest_id: str, sha256: str) -> None:
    """Do the rename that a crash prevented: an ingest whose digest is in the journal is complete, synced and verified.
    For recovery, before the ledger measures the disk."""
    finished = layout.ingest / ingest_id / "data"
    # A writable file was reopened by a later attempt.
    if finished.exists() and stat.S_IMODE(os.lstat(finished).st_mode) == durable.READ_ONLY_MODE:
        commit(layout, finished, sha256)


def is_unlinked(layout: Layout, sha256: str) -> bool:
    """Return whether the blob exists and no snapshot links it."""
    try:
        return os.lstat(layout.blob(sha256)).st_nlink == 1
    except FileNotFoundError:
        return False


def remove_unlinked(layout: Layout, sha256: str) -> int | None:
    """Delete the blob if no snapshot links it; return its size in bytes, None if it stays or does not exist."""
    path = layout.blob(sha256)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if found.st_nlink == 1:
        durable.unlink(path)
        return found.st_size
    return None


def quarantine(layout: Layout, sha256: str) -> None:
    """Move a corrupt blob into quarantine, replacing an earlier corrupt copy of the same blob."""
    try:
        durable.rename(layout.blob(sha256), layout.quarantine / sha256)
    except FileNotFoundError:
        return
    except OSError as error:
        raise durable.disk_error(error, f"quarantining blob {sha256}") from error
