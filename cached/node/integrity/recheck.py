"""Hash one snapshot now, ahead of the scrub: a gate, a volume or a person doubts it, and a pod may wait for the answer.

Law: one snapshot at a time, by a few threads at ordinary priority and without a rate; who asks for a snapshot that
waits or is hashed shares that check. All files are hashed before anything is repaired. While it lasts the status of the
snapshot's versions is `verifying`, unless a fetch has it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.program.thread_pool import start_pool
from cached.contract.reference import ModelRef
from cached.contract.snapshot.strays import find_strays
from cached.contract.snapshot.verified import VerifiedFile
from cached.contract.snapshot.verify import check_record
from cached.contract.status import State
from cached.node.integrity import files
from cached.node.integrity.files import Apart, Closed, Finding, Stray
from cached.node.integrity.repairs import Repairs, repair
from cached.node.inventory import Inventory
from cached.node.status_files import FetchProgress, StatusFiles
from cached.store.disk import durable
from cached.store.disk.verity import Sealing
from cached.store.version import modes, snapshots
from cached.store.version.repair import is_named

_log = logging.getLogger(__name__)

_PROGRESS_S = 0.2
_ROUNDS = 3  # a restored snapshot is hashed again: what it was restored from may be wrong too
_MOST_THREADS = 4
_MOST_NAMED = 3  # findings in a text


class VersionShow(Repairs, Protocol):
    """The reconciler, as far as a check needs it."""

    def is_fetched(self, ref: ModelRef) -> bool:
        """Return whether a fetch of the version has not ended: its status is the fetch's."""

    def show_settled(self, ref: ModelRef) -> None:
        """Show the status of a version after a check: ready, or none, or that of its fetch."""


@dataclass(frozen=True, slots=True)
class RecheckResult:
    """The outcome of a check. `right`: every file has the promised bytes, and the record was written anew. `restored`:
    so it is now, after parts that were missing or replaced were put back from this node. `withdrawn`: bytes were wrong
    or lost; the versions have no name until they are fetched again. `problem`: for a person, empty where all was right.
    `was_outdated`: the record did not fit the files, whose bytes are right. `took_s`: seconds of hashing."""

    outcome: Literal["right", "restored", "withdrawn"]
    problem: str
    was_outdated: bool
    took_s: float


