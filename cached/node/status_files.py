"""The status files: one for each version that is wanted or published, and the daemon's heartbeat.

Law: the only writer of `public/status`. Writes go through one thread, in order, so a slow disk delays no fetch; they
are atomic and not synced, since a restart rewrites them. Versions that change at the same time are written in one
round, each with its newest status by then: while many versions are fetched, no reader needs a state of a few
milliseconds. A version that appears, goes, succeeds, fails or begins anew is written at once, and in that order: who
sees one of these changes sees the earlier ones.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import PublicLayout
from cached.contract.program.thread_pool import start_pool
from cached.contract.reference import ModelRef
from cached.contract.release import VERSION
from cached.contract.status import (
    NO_VERDICT,
    DaemonStatus,
    ModelStatus,
    Stale,
    State,
    StatusError,
    Verdict,
    encode,
    timestamp,
)
from cached.node.disk_watch import hang_error
from cached.node.log_once import LogOnce
from cached.store.disk import durable
from cached.store.version.snapshots import remove_empty

_log = logging.getLogger(__name__)
_FILE_MODE = 0o644
_SUBJECT = "status files"
_CANNOT = "they cannot be written"
_PAUSE_S = 0.1  # between two rounds of writes
_SETTLED = (State.READY, State.FAILED)
_MOST_RECENT_ERRORS = 32


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """The progress of a fetch, in bytes, bytes a second and seconds; None: unknown. `from_peers`: of `done`, what other
    nodes sent."""

    total: int | None
    done: int
    rate: float | None = None
    eta_s: float | None = None
    from_peers: int = 0


@dataclass(frozen=True, slots=True)
class AdoptedVersion:
    """A version that a start found; `size` in bytes, `source` that of its content, without credentials."""

    digest: Digest
    size: int
    pinned: bool
    source: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class _Content:
    """The fields of a version's status that do not depend on its state."""

    held: str | None
    stale: Stale | None
    refused_pins: dict[str, StatusError]
    refused_namespaces: dict[str, StatusError]
    verdict: Verdict = NO_VERDICT


_NO_CONTENT = _Content(None, None, {}, {})


@dataclass(frozen=True, slots=True)
class RecentError:
    """An error that a version had since the start, `count` times, the last time at `at` (seconds since the epoch)."""

    ref: ModelRef
    error: StatusError
    at: float
    count: int


