"""The scrub: hash published files again, slowly and for ever, and report corrupt ones.

Law: reads the files that pods read, past the page cache, since bit rot is on the disk; at idle priority, within its
rate, and paused during fetches. Oldest record first; the record is written every minute, so that a restart continues.
Only wrong bytes, or a disk that reports them unreadable, condemn a blob: any other error is logged and checked in the
next round. Blobs without an fs-verity seal are sealed here.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import logging
import math
import mmap
import os
import platform
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout, SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.program.thread_pool import start_pool
from cached.contract.status import parse_timestamp, timestamp
from cached.contract.verified import VerifiedFile, VerifiedRecord
from cached.node.inventory import Inventory
from cached.store import snapshots
from cached.store.disk import durable, verity
from cached.store.disk.verity import Sealing
from cached.store.repair import ROTTEN

_log = logging.getLogger(__name__)

_PIECE = 1024 * 1024
_FILE_COST_BYTES = 256 * 1024  # the processor cost of opening a file, as bytes: many small files are work
_PAUSE_S = 2.0  # between snapshots, and during fetches
_NOTE_S = 60.0  # between two writes of a snapshot's record
_NICE = 19
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # the system call's number
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, ioprio_set(2)


@dataclass(frozen=True, slots=True)
class ScrubParts:
    """The parts that the scrub uses. `busy` returns whether a fetch is running; `bad_blob` quarantines a blob and
    withdraws its snapshots; `bad_snapshot` withdraws a snapshot with a corrupt manifest; `restore_snapshot` is for one
    of which a file and its blob are different files. `count_hashed` counts hashed bytes, `count_bad` corrupt files."""

    layout: Layout
    inventory: Inventory
    sealing: Sealing
    busy: Callable[[], bool]
    bad_blob: Callable[[str], Awaitable[None]]
    bad_snapshot: Callable[[Digest], Awaitable[None]]
    restore_snapshot: Callable[[Digest], Awaitable[None]]
    count_hashed: Callable[[int], None]
    count_bad: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Finding:
    """A problem of a snapshot, whether it is one of corrupt bytes, and the step that ends it."""

    digest: Digest
    problem: str
    is_corrupt: bool
    act: Callable[[], Awaitable[None]]


class Scrub:
    """One thread, `rate` bytes a second."""

    def __init__(self, parts: ScrubParts, rate: int) -> None:
        self._parts = parts
        self._rate = rate
        self._piece = memoryview(mmap.mmap(-1, _PIECE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._stopping = threading.Event()
        # Monotonic times of each snapshot's oldest hash, cached: reading the records is not cheap.
        self._checked: dict[Digest, float] = {}
        self._thread = start_pool(1, "scrub", _set_idle_priority)

    async def run(self) -> None:
        """Scrub until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.sleep(_PAUSE_S)
                manifests = dict(self._parts.inventory.manifests)
                if self._parts.busy() or not manifests:
                    continue
                finding = await loop.run_in_executor(self._thread, partial(self._check_oldest, manifests))
                if finding is not None:
                    await self._act_on(finding)
        finally:
            self._stopping.set()
            await asyncio.to_thread(self._thread.shutdown)

    async def _act_on(self, finding: _Finding) -> None:
        if finding.is_corrupt:
            self._parts.count_bad()
        try:
            await finding.act()
        except HoldfastError as error:
            _log.error("scrub: %s: %s", finding.problem, error)
        else:
            self._checked.pop(finding.digest, None)  # its other files are checked as soon as it is restored

    def _check_oldest(self, manifests: dict[Digest, Manifest]) -> _Finding | None:
        """Hash the snapshot with the oldest record, its oldest file first, up to the first finding."""
        self._checked = {digest: self._checked.get(digest) or self._last_checked(digest) for digest in manifests}
        digest = min(manifests, key=self._checked.__getitem__)
        self._checked[digest] = time.monotonic()  # also if it fails: the other snapshots must be checked too
        snapshot = self._parts.layout.public.snapshot(digest)
        try:
            if not self._manifest_is_right(snapshot, digest):
                problem = f"the manifest of snapshot {digest} is bad and still in use"
                return _Finding(digest, problem, is_corrupt=True, act=partial(self._parts.bad_snapshot, digest))
            return self._check_files(snapshot, digest, manifests[digest])
        except OSError as error:
            if snapshot.path.exists():  # else it was evicted during the check
                _log.warning("scrub: snapshot %s: %s", digest, error)
        return None

    def _check_files(self, snapshot: SnapshotLayout, digest: Digest, manifest: Manifest) -> _Finding | None:
        before = self._recorded(digest)
        # By descriptor: evicted and fetched again during the check, another folder has the name, with other inodes.
        with durable.opened(snapshot.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) as folder:
            here = SnapshotLayout(Path(f"/proc/self/fd/{folder}"))
            renewal = _RecordRenewal(here, {entry.path: before.get(entry.path) for entry in manifest.files})
            for entry in sorted(manifest.files, key=lambda e: -_age_s(before.get(e.path))):
                try:
                    seen = self._check(snapshot, digest, entry)
                except InterruptedError:
                    break
                if not isinstance(seen, VerifiedFile):
                    return seen
                renewal.add(entry.path, seen)
            renewal.write()
        return None

    def _manifest_is_right(self, snapshot: SnapshotLayout, digest: Digest) -> bool:
        try:
            found = Digest.of(snapshot.manifest.read_bytes())
        except FileNotFoundError:
            return not snapshot.path.exists()
        except OSError as error:
            if error.errno not in ROTTEN:
                raise
            _log.error("scrub: %s: %s", snapshot.manifest, error.strerror)
            return False
        if found != digest:
            _log.error("scrub: %s: expected sha256 %s, found %s", snapshot.manifest, digest.hex, found.hex)
        return found == digest

    def _check(self, snapshot: SnapshotLayout, digest: Digest, entry: FileEntry) -> VerifiedFile | _Finding:
        """Hash one file. Raises OSError if it cannot be read for another reason than corrupt data."""
        path, blob = snapshot.path / entry.path, self._parts.layout.blob(entry.sha256)
        seal = None
        try:
            before = os.lstat(path)
            if not os.path.samestat(before, os.lstat(blob)):
                return self._find_apart(digest)
            if self._parts.sealing is not Sealing.NONE:  # it may have been committed without a seal
                self._wait(0)
                verity.seal(blob, Sealing.WHERE_POSSIBLE)
            seal = verity.digest(path)
            found = self._hash(path, sealed=seal is not None)
        except FileNotFoundError:
            if not snapshot.path.exists():
                raise
            return self._find_apart(digest)
        except OSError as error:
            if error.errno not in ROTTEN:
                raise
            found = f"not computed: {error.strerror}"
        if found == entry.sha256:
            return VerifiedFile.of(before, timestamp(time.time()), seal)
        _log.error("scrub: %s: expected sha256 %s, found %s", path, entry.sha256, found)
        problem = f"blob {entry.sha256} is bad and still in use"
        return _Finding(digest, problem, is_corrupt=True, act=partial(self._parts.bad_blob, entry.sha256))

    def _find_apart(self, digest: Digest) -> _Finding:
        """Return the finding of a file and its blob that are different files: one was deleted or replaced. Missing is
        not corrupt: a hash decides which of them is right."""
        problem = f"snapshot {digest} is not what it should be"
        return _Finding(digest, problem, is_corrupt=False, act=partial(self._parts.restore_snapshot, digest))

    def _recorded(self, digest: Digest) -> dict[str, VerifiedFile]:
        try:
            return VerifiedRecord.parse(self._parts.layout.public.snapshot(digest).verified.read_bytes()).files
        except (OSError, HoldfastError):
            return {}  # missing or invalid: all files count as never hashed

    def _last_checked(self, digest: Digest) -> float:
        return time.monotonic() - max((_age_s(entry) for entry in self._recorded(digest).values()), default=math.inf)

    def _hash(self, path: Path, *, sealed: bool) -> str:
        sha = hashlib.sha256()
        descriptor = _open(path)
        try:
            if sealed:  # pages read ahead would have to be dropped and read again
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            size = os.fstat(descriptor).st_size
            offset, view = 0, self._piece
            while offset < size:
                if sealed:  # its file system reads it through the page cache, even with O_DIRECT
                    os.posix_fadvise(descriptor, offset, _PIECE, os.POSIX_FADV_DONTNEED)
                if not (count := os.preadv(descriptor, [view], offset)):
                    break
                started = time.monotonic()
                sha.update(view[:count])
                offset += count
                self._parts.count_hashed(count)
                self._wait((count + _FILE_COST_BYTES) / self._rate - (time.monotonic() - started))
        finally:
            os.close(descriptor)
        return sha.hexdigest()

    def _wait(self, seconds: float) -> None:
        """Wait `seconds` for the rate, and then for running fetches. Raises InterruptedError when the scrub stops."""
        self._stopping.wait(max(0.0, seconds))
        while self._parts.busy() and not self._stopping.is_set():
            self._stopping.wait(0.2)
        if self._stopping.is_set():
            raise InterruptedError


