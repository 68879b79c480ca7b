"""Hash what is on the disk again, slowly and for ever, and take out of use what no longer matches.

Law: reads what pods read, past the page cache where the file system lets it, since bit rot sits on the disk; at idle
priority, within its rate, and not at all while a fetch is under way. Oldest record first. Only wrong bytes, or a disk
that says it cannot read them, condemn a blob: any other trouble is logged and looked at in the next round.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import logging
import mmap
import os
import platform
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout, SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.status import timestamp
from cached.contract.verified import VerifiedFile, VerifiedRecord
from cached.holdings import Holdings
from cached.metrics import Metrics
from cached.store import snapshots

_log = logging.getLogger(__name__)

_PIECE = 1024 * 1024
_FILE_COST_BYTES = 256 * 1024  # what opening a file costs the processor, as if it were bytes: many small files are work
_PAUSE_S = 2.0  # between snapshots, and while a fetch is under way
_NICE = 19
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # the system call's number
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, ioprio_set(2)
_ROTTEN = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ, errno.ENODATA})  # what disks say of it


@dataclass(frozen=True, slots=True)
class ScrubParts:
    """What the scrub works with. `busy` tells whether a fetch is under way; `bad` takes a blob out of use."""

    layout: Layout
    holdings: Holdings
    metrics: Metrics
    busy: Callable[[], bool]
    bad: Callable[[str], Awaitable[None]]


class Scrub:
    """One thread, `rate` bytes a second."""

    def __init__(self, parts: ScrubParts, rate: int) -> None:
        self._parts = parts
        self._rate = rate
        self._piece = memoryview(mmap.mmap(-1, _PIECE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._stopping = threading.Event()
        self._checked: dict[Digest, str] = {}  # when each snapshot's oldest file was hashed; reading that is not cheap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrub", initializer=_yield_to_everybody)

    async def run(self) -> None:
        """Scrub until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.sleep(_PAUSE_S)
                manifests = dict(self._parts.holdings.manifests)
                if self._parts.busy() or not manifests:
                    continue
                damaged = await loop.run_in_executor(self._thread, partial(self._check_oldest, manifests))
                for sha256 in damaged:
                    await self._condemn(sha256)
        finally:
            self._stopping.set()
            self._thread.shutdown()

    async def _condemn(self, sha256: str) -> None:
        self._parts.metrics.verify_failed("scrub")
        try:
            await self._parts.bad(sha256)
        except HoldfastError as error:
            _log.error("scrub: blob %s is bad and still in use: %s", sha256, error)

    def _check_oldest(self, manifests: dict[Digest, Manifest]) -> list[str]:
        """Hash the snapshot whose record is oldest; returns the blobs that do not match."""
        self._checked = {digest: self._checked.get(digest) or self._last_checked(digest) for digest in manifests}
        digest = min(manifests, key=self._checked.__getitem__)
        self._checked[digest] = timestamp(time.time())  # whatever comes of it: one bad folder must not be all it does
        snapshot = self._parts.layout.public.snapshot(digest)
        damaged: set[str] = set()
        record: dict[str, VerifiedFile] = {}
        try:
            for entry in manifests[digest].files:
                seen = self._check(snapshot, entry)
                if seen is None:
                    damaged.add(entry.sha256)
                else:
                    record[entry.path] = seen
            if not damaged:
                snapshots.write_verified(snapshot, VerifiedRecord(record))
        except InterruptedError:
            return []
        except OSError as error:
            if snapshot.path.exists():  # else it was evicted meanwhile
                _log.warning("scrub: snapshot %s: %s", digest, error)
        return sorted(damaged)

    def _check(self, snapshot: SnapshotLayout, entry: FileEntry) -> VerifiedFile | None:
        """Hash one file; None where it is not what it should be. Raises OSError where that cannot be told."""
        path = snapshot.path / entry.path
        try:
            before, blob = os.lstat(path), os.lstat(self._parts.layout.blob(entry.sha256))
            found = self._hash(path) if before.st_ino == blob.st_ino else "not computed: it is not the blob's own file"
        except FileNotFoundError:
            if not snapshot.path.exists():
                raise
            found = "not computed: the file is gone"
        except OSError as error:
            if error.errno not in _ROTTEN:
                raise
            found = f"not computed: {error.strerror}"
        if found == entry.sha256:
            return VerifiedFile.of(before, timestamp(time.time()))
        _log.error("scrub: %s: expected sha256 %s, found %s", path, entry.sha256, found)
        return None

    def _last_checked(self, digest: Digest) -> str:
        try:
            record = VerifiedRecord.parse(self._parts.layout.public.snapshot(digest).verified.read_bytes())
        except (OSError, HoldfastError):
            return ""  # no record, or none that can be read: first of all
        return min((entry.verified_at for entry in record.files.values()), default="")

    def _hash(self, path: Path) -> str:
        sha = hashlib.sha256()
        descriptor = _open(path)
        try:
            size = os.fstat(descriptor).st_size
            offset, view = 0, self._piece
            while offset < size and (count := os.preadv(descriptor, [view], offset)):
                started = time.monotonic()
                sha.update(view[:count])
                offset += count
                self._parts.metrics.scrubbed(count)
                self._wait((count + _FILE_COST_BYTES) / self._rate - (time.monotonic() - started))
        finally:
            os.close(descriptor)
        return sha.hexdigest()

    def _wait(self, seconds: float) -> None:
        """Keep to the rate, and step aside while a fetch is under way. Raises InterruptedError at the end."""
        self._stopping.wait(max(0.0, seconds))
        while self._parts.busy() and not self._stopping.is_set():
            self._stopping.wait(0.2)
        if self._stopping.is_set():
            raise InterruptedError


def _open(path: Path) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return os.open(path, flags)


def _yield_to_everybody() -> None:
    """Give this thread the lowest claim on processor and disk that there is."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux, of the calling thread
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None and ctypes.CDLL(None).syscall(number, 1, 0, _IOPRIO_IDLE) != 0:
        _log.info("scrub: this kernel has no idle class for disk access")
