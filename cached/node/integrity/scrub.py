"""The scrub: hash published files again, once in a period, and report corrupt ones.

Law: at idle priority, within its rate; fetches come first until a snapshot's period is over. It sleeps until the next
snapshot is due (`scrub_plan.py`): oldest record first; files that were hashed lately are left out. The record is
written every minute, so that a restart continues. An error that condemns nothing is logged and tried again later. Blobs
without an fs-verity seal are sealed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.program.thread_pool import start_pool
from cached.contract.program.units import format_duration
from cached.contract.snapshot.verified import VerifiedFile
from cached.contract.status import parse_timestamp
from cached.node.integrity import files
from cached.node.integrity.files import Apart, Finding
from cached.node.integrity.repairs import Repairs, repair
from cached.node.integrity.scrub_plan import EARLIEST, OldestHash, ScrubPlan
from cached.node.inventory import Inventory
from cached.store.disk.verity import Sealing

_log = logging.getLogger(__name__)

T = TypeVar("T")

_FILE_COST_BYTES = 256 * 1024  # the processor cost of opening a file, as bytes: many small files are work
_PAUSE_S = 2.0  # between snapshots, and during fetches
_NICE = 19
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # the system call's number
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, ioprio_set(2)


@dataclass(frozen=True, slots=True)
class ScrubParts:
    """The parts that the scrub uses. `is_fetching` returns whether bytes are fetched, `is_checking` whether an urgent
    check waits or runs; `count_hashed` counts hashed bytes, `count_bad` corrupt files."""

    layout: Layout
    inventory: Inventory
    sealing: Sealing
    is_fetching: Callable[[], bool]
    is_checking: Callable[[], bool]
    repairs: Repairs
    count_hashed: Callable[[int], None]
    count_bad: Callable[[], None]


@dataclass(frozen=True, slots=True)
class ScrubPace:
    """Each file is hashed once in `period_s` seconds, at most `rate` bytes a second. `node`: this node's name, so that
    no two nodes hash a version at the same time."""

    rate: int
    period_s: float
    node: str


class Scrub:
    """One thread, which hashes a due snapshot after the other."""

    def __init__(self, parts: ScrubParts, pace: ScrubPace) -> None:
        self._parts = parts
        self._pace = pace
        self._plan = ScrubPlan(pace.period_s, pace.node)
        self._piece = files.new_piece()
        self._stopping = threading.Event()
        self._deadline = math.inf  # of the snapshot that is hashed: until then fetches come first
        self._hurried: set[Digest] = set()  # repaired: the other files are hashed as soon as the snapshot is restored
        self._costs: dict[Digest, int] = {}  # bytes to hash, and what opening the files costs
        self._unsealed = parts.sealing is not Sealing.NONE  # until the first records are read: blobs may lack a seal
        self._is_slow = False
        self._thread = start_pool(1, "scrub", _set_idle_priority)

    def compute_oldest_age_s(self) -> float:
        """Return the seconds since the file was hashed whose hash is the oldest."""
        return self._plan.compute_oldest_age_s(time.monotonic())

    async def run(self) -> None:
        """Scrub until cancelled."""
        try:
            while True:
                await asyncio.sleep(_PAUSE_S)
                await self._update_plan()
                now = time.monotonic()
                digest = self._plan.find_due(now)
                if digest is None:
                    await self._sleep(self._plan.find_next_due() - now)
                elif not self._must_wait(self._plan.get_deadline(digest)):
                    await self._check(digest)
        finally:
            self._stopping.set()
            await asyncio.to_thread(self._thread.shutdown)

    async def _sleep(self, seconds: float) -> None:
        """Wait for the next due snapshot, or for a change of the inventory."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._parts.inventory.snapshots_changed.wait()

    async def _update_plan(self) -> None:
        """Plan the snapshots that are new, or were put back, by their records."""
        inventory = self._parts.inventory
        changed = inventory.take_changed_snapshots()
        if not changed:
            return
        here = [digest for digest in changed if digest in inventory.manifests]
        self._plan.forget(changed.difference(here))
        for digest in changed:
            self._costs.pop(digest, None)
        self._costs.update((digest, _cost(inventory.manifests[digest])) for digest in here)
        self._warn_if_slow()
        await self._note(here)

    async def _note(self, digests: Collection[Digest]) -> None:
        found = await self._call(partial(self._read_all, tuple(digests)))
        now = time.monotonic()
        self._plan.note(found, now)
        for digest in self._hurried.intersection(found):
            self._plan.hurry(digest, now)
        self._hurried.difference_update(found)

    async def _check(self, digest: Digest) -> None:
        inventory = self._parts.inventory
        if (manifest := inventory.manifests.get(digest)) is None:
            self._plan.forget((digest,))
            return
        self._deadline = self._plan.get_deadline(digest)
        try:
            finding = await self._call(partial(self._find_first, digest, manifest))
        except OSError as error:
            if digest in inventory.manifests:  # else it was evicted during the check
                if await self._call(self._parts.layout.public.snapshot(digest).path.exists):  # else it is being evicted
                    _log.warning("scrub: snapshot %s: %s", digest, error)
                self._plan.put_off(digest, time.monotonic())
            return
        if finding is not None and not await self._repair(digest, finding):
            self._plan.put_off(digest, time.monotonic())
        elif digest in inventory.manifests:
            await self._note((digest,))

    async def _call(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)

    async def _repair(self, digest: Digest, finding: Finding) -> bool:
        """Have a snapshot repaired; return False where that fails."""
        if not isinstance(finding, Apart):
            self._parts.count_bad()
        try:
            await repair(self._parts.repairs, digest, [finding])
        except HoldfastError as error:
            _log.error("scrub: snapshot %s is still in use: %s: %s", digest, finding, error)
            return False
        self._hurried.add(digest)
        return True

    def _warn_if_slow(self) -> None:
        """Say it once if the rate is too low for the period."""
        takes_s, period_s = sum(self._costs.values()) / self._pace.rate, self._pace.period_s
        was_slow, self._is_slow = self._is_slow, takes_s > period_s
        if self._is_slow and not was_slow:
            _log.warning(
                "scrub: at --scrub-rate all files take %s, longer than --scrub-period (%s): it goes on without a pause",
                format_duration(takes_s),
                format_duration(period_s),
            )

    def _find_first(self, digest: Digest, manifest: Manifest) -> Finding | None:
        """Hash a snapshot, its oldest file first, up to the first finding. Raises OSError."""
        snapshot = self._parts.layout.public.snapshot(digest)
        return files.check_manifest(snapshot, digest) or self._check_files(digest, manifest)

    def _check_files(self, digest: Digest, manifest: Manifest) -> Finding | None:
        layout = self._parts.layout
        before = files.read_record(layout, digest)
        ages = {entry.path: _age_s(before.get(entry.path)) for entry in manifest.files}
        due = [entry for entry in manifest.files if self._is_due(ages[entry.path], before.get(entry.path))]
        with files.renewing(layout, digest, manifest, before) as renewal:
            for entry in sorted(due, key=lambda entry: -ages[entry.path]):
                try:
                    if self._parts.sealing is not Sealing.NONE:
                        self._wait(0)
                    seen = files.check_file(layout, digest, entry, self._parts.sealing, self._hash)
                except InterruptedError:
                    break
                if not isinstance(seen, VerifiedFile):
                    return seen
                renewal.add(entry.path, seen)
            if due:
                renewal.write()
        return None

    def _is_due(self, age_s: float, seen: VerifiedFile | None) -> bool:
        """Return whether a file of a due snapshot is hashed too: not if that was done lately."""
        has_no_seal = self._parts.sealing is not Sealing.NONE and (seen is None or seen.verity is None)
        return has_no_seal or age_s >= EARLIEST * self._pace.period_s

    def _read_all(self, digests: Collection[Digest]) -> Mapping[Digest, OldestHash]:
        wants_seals, self._unsealed = self._unsealed, False
        return {digest: self._read(digest, wants_seals=wants_seals) for digest in digests}

    def _read(self, digest: Digest, *, wants_seals: bool) -> OldestHash:
        """Return the oldest hash of a snapshot; with `wants_seals` a file without a seal counts as overdue."""
        record = files.read_record(self._parts.layout, digest)
        oldest = max(record.values(), key=_age_s, default=None)
        age_s = _age_s(oldest)
        if wants_seals and any(seen.verity is None for seen in record.values()):
            age_s = max(age_s, self._pace.period_s)
        return OldestHash("" if oldest is None else oldest.verified_at, age_s)

    def _hash(self, path: Path, seal: str | None) -> str:
        return files.hash_file(path, self._piece, self._keep_rate, seal)

    def _keep_rate(self, count: int, took_s: float) -> None:
        self._parts.count_hashed(count)
        self._wait((count + _FILE_COST_BYTES) / self._pace.rate - took_s)

    def _wait(self, seconds: float) -> None:
        """Wait `seconds` for the rate, and then for running fetches. Raises InterruptedError when the scrub stops."""
        self._stopping.wait(max(0.0, seconds))
        while self._must_wait(self._deadline) and not self._stopping.is_set():
            self._stopping.wait(0.2)
        if self._stopping.is_set():
            raise InterruptedError

    def _must_wait(self, deadline: float) -> bool:
        """Return whether others come first: an urgent check, and until `deadline` a fetch."""
        return self._parts.is_checking() or (self._parts.is_fetching() and time.monotonic() < deadline)


def _cost(manifest: Manifest) -> int:
    return manifest.total_bytes + _FILE_COST_BYTES * len(manifest.files)


def _age_s(seen: VerifiedFile | None) -> float:
    """Return the seconds since a file was hashed; infinity for a file that was put back and not hashed since, and for a
    time in the future (a clock was set back since): that file comes first, or it would come last until the clock
    reaches that time."""
    hashed = None if seen is None or not seen.is_hashed else _parse(seen.verified_at)
    age_s = -1.0 if hashed is None else time.time() - hashed
    return age_s if age_s >= 0 else math.inf


@lru_cache(maxsize=1024)
def _parse(stamp: str) -> float | None:
    # Cached: the files of a version, and often of many, were hashed in the same second.
    try:
        return parse_timestamp(stamp)
    except ValueError:
        return None


def _set_idle_priority() -> None:
    """Give this thread the lowest processor and disk priority that the kernel allows."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux, of the calling thread
    except OSError as error:  # a seccomp profile may refuse it
        _log.info("scrub: works at the ordinary priority: setpriority: %s", error.strerror)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None and ctypes.CDLL(None).syscall(number, 1, 0, _IOPRIO_IDLE) != 0:
        _log.info("scrub: this kernel has no idle class for disk access")
