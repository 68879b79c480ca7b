"""Commit small blobs in groups: a group pays the disk's fixed costs once.

Law: one thread; blobs submitted while a group is synced form the next group, so that none waits for others. The order
is that of the design, section 3: a blob gets its name after its bytes are durable, and is reported after its name is.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.layout import Layout
from cached.contract.program import limits
from cached.contract.snapshot.verify import hash_file
from cached.store.blob import blobs
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk import durable
from cached.store.disk.verity import Sealing, seal

_log = logging.getLogger(__name__)

MAX_GROUP = 128  # blobs, and file descriptors open at once


@dataclass(slots=True)
class PendingBlob:
    """A blob whose bytes were verified and written to `temporary`, and are not durable yet. `journal_id`: the ingest id
    for its digest's journal entry; None if the source promised the digest. `placed`: it has its name, whatever failed
    after that; `fresh`: as a new blob. `done` is called once, on the committing thread."""

    name: str
    temporary: Path
    sha256: str
    journal_id: str | None
    done: Callable[[PendingBlob, BaseException | None], None]
    placed: bool = False
    fresh: bool = False
    failure: BaseException | None = None


class GroupCommit:
    """The committing thread and its queue."""

    def __init__(self, layout: Layout, sealing: Sealing, journal: DigestJournal, notes: HashNotes) -> None:
        self._layout = layout
        self._sealing = sealing
        self._journal = journal
        self._notes = notes
        self._changed = threading.Condition()
        self._queue: deque[PendingBlob] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="group commit", daemon=True)
        limits.start_thread(self._thread, "the thread that commits blobs")

    def submit(self, pending: PendingBlob) -> None:
        """Queue this blob for the next group."""
        with self._changed:
            self._queue.append(pending)
            self._changed.notify()

    def stop(self) -> None:
        """Commit all submitted blobs and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._commit_next():
            pass

    def _commit_next(self) -> bool:
        """Commit the next group; return False at the end. A method: it frees the group before the next wait."""
        group = self._next_group()
        try:
            self._commit(group)
        except Exception as error:  # noqa: BLE001 - `done` is called for every blob
            _log.exception("committing %d blobs", len(group))
            failure = Permanent("internal", f"committing: {error!r}", "report this with the daemon's log")
            for pending in group:
                pending.failure = pending.failure or failure
        for pending in group:
            if pending.failure is not None and not pending.placed:
                _remove(pending.temporary)
            pending.done(pending, pending.failure)
        return bool(group)

    def _next_group(self) -> list[PendingBlob]:
        with self._changed:
            while not self._queue and not self._stopping:
                self._changed.wait()
            return [self._queue.popleft() for _ in range(min(MAX_GROUP, len(self._queue)))]

    def _commit(self, group: Sequence[PendingBlob]) -> None:
        self._sync(group)
        self._write_journal([pending for pending in group if pending.failure is None])
        named = [pending for pending in group if pending.failure is None and self._place(pending)]
        with _failing(named, "noting blobs"):
            self._notes.note(self._layout, [pending.sha256 for pending in named if pending.fresh])
        folders: dict[Path, list[PendingBlob]] = {}
        for pending in named:
            folders.setdefault(self._layout.blob(pending.sha256).parent, []).append(pending)
        for folder, concerned in folders.items():
            with _failing(concerned, f"committing blobs in {folder}"):
                durable.fsync_dir(folder)

    def _sync(self, group: Sequence[PendingBlob]) -> None:
        """Make the bytes durable. Writeback of all files starts before the first fsync: the file system then commits
        their inodes together (0.27 ms a file on ext4 instead of 0.43)."""
        opened: list[tuple[PendingBlob, int]] = []
        try:
            for pending in group:
                with _failing([pending], f"committing blob {pending.sha256}"):
                    descriptor = os.open(pending.temporary, os.O_RDONLY | os.O_CLOEXEC)
                    opened.append((pending, descriptor))
                    durable.start_writeback(descriptor)
            for pending, descriptor in opened:
                with _failing([pending], f"committing blob {pending.sha256}"):
                    os.fsync(descriptor)
        finally:
            for _, descriptor in opened:
                os.close(descriptor)
        if self._sealing is not Sealing.NONE:
            for pending in group:
                if pending.failure is None:
                    self._seal(pending)

    def _seal(self, pending: PendingBlob) -> None:
        with _failing([pending], f"sealing blob {pending.sha256}"):
            if seal(pending.temporary, self._sealing):
                read_back(pending.name, pending.temporary, pending.sha256, lambda _size: None)

    def _write_journal(self, group: Sequence[PendingBlob]) -> None:
        unpromised = [pending for pending in group if pending.journal_id is not None]
        with _failing(unpromised, "writing the digest journal"):
            self._journal.record({p.journal_id: p.sha256 for p in unpromised if p.journal_id is not None})

    def _place(self, pending: PendingBlob) -> bool:
        with _failing([pending], f"committing blob {pending.sha256}"):
            pending.fresh = blobs.place(self._layout, pending.temporary, pending.sha256)
            pending.placed = True
        return pending.failure is None


def read_back(name: str, sealed: Path, sha256: str, check: Callable[[int], None]) -> None:
    """Hash a sealed file again, through its seal: the first hash was of memory, the seal is of the disk. `check` is
    called with the size of each piece in bytes and may raise. Raises `Transient` (`lost_bytes`) or `DigestMismatch`.

    The kernel has just read these pages to seal them, so this costs one sha256 and no disk read. Building the kernel's
    tree of 4 KiB blocks during the download would avoid it, but each block would take the interpreter's lock: next to
    one busy Python thread that runs at 40 MB/s, hashing in large pieces at 1600.
    """
    try:
        found = hash_file(sealed, check)
    except OSError as error:
        raise Transient("lost_bytes", f"{sealed}: {error.strerror}", "check the node's disk") from error
    if found != sha256:
        remedy = "check the node's disk and memory: the source sent the right bytes"
        raise DigestMismatch(f"{name}: sha256 of what the disk gave back", sha256, found, remedy)


@contextmanager
def _failing(concerned: Sequence[PendingBlob], step: str) -> Iterator[None]:
    """Set an error of the block as the failure of these blobs that have none."""
    try:
        yield
    except (HoldfastError, OSError) as error:
        failure = durable.disk_error(error, step) if isinstance(error, OSError) else error
        for pending in concerned:
            pending.failure = pending.failure or failure


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:  # the next start sweeps temporary names
        _log.warning("cannot delete %s, which is left over: %s", temporary, error)
