"""Compare the ledger with the disk: people delete and change files of the store by hand.

Law: blocking; corrects the ledger, and nothing else. A folder of blobs whose inode, mtime and ctime are those of the
last count has the same names, so that a count of an idle store costs a system call a folder. Committed blobs do not
change; one that is cut or added to by hand is found by a look at every file, which takes at most a two-thousandth of
the time. A folder that was changed within two seconds before a count is read again by the next one: what comes after
that count may have the same time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from cached.contract.layout import Layout
from cached.core.blob_table import BlobTable
from cached.core.space import Ledger, OnDisk
from cached.store.blob import ingest
from cached.store.disk import durable
from cached.store.disk.root import Root
from cached.store.start import recovery
from cached.store.version import deletion

_SHARE = 2000.0
_RACY_NS = 2_000_000_000  # between two changes with the same time: file systems' clocks tick every few milliseconds

_FILE_S = 1e-5  # to look at a file

Marks = Mapping[str, tuple[int, int, int]]  # inode, mtime and ctime of the folder of blobs, and of each folder in it


class Recount:
    """Counts the store again and again. Not thread-safe. `marks`: from before the ledger was filled from the disk, None
    if unknown."""

    def __init__(self, layout: Layout, root: Root, ledger: Ledger, marks: Marks | None) -> None:
        self._layout = layout
        self._root = root
        self._ledger = ledger
        self._marks = marks  # at the last count of all files
        self._next_full = time.monotonic() + _SHARE * _FILE_S * ledger.blob_count

    def suspect(self) -> None:
        """Look at every file the next time: blobs were deleted or changed by hand."""
        self._marks = None

    def correct(self) -> int:
        """Correct the ledger by the disk, unless another root was uncovered then; return the number of corrections.
        Raises `HoldfastError`."""
        layout = self._layout
        with durable.disk_errors(f"looking through {layout.root}"), self._ledger.begin_recount() as correct:
            self._root.check()
            began = time.monotonic()
            marks = read_marks(layout)
            is_same = marks is not None and marks == self._marks and began < self._next_full
            found = _measure_others(layout) if is_same else recovery.measure(layout)
            self._root.check()
            if not is_same:
                self._marks, ended = marks, time.monotonic()
                self._next_full = ended + _SHARE * (ended - began)
            return correct(found, with_blobs=not is_same)


def read_marks(layout: Layout) -> Marks | None:
    """Return the marks of the blobs' folders, None if one was changed a moment ago: what comes next may leave the same
    times. Raises OSError."""
    now_ns = time.time_ns()
    with os.scandir(layout.blobs) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    found["."] = os.lstat(layout.blobs)
    if any(max(each.st_mtime_ns, each.st_ctime_ns) >= now_ns - _RACY_NS for each in found.values()):
        return None
    return {name: (each.st_ino, each.st_mtime_ns, each.st_ctime_ns) for name, each in found.items()}


def _measure_others(layout: Layout) -> OnDisk:
    """Return the bytes of partial blobs and of the quarantine."""
    partials = {name: ingest.allocated_bytes(layout.ingest / name) for name in os.listdir(layout.ingest)}
    quarantined = {name: deletion.quarantined_bytes(layout, name) for name in os.listdir(layout.quarantine)}
    return OnDisk(BlobTable(), partials, quarantined)