class Recheck:
    """Checks snapshots at once, one after the other. `run` carries out what `recheck` asks for."""

    def __init__(
        self,
        *,
        layout: Layout,
        inventory: Inventory,
        status_files: StatusFiles,
        versions: VersionShow,
        count_bad: Callable[[], None],
        count_outcome: Callable[[str], None],
    ) -> None:
        self._layout = layout
        self._inventory = inventory
        self._status_files = status_files
        self._versions = versions
        self._count_bad = count_bad  # corrupt files
        self._count_outcome = count_outcome  # checks: `right`, `restored`, `withdrawn`, or `failed`
        self._asked: dict[Digest, asyncio.Future[RecheckResult]] = {}
        self._work = asyncio.Event()
        self._stopping = threading.Event()
        threads = max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // 2))
        self._pieces = [files.new_piece() for _ in range(threads)]
        self._threads = start_pool(threads, "recheck")

    def is_busy(self) -> bool:
        """Return whether a check waits or runs."""
        return bool(self._asked)

    async def recheck(self, digest: Digest) -> RecheckResult:
        """Hash the snapshot `digest` at once and renew its record, or have it restored, or withdrawn, quarantined and
        fetched again. Raises `HoldfastError`: `Permanent` (`not_here`), `Transient` where the disk fails."""
        if digest not in self._asked:
            asked = asyncio.get_running_loop().create_future()
            asked.add_done_callback(_take_exception)
            self._asked[digest] = asked
            self._work.set()
        return await asyncio.shield(self._asked[digest])

    async def run(self) -> None:
        """Check what is asked for until cancelled."""
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                while self._asked:
                    await self._answer(next(iter(self._asked)))
        finally:
            self._stopping.set()
            for asked in self._asked.values():
                asked.cancel()
            self._asked.clear()
            await asyncio.to_thread(self._threads.shutdown)

    async def _answer(self, digest: Digest) -> None:
        try:
            result = await self._check(digest)
        except HoldfastError as error:
            self._count_outcome("failed")
            self._asked.pop(digest).set_exception(error)
        else:
            self._count_outcome(result.outcome)
            self._asked.pop(digest).set_result(result)

    async def _check(self, digest: Digest) -> RecheckResult:
        began, problem = time.monotonic(), ""
        refs = self._inventory.names(digest)
        _log.info("snapshot %s (%s): hashing it again now", digest, _list(refs))
        try:
            for _ in range(_ROUNDS):
                checking = self._begin_check(digest)
                await self._hash(checking, began)
                took_s = time.monotonic() - began
                if not checking.findings:
                    outdated = checking.was_outdated and not problem
                    _log.info("snapshot %s (%s): %s", digest, _list(refs), _describe(problem, outdated=outdated))
                    return RecheckResult("restored" if problem else "right", problem, outdated, took_s)
                problem = problem or "; ".join(map(str, checking.findings[:_MOST_NAMED]))
                await self._repair(checking)
                if digest not in self._inventory.manifests:
                    return RecheckResult("withdrawn", problem, was_outdated=False, took_s=took_s)
            raise Transient(
                "not_restored",
                f"snapshot {digest} ({_list(refs)}): not right after {_ROUNDS} repairs: {problem}",
                "look at the node's disk and kernel log, and for programs that change files under the root",
            )
        finally:
            for ref in refs:
                self._versions.show_settled(ref)

    def _begin_check(self, digest: Digest) -> _Check:
        manifest = self._inventory.manifests.get(digest)
        if manifest is None:
            raise Permanent("not_here", f"snapshot {digest} is not on this node", "`holdfast ls` lists what is here")
        return _Check(self._layout, digest, manifest, self._inventory.names(digest), self._stopping)

    async def _repair(self, checking: _Check) -> None:
        for finding in checking.findings:
            _log.error("snapshot %s: %s", checking.digest, finding)
            if not isinstance(finding, Apart | Stray | Closed):
                self._count_bad()
        await repair(self._versions, checking.digest, checking.findings)

    async def _hash(self, checking: _Check, began: float) -> None:
        """Run the steps of a check on the threads, and show its progress; return early where the first has findings."""
        self._show(checking, began)
        await self._call(checking, [checking.begin], began)
        for _ in range(_ROUNDS):
            if checking.findings or checking.is_finished:
                return
            await self._call(checking, [partial(checking.hash_files, piece) for piece in self._pieces], began)
            if not checking.findings:
                await self._call(checking, [checking.finish], began)

    async def _call(self, checking: _Check, steps: Sequence[Callable[[], None]], began: float) -> None:
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._threads, step) for step in steps]
        try:
            while (await asyncio.wait(jobs, timeout=_PROGRESS_S))[1]:
                self._show(checking, began)
            for job in jobs:
                job.result()
        except OSError as error:
            if not checking.snapshot.path.exists():
                problem = f"snapshot {checking.digest} was removed while it was hashed"
                raise Permanent("not_here", problem, "`holdfast ls` lists what is here") from error
            raise durable.disk_error(error, f"hashing snapshot {checking.digest}") from error
        finally:
            checking.is_over.set()
            await asyncio.wait(jobs)
            checking.is_over.clear()

    def _show(self, checking: _Check, began: float) -> None:
        """Show the progress in the status of each version, except of one that is being fetched."""
        took_s, total = time.monotonic() - began, checking.manifest.total_bytes
        rate = checking.done / took_s if took_s > 0 and checking.done else None
        left_s = (total - checking.done) / rate if rate is not None else None
        for ref in checking.refs:
            status = self._status_files.get(ref)
            is_shown = status is not None and status.state in (State.READY, State.VERIFYING)
            is_held = self._inventory.models.get(ref) == checking.digest
            if is_shown and is_held and not self._versions.is_fetched(ref):
                self._status_files.set_checking(ref, checking.digest, FetchProgress(total, checking.done, rate, left_s))


