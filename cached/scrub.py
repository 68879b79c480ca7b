"""Hash what is on the disk again, slowly and for ever, and take out of use what no longer matches.

Law: reads past the page cache where the file system lets it, since bit rot sits on the disk; at idle priority, within
its rate, and not at all while a fetch is under way. Oldest record first.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import hashlib
import logging
import mmap
import os
import platform
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.status import timestamp
from cached.contract.verified import VerifiedFile, VerifiedRecord
from cached.holdings import Holdings
from cached.metrics import Metrics
from cached.store import snapshots

_log = logging.getLogger(__name__)

_PIECE = 1024 * 1024
_PAUSE_S = 1.0  # between snapshots, and while a fetch is under way
_NICE = 19
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # the system call's number
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, ioprio_set(2)


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
        self._stopping = False
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
                    await self._parts.bad(sha256)
        finally:
            self._stopping = True
            self._thread.shutdown()

    def _check_oldest(self, manifests: dict[Digest, Manifest]) -> list[str]:
        """Hash the snapshot whose record is oldest; returns the blobs that do not match."""
        digest = min(manifests, key=self._last_checked)
        snapshot = self._parts.layout.public.snapshot(digest)
        damaged: list[str] = []
        record: dict[str, VerifiedFile] = {}
        found: dict[str, str] = {}
        for entry in manifests[digest].files:
            try:
                before = os.lstat(snapshot.path / entry.path)
                if entry.sha256 not in found:
                    found[entry.sha256] = self._hash(self._parts.layout.blob(entry.sha256))
            except FileNotFoundError:
                return []  # evicted meanwhile
            except InterruptedError:
                return damaged
            except OSError as error:  # the disk itself refuses to read it
                _log.error("scrub: %s: %s", entry.path, error.strerror)
                found[entry.sha256] = "unreadable"
            if found[entry.sha256] != entry.sha256:
                _log.error("scrub: %s in snapshot %s: sha256 is %s", entry.path, digest, found[entry.sha256])
                self._parts.metrics.verify_failed("scrub")
                damaged.append(entry.sha256)
            record[entry.path] = VerifiedFile.of(before, timestamp(time.time()))
        if not damaged:
            # the snapshot may have been evicted meanwhile, or the disk be full: the next pass tells
            with contextlib.suppress(OSError):
                snapshots.write_verified(snapshot, VerifiedRecord(record))
        return sorted(set(damaged))

    def _last_checked(self, digest: Digest) -> str:
        try:
            record = VerifiedRecord.parse(self._parts.layout.public.snapshot(digest).verified.read_bytes())
        except (OSError, HoldfastError):
            return ""  # no record, or none that can be read: first of all
        return min((entry.verified_at for entry in record.files.values()), default="")

    def _hash(self, path: os.PathLike[str]) -> str:
        sha = hashlib.sha256()
        descriptor = _open(path)
        try:
            with mmap.mmap(-1, _PIECE) as piece, memoryview(piece) as view:
                offset = 0
                while count := os.preadv(descriptor, [view], offset):
                    started = time.monotonic()
                    sha.update(view[:count])
                    offset += count
                    self._parts.metrics.scrubbed(count)
                    self._wait(count / self._rate - (time.monotonic() - started))
        finally:
            os.close(descriptor)
        return sha.hexdigest()

    def _wait(self, seconds: float) -> None:
        """Keep to the rate, and step aside while a fetch is under way."""
        if seconds > 0:
            time.sleep(seconds)
        while self._parts.busy() and not self._stopping:
            time.sleep(0.2)
        if self._stopping:
            raise InterruptedError


def _open(path: os.PathLike[str]) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _yield_to_everybody() -> None:
    """Give this thread the lowest claim on processor and disk that there is."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux, of the calling thread
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None and ctypes.CDLL(None).syscall(number, 1, 0, _IOPRIO_IDLE) != 0:
        _log.info("scrub: this kernel has no idle class for disk access")