class StatusFiles:
    """The status of every version, in memory and in its file."""

    def __init__(self, public: PublicLayout, node: str, check: Callable[[], None]) -> None:
        self._public = public
        self._check = check
        self._log_once = LogOnce(_log)
        self._trouble: HoldfastError | None = None
        self._stale = False  # whether a file may differ from its status
        self._beating_since: float | None = None  # monotonic seconds, while a heartbeat waits to be written
        self.news = asyncio.Event()  # set whenever a status changes; the waiter clears it
        self.changes = 0  # of statuses, since the start
        self._recent_errors: dict[tuple[ModelRef, str], RecentError] = {}  # by version and code, the last one last
        self._contents: dict[ModelRef, _Content] = {}
        self._lock = threading.Condition()  # of the five below, which the writer uses too
        self._statuses: dict[ModelRef, ModelStatus] = {}
        self._pending: dict[ModelRef, ModelStatus | None] = {}  # to write, or to delete; the last changed one last
        self._round_queued = False  # whether a round of writes is queued that has not taken the pending statuses
        self._urgent: dict[ModelRef, None] = {}  # pending ones to write before the next round; ordered as these
        self._hurry = False  # whether the next round starts at once
        self._next_round = 0.0  # monotonic seconds; used by the writer only
        self._writer = start_pool(1, "status")
        now = timestamp(time.time())
        self.daemon = DaemonStatus(node, VERSION, os.getpid(), now, now)  # the last heartbeat

    @property
    def trouble_writing(self) -> HoldfastError | None:
        """The error of the last heartbeat's write, None if it succeeded."""
        return self.hanging or self._trouble

    @property
    def hanging(self) -> Transient | None:
        """The error of a disk that has not taken a heartbeat for `disk_watch.HANGING_S`, else None."""
        return hang_error(self._public.path, self._beating_since)

    def all(self) -> tuple[ModelStatus, ...]:
        """Return every status, sorted by model and version."""
        return tuple(self._statuses[ref] for ref in sorted(self._statuses))

    @property
    def recent_errors(self) -> tuple[RecentError, ...]:
        """The last errors of versions since the start, the newest first: one for each version and code."""
        return tuple(reversed(self._recent_errors.values()))

    def list_segments(self) -> frozenset[str]:
        """Return the names of the folders of all status files."""
        return frozenset(ref.path_segment for ref in self._statuses)

    def get(self, ref: ModelRef) -> ModelStatus | None:
        """Return a version's status, None if it has none."""
        return self._statuses.get(ref)

    def reset(self, ref: ModelRef, state: State, source: str, pin: Digest | None) -> None:
        """Reset a version to `state`, without error or progress. `source` carries no credentials."""
        self._put(ref, _status(ref, state, source, pin, pinned=pin is not None))

    def resolve(self, ref: ModelRef, source: str, pin: Digest | None) -> None:
        """Set a version to RESOLVING; the error of its last attempt stays until the source has answered."""
        status = _status(ref, State.RESOLVING, source, pin, pinned=pin is not None)
        self._put(ref, status, error=self._statuses[ref].error)

    def set_progress(
        self, ref: ModelRef, state: State, progress: FetchProgress, trouble: HoldfastError | None = None
    ) -> None:
        """Set a version's state and progress; `trouble` is the error that is being retried."""
        self._put(
            ref,
            self._statuses[ref],
            state=state,
            error=None if trouble is None else StatusError.of(trouble),
            bytes_total=progress.total,
            bytes_done=progress.done,
            rate_bytes_per_s=progress.rate,
            eta_s=progress.eta_s,
            bytes_from_peers=progress.from_peers,
        )

    def set_checking(self, ref: ModelRef, digest: Digest, progress: FetchProgress) -> None:
        """Set a held version to VERIFYING: its files are hashed again; its source and whether it is pinned stay."""
        old = self._statuses.get(ref)
        source, pinned = ("", False) if old is None else (old.source, old.pinned)
        self._put(
            ref,
            _status(ref, State.VERIFYING, source, digest, pinned=pinned),
            bytes_total=progress.total,
            bytes_done=progress.done,
            rate_bytes_per_s=progress.rate,
            eta_s=progress.eta_s,
        )

    def set_error(self, ref: ModelRef, state: State, error: HoldfastError) -> None:
        """Set a version's state and error."""
        status = self._statuses[ref]
        self._put(ref, status, state=state, error=StatusError.of(error), rate_bytes_per_s=None, eta_s=None)

    def set_content(self, ref: ModelRef, held: str | None, stale: tuple[str, str | None] | None) -> None:
        """Set the digest that a version's name points at, and why that is stale (reason and digest of `Stale`)."""
        old = self._contents.get(ref, _NO_CONTENT)
        known = None if old.stale is None else (old.stale.reason, old.stale.digest)
        if (old.held, known) == (held, stale):
            return
        since = None if stale is None else Stale(*stale, timestamp(time.time()))
        self._put_content(ref, replace(old, held=held, stale=since))

    def set_refusals(self, ref: ModelRef, pins: dict[str, StatusError], namespaces: dict[str, StatusError]) -> None:
        """Set the errors of some pods only: by digest, of those whose pin cannot be met; by namespace, of those that
        the catalog does not give the version to."""
        old = self._contents.get(ref, _NO_CONTENT)
        if (old.refused_pins, old.refused_namespaces) != (pins, namespaces):
            self._put_content(ref, replace(old, refused_pins=pins, refused_namespaces=namespaces))

    def set_verdict(self, ref: ModelRef, verdict: Verdict) -> None:
        """Set what is known of a version's files."""
        old = self._contents.get(ref, _NO_CONTENT)
        if old.verdict != verdict:
            self._put_content(ref, replace(old, verdict=verdict))

    def _put_content(self, ref: ModelRef, content: _Content) -> None:
        if content == _NO_CONTENT:
            self._contents.pop(ref, None)
        else:
            self._contents[ref] = content
        if ref in self._statuses:
            self._put(ref, self._statuses[ref])

    def set_ready(self, ref: ModelRef, digest: Digest, size: int, *, pinned: bool, source: str) -> None:
        """Set a version to READY; `source` is the source of its content."""
        self._contents[ref] = replace(self._contents.get(ref, _NO_CONTENT), held=str(digest))
        status = _status(ref, State.READY, source, digest, pinned=pinned)
        self._put(ref, status, bytes_total=size, bytes_done=size)

    def adopt(self, ref: ModelRef, status: ModelStatus) -> None:
        """Take over a version's status from the last daemon; its file exists already."""
        self.changes += 1
        with self._lock:
            self._statuses[ref] = status

    def adopt_ready(self, ref: ModelRef, ready: AdoptedVersion, *, is_exact: bool) -> None:
        """Set a version that was found here to READY; its file is not written if it says so already. `is_exact`: the
        file is the one that would be written of the status that was adopted."""
        digest = str(ready.digest)
        self._contents[ref] = _Content(digest, None, {}, {}, ready.verdict)
        old = self._statuses.get(ref)
        pinned, source, verdict = ready.pinned, ready.source, ready.verdict
        if not (
            old is not None
            and is_exact
            and old.is_of_held(ref, digest, ready.size, pinned=pinned, source=source, verdict=verdict)
        ):
            self.set_ready(ref, ready.digest, ready.size, pinned=pinned, source=source)

    def drop(self, ref: ModelRef) -> None:
        """Remove the status and the file of a version that is neither published nor wanted."""
        self._contents.pop(ref, None)
        if ref in self._statuses:
            self._set(ref, None)

    def sweep(self) -> None:
        """Delete the files of versions without a status, and empty folders, left by a crash or by hand."""
        self._writer.submit(self._sweep)

    def write_heartbeat(self) -> None:
        """Write the heartbeat; after failed writes, rewrite all files once one succeeds."""
        self.daemon = replace(self.daemon, updated=timestamp(time.time()))
        if self._beating_since is not None:
            return  # the last heartbeat is not written yet
        if self._stale and self._trouble is None:
            self._stale = False
            self.sweep()
            for ref, status in self._statuses.items():
                self._queue(ref, status)
        self._beating_since = time.monotonic()
        self._writer.submit(self._beat, self.daemon.document())

    def restore(self) -> None:
        """Rewrite files that were deleted by hand."""
        self._writer.submit(self._write_missing)

    async def flushed(self) -> None:
        """Wait until every status so far is in its file."""
        self._end_pause()
        await asyncio.get_running_loop().run_in_executor(self._writer, lambda: None)  # after all earlier jobs

    def close(self) -> None:
        """Write pending files and end the thread."""
        self._end_pause()
        self._writer.shutdown()

    def _put(self, ref: ModelRef, status: ModelStatus, **changes: Any) -> None:
        """Set `status`, with these changes to its fields."""
        now = timestamp(time.time())
        old, content = self._statuses.get(ref), self._contents.get(ref, _NO_CONTENT)
        state = changes.get("state", status.state)
        since = old.since if old is not None and old.state == state else now
        known = {each.name: getattr(content, each.name) for each in fields(content)}
        fresh = replace(status, since=since, updated=now, **known, **changes)
        if fresh.error is not None and (old is None or old.error != fresh.error):
            self._note_error(ref, fresh.error)
        self._set(ref, fresh)

    def _note_error(self, ref: ModelRef, error: StatusError) -> None:
        before = self._recent_errors.pop((ref, error.code), None)
        count = 1 if before is None else before.count + 1
        self._recent_errors[ref, error.code] = RecentError(ref, error, time.time(), count)
        if len(self._recent_errors) > _MOST_RECENT_ERRORS:
            del self._recent_errors[next(iter(self._recent_errors))]

    def _set(self, ref: ModelRef, status: ModelStatus | None) -> None:
        old = self._statuses.get(ref)
        self.changes += 1
        with self._lock:
            if status is None:
                del self._statuses[ref]
            else:
                self._statuses[ref] = status
        self.news.set()
        is_urgent = old is None or status is None or _settles(old.state, status.state)
        self._queue(ref, status, urgent=is_urgent)

    def _queue(self, ref: ModelRef, status: ModelStatus | None, *, urgent: bool = False) -> None:
        """Queue the write of a version's file, or its deletion (None), in place of a pending one."""
        with self._lock:
            is_first, self._round_queued = not self._round_queued, True
            urgent = urgent or ref in self._urgent
            self._pending.pop(ref, None)
            self._pending[ref] = status
            if urgent:
                self._urgent.pop(ref, None)
                self._urgent[ref] = None
                self._lock.notify()
        if is_first:
            self._writer.submit(self._write_round)

    def _write_round(self) -> None:
        """Write or delete the files of all pending versions: the urgent ones at once, the others after the pause."""
        is_over = False
        while not is_over:
            with self._lock:
                self._lock.wait_for(lambda: self._hurry or self._urgent, self._next_round - time.monotonic())
                is_over = self._hurry or time.monotonic() >= self._next_round
                if is_over:
                    self._hurry = self._round_queued = False
                refs = list(self._pending if is_over else self._urgent)
                taken = {ref: self._pending.pop(ref) for ref in refs}
                self._urgent.clear()
            for ref, status in taken.items():
                self._write_or_delete(ref, status)
        self._next_round = time.monotonic() + _PAUSE_S

    def _end_pause(self) -> None:
        with self._lock:
            self._hurry = True
            self._lock.notify()

    def _write_or_delete(self, ref: ModelRef, status: ModelStatus | None) -> None:
        if status is None:
            self._unlink(self._public.model_status(ref))
        else:
            self._write(self._public.model_status(ref), status.document())

    def _beat(self, document: dict[str, object]) -> None:
        self._trouble = self._write(self._public.daemon_status, document)
        if self._trouble is None:
            self._log_once.log_recovery(_SUBJECT)
        self._beating_since = None

    def _write(self, path: Path, document: dict[str, object]) -> HoldfastError | None:

        def write() -> None:
            data = encode(document)
            try:
                durable.replace_volatile(path, data, _FILE_MODE)
            except FileNotFoundError:  # the first version of its model
                durable.make_dir(path.parent, durable.PUBLIC_DIR_MODE)
                durable.replace_volatile(path, data, _FILE_MODE)

        return self._try(write)

    def _write_missing(self) -> None:
        for ref, status in self._current().items():
            if not (path := self._public.model_status(ref)).exists():
                self._write(path, status.document())

    def _current(self) -> dict[ModelRef, ModelStatus]:
        """Return the statuses when a job runs, not when it was queued: jobs of changes before that have written their
        files, and changes from now on have later jobs."""
        with self._lock:
            return dict(self._statuses)

    def _sweep(self) -> None:
        def sweep() -> None:
            kept: dict[str, set[str]] = {}
            for ref in self._current():
                kept.setdefault(ref.path_segment, set()).add(f"{ref.version}.json")
            status = self._public.status
            with os.scandir(status) as entries:
                folders = [entry.name for entry in entries if entry.is_dir()]
            for folder in folders:
                for name in set(os.listdir(status / folder)).difference(kept.get(folder, ())):
                    self._unlink(status / folder / name)
                if folder not in kept:  # a crash may have come between the deletion of its last file and its own
                    remove_empty(status / folder)

        self._try(sweep)

    def _unlink(self, path: Path) -> None:
        def unlink() -> None:
            path.unlink(missing_ok=True)
            remove_empty(path.parent)

        self._try(unlink)

    def _try(self, step: Callable[[], None]) -> HoldfastError | None:
        """Call `step` on the disk; log and return its error: the disk may be full or gone, and the daemon continues."""
        try:
            self._check()
            step()
            return None
        except OSError as error:
            failure = durable.disk_error(error, _CANNOT)
        except HoldfastError as error:
            failure = error
        self._stale = True
        self._log_once.log_error(_SUBJECT, str(failure))
        return failure


def _status(ref: ModelRef, state: State, source: str, digest: Digest | None, *, pinned: bool) -> ModelStatus:
    text = None if digest is None else str(digest)
    return ModelStatus(ref.name, ref.version, state, text, pinned, source, None, 0, None, None, "", "", None)


def _settles(before: State, now: State) -> bool:
    """Return whether a version succeeds or fails, or leaves such a state: a reader must not act on the old one."""
    return before is not now and (before in _SETTLED or now in _SETTLED)
