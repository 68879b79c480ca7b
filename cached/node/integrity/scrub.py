"""The scrub: hash published files again, slowly and for ever, and report corrupt ones.

Law: at idle priority, within its rate, and paused during fetches. Oldest record first; the record is written every
minute, so that a restart continues. An error that condemns nothing is logged and checked in the next round. Blobs
without an fs-verity seal are sealed here.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.program.thread_pool import start_pool
from cached.contract.status import parse_timestamp
from cached.contract.verified import VerifiedFile
from cached.node.integrity import files
from cached.node.integrity.files import Apart, Finding
from cached.node.integrity.repairs import Repairs, repair
from cached.node.inventory import Inventory
from cached.store.disk.verity import Sealing

_log = logging.getLogger(__name__)

_FILE_COST_BYTES = 256 * 1024  # the processor cost of opening a file, as bytes: many small files are work
_PAUSE_S = 2.0  # between snapshots, and during fetches
_NICE = 19
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # the system call's number
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, ioprio_set(2)


@dataclass(frozen=True, slots=True)
class ScrubParts:
    """The parts that the scrub uses. `busy` returns whether a fetch or an urgent check runs; `count_hashed` counts
    hashed bytes, `count_bad` corrupt files."""

    layout: Layout
    inventory: Inventory
    sealing: Sealing
    busy: Callable[[], bool]
    repairs: Repairs
    count_hashed: Callable[[int], None]
    count_bad: Callable[[], None]


class Scrub:
    """One thread, `rate` bytes a second."""

    def __init__(self, parts: ScrubParts, rate: int) -> None:
        self._parts = parts
        self._rate = rate
        self._piece = files.new_piece()
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
                found = await loop.run_in_executor(self._thread, partial(self._check_oldest, manifests))
                if found is not None:
                    await self._repair(*found)
        finally:
            self._stopping.set()
            await asyncio.to_thread(self._thread.shutdown)

    async def _repair(self, digest: Digest, finding: Finding) -> None:
        if not isinstance(finding, Apart):
            self._parts.count_bad()
        try:
            await repair(self._parts.repairs, digest, [finding])
        except HoldfastError as error:
            _log.error("scrub: snapshot %s is still in use: %s: %s", digest, finding, error)
        else:
            self._checked.pop(digest, None)  # its other files are checked as soon as it is restored

    def _check_oldest(self, manifests: dict[Digest, Manifest]) -> tuple[Digest, Finding] | None:
        """Hash the snapshot with the oldest record, its oldest file first, up to the first finding."""
        self._checked = {digest: self._checked.get(digest) or self._last_checked(digest) for digest in manifests}
        digest = min(manifests, key=self._checked.__getitem__)
        self._checked[digest] = time.monotonic()  # also if it fails: the other snapshots must be checked too
        snapshot = self._parts.layout.public.snapshot(digest)
        try:
            finding = files.check_manifest(snapshot, digest) or self._check_files(digest, manifests[digest])
        except OSError as error:
            if snapshot.path.exists():  # else it was evicted during the check
                _log.warning("scrub: snapshot %s: %s", digest, error)
            return None
        return None if finding is None else (digest, finding)

    def _check_files(self, digest: Digest, manifest: Manifest) -> Finding | None:
        layout = self._parts.layout
        before = files.read_record(layout, digest)
        with files.renewing(layout, digest, manifest, before) as renewal:
            for entry in sorted(manifest.files, key=lambda e: -_age_s(before.get(e.path))):
                try:
                    if self._parts.sealing is not Sealing.NONE:
                        self._wait(0)
                    seen = files.check_file(layout, digest, entry, self._parts.sealing, self._hash)
                except InterruptedError:
                    break
                if not isinstance(seen, VerifiedFile):
                    return seen
                renewal.add(entry.path, seen)
            renewal.write()
        return None

    def _last_checked(self, digest: Digest) -> float:
        return time.monotonic() - max(
            (_age_s(entry) for entry in files.read_record(self._parts.layout, digest).values()), default=math.inf
        )

    def _hash(self, path: Path, seal: str | None) -> str:
        return files.hash_file(path, self._piece, self._keep_rate, seal)

    def _keep_rate(self, count: int, took_s: float) -> None:
        self._parts.count_hashed(count)
        self._wait((count + _FILE_COST_BYTES) / self._rate - took_s)

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


def _set_idle_priority() -> None:
    """Give this thread the lowest processor and disk priority that the kernel allows."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux, of the calling thread
    except OSError as error:  # a seccomp profile may refuse it
        _log.info("scrub: works at the ordinary priority: setpriority: %s", error.strerror)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None and ctypes.CDLL(None).syscall(number, 1, 0, _IOPRIO_IDLE) != 0:
        _log.info("scrub: this kernel has no idle class for disk access")