class _Check:
    """One pass over a snapshot; its steps block. `findings`: what is not as it should be, in no order; `done`: bytes
    hashed; `is_over` ends the hashing early; `is_finished`: the record was written anew."""

    def __init__(
        self, layout: Layout, digest: Digest, manifest: Manifest, refs: Sequence[ModelRef], stopping: threading.Event
    ) -> None:
        self.digest = digest
        self.manifest = manifest
        self.refs = refs
        self.snapshot = layout.public.snapshot(digest)
        self.findings: list[Finding] = []
        self.was_outdated = False
        self.done = 0
        self.is_over = threading.Event()
        self.is_finished = False
        self._layout = layout
        self._stopping = stopping
        self._before: dict[str, VerifiedFile] = {}
        self._suspects: set[str] = set()  # files that do not fit the record, and are not hashed yet
        self._waiting: Iterator[FileEntry] = iter(())
        self._seen: dict[str, VerifiedFile] = {}
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Look at what costs no hash: the manifest, names and records, whether each file is its blob's own, and
        whether there is anything else."""
        self.was_outdated = self._is_outdated()
        if (bad := files.check_manifest(self.snapshot, self.digest)) is not None:
            self.findings.append(bad)
        elif not is_named(self._layout, self.refs, self.digest):
            self.findings.append(Apart("its name, or one of its records"))
        else:
            apart = (e for e in self.manifest.files if not snapshots.is_blob(self._layout, self.snapshot, e))
            self.findings += [Apart(entry.path) for entry in apart]
            self.findings += map(Stray, find_strays(self.snapshot, self.manifest))
            self.findings += map(Closed, modes.find_closed(self._layout, self.digest, self.manifest))
        self._before = files.read_record(self._layout, self.digest)
        self._suspects = {entry.path for entry in self.manifest.files if not self._fits(entry.path, self._before)}
        order = sorted(self.manifest.files, key=lambda entry: (entry.path not in self._suspects, -entry.size))
        self._waiting = iter(order)

    def hash_files(self, piece: memoryview) -> None:
        """Hash files until none is left, first those that do not fit the record; once these are right, the record fits
        again, and a gate need not wait for the others. One thread of several. Raises OSError."""

        def pace(count: int, _took_s: float) -> None:
            if self.is_over.is_set() or self._stopping.is_set():
                raise InterruptedError
            with self._lock:
                self.done += count

        def hash_(path: Path, seal: str | None) -> str:
            return files.hash_file(path, piece, pace, seal)

        while (entry := self._take()) is not None:
            try:
                seen = files.check_file(self._layout, self.digest, entry, Sealing.NONE, hash_)
            except InterruptedError:
                return
            with self._lock:
                if isinstance(seen, VerifiedFile):
                    self._seen[entry.path] = seen
                else:
                    self.findings.append(seen)
                is_last = self._suspects == {entry.path}
                self._suspects.discard(entry.path)
                renewed = {**self._before, **self._seen} if is_last and not self.findings else None
            if renewed is not None:
                self._write(renewed)

    def finish(self) -> None:
        """Write the record anew, by which gates that doubted the old one know the verdict; but have the files hashed
        again that were touched since their hash: their doubt is younger than it. Raises OSError."""
        if self._stopping.is_set():
            return
        touched = [entry for entry in self.manifest.files if not self._fits(entry.path, self._seen)]
        if touched:
            self._waiting = iter(touched)
        else:
            self._write(self._seen)
            self.is_finished = True

    def _write(self, seen: dict[str, VerifiedFile]) -> None:
        with files.renewing(self._layout, self.digest, self.manifest, seen) as renewal:
            renewal.write()

    def _fits(self, path: str, record: Mapping[str, VerifiedFile]) -> bool:
        try:
            found = os.lstat(self.snapshot.path / path)
        except OSError:
            return False
        seen = record.get(path)
        return seen is not None and seen.fits(found)

    def _take(self) -> FileEntry | None:
        with self._lock:
            return next(self._waiting, None)

    def _is_outdated(self) -> bool:
        try:
            check_record(self.snapshot, self.manifest)
        except HoldfastError:
            return True
        return False


def _describe(problem: str, *, outdated: bool) -> str:
    if problem:
        return f"put back from what is on this node, and hashed again: right ({problem})"
    return "hashed again: right; its record was out of date and is renewed" if outdated else "hashed again: right"


def _list(refs: Sequence[ModelRef]) -> str:
    return ", ".join(map(str, refs)) or "without a name"


def _take_exception(asked: asyncio.Future[RecheckResult]) -> None:
    """Count an exception as taken, also where all who asked are gone by now."""
    if not asked.cancelled():
        asked.exception()