def _age_s(seen: VerifiedFile | None) -> float:
    """Return the seconds since a file was hashed; infinity for a time in the future (a clock was set back since): that
    file comes first, or it would come last until the clock reaches that time."""
    try:
        age_s = -1.0 if seen is None else time.time() - parse_timestamp(seen.verified_at)
    except ValueError:
        return math.inf
    return age_s if age_s >= 0 else math.inf


class _RecordRenewal:
    """A snapshot's record during its renewal. Written only while it has every file: gates read it."""

    def __init__(self, snapshot: SnapshotLayout, before: dict[str, VerifiedFile | None]) -> None:
        self._snapshot = snapshot
        self._files = before
        self._written = time.monotonic()

    def add(self, path: str, seen: VerifiedFile) -> None:
        self._files[path] = seen
        if time.monotonic() - self._written >= _NOTE_S:
            self.write()

    def write(self) -> None:
        files = {path: entry for path, entry in self._files.items() if entry is not None}
        if len(files) == len(self._files):
            snapshots.write_verified(self._snapshot, VerifiedRecord(files))
            self._written = time.monotonic()


def _open(path: Path) -> int:
    try:
        return durable.open_direct(path, os.O_RDONLY | os.O_NOFOLLOW)[0]
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EMSGSIZE):
            raise
        # No other cause is possible for this call (fs/verity/open.c).
        raise OSError(errno.EUCLEAN, "its fs-verity seal is damaged") from error


def _set_idle_priority() -> None:
    """Give this thread the lowest processor and disk priority that the kernel allows."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux, of the calling thread
    except OSError as error:  # a seccomp profile may refuse it
        _log.info("scrub: works at the ordinary priority: setpriority: %s", error.strerror)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None and ctypes.CDLL(None).syscall(number, 1, 0, _IOPRIO_IDLE) != 0:
        _log.info("scrub: this kernel has no idle class for disk access")
