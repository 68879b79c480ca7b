"""The status files: one for each version that is wanted or here, and the daemon's heartbeat.

Law: the only writer of `public/status`. Writes go through one thread, in order, so a slow disk delays no transfer;
they are atomic and not synced, since a restart writes them anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import PublicLayout
from cached.contract.program.limits import started_pool
from cached.contract.reference import ModelRef
from cached.contract.status import DaemonStatus, ModelStatus, Stale, State, StatusError, encode, timestamp
from cached.node.disk_watch import HANGING_S
from cached.node.log_once import Saying
from cached.store.disk import durable
from cached.store.snapshots import remove_empty

_log = logging.getLogger(__name__)
_FILE_MODE = 0o644
_SUBJECT = "status files"
_CANNOT = "they cannot be written"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is. Bytes, bytes a second, seconds."""

    total: int | None
    done: int
    rate: float | None
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class _Facts:
    """What holds of a version whatever its state."""

    held: str | None
    stale: Stale | None
    refused_pins: dict[str, StatusError]


_NO_FACTS = _Facts(None, None, {})


class Board:
    """What the daemon says of every version."""

    def __init__(self, public: PublicLayout, node: str, check: Callable[[], None]) -> None:
        self._public = public
        self._check = check
        self._saying = Saying(_log)
        self._trouble: HoldfastError | None = None
        self._stale = False  # whether some file does not say what holds
        self._beating_since: float | None = None  # on the monotonic clock, while a heartbeat is not written yet
        self.news = asyncio.Event()  # set whenever a status changes; whoever waits for it clears it
        self._facts: dict[ModelRef, _Facts] = {}
        self._lock = threading.Lock()  # of the two below, which the writer reads too
        self._statuses: dict[ModelRef, ModelStatus] = {}
        self._pending: dict[ModelRef, ModelStatus | None] = {}  # to be written, or removed: one job for each version
        self._writer = started_pool(1, "status")
        now = timestamp(time.time())
        self._daemon = DaemonStatus(node, version("holdfast"), os.getpid(), now, now)

    @property
    def daemon(self) -> DaemonStatus:
        """The last heartbeat."""
        return self._daemon

    @property
    def trouble_writing(self) -> HoldfastError | None:
        """Why the last heartbeat could not be written; None where it could."""
        return self.hanging or self._trouble

    @property
    def hanging(self) -> Transient | None:
        """The error of a disk that has not taken a heartbeat for long; None where it answers."""
        since = self._beating_since
        if since is not None and (waited_s := time.monotonic() - since) > HANGING_S:
            return Transient(
                "disk",
                f"{self._public.path}: the disk has not answered for {waited_s:.0f} s",
                "check the node's disk and kernel log; it goes on by itself when the disk answers",
            )
        return None

    def all(self) -> tuple[ModelStatus, ...]:
        """Every status, by model and version."""
        return tuple(self._statuses[ref] for ref in sorted(self._statuses))

    def get(self, ref: ModelRef) -> ModelStatus | None:
        """One version's status, if it has one."""
        return self._statuses.get(ref)

    def begin(self, ref: ModelRef, state: State, source: str, pin: Digest | None) -> None:
        """A version enters `state` anew: no error, no progress. `source` carries no credentials."""
        digest = str(pin) if pin is not None else None
        self._put(ref, state, _status(ref, state, source, digest, pin is not None))

    def resolve(self, ref: ModelRef, source: str, pin: Digest | None) -> None:
        """A version's source is asked what it has; what it is being retried for stays until that is answered."""
        status = _status(ref, State.RESOLVING, source, None if pin is None else str(pin), pin is not None)
        self._put(ref, State.RESOLVING, replace(status, error=self._statuses[ref].error))

    def move(self, ref: ModelRef, state: State, progress: Progress, trouble: HoldfastError | None = None) -> None:
        """A version is in `state` and this far; `trouble` is what it is retrying now."""
        error = None if trouble is None else StatusError.of(trouble)
        self._put(ref, state, _with_progress(replace(self._statuses[ref], error=error), progress))

    def trouble(self, ref: ModelRef, state: State, error: HoldfastError) -> None:
        """A version met an error, in `state`."""
        old = self._statuses[ref]
        self._put(ref, state, replace(old, error=StatusError.of(error), rate_bytes_per_s=None, eta_s=None))

    def know(self, ref: ModelRef, held: str | None, stale: tuple[str, str | None] | None) -> None:
        """What holds of a version whatever its state: the digest that its name leads to, and why that is not what it
        should be (reason and digest of `Stale`). Nothing happens where it is known already."""
        old = self._facts.get(ref, _NO_FACTS)
        known = None if old.stale is None else (old.stale.reason, old.stale.digest)
        if (old.held, known) == (held, stale):
            return
        since = None if stale is None else Stale(*stale, timestamp(time.time()))
        self._learn(ref, replace(old, held=held, stale=since))

    def refuse_pins(self, ref: ModelRef, pins: dict[str, StatusError]) -> None:
        """These pins of pods cannot be met."""
        old = self._facts.get(ref, _NO_FACTS)
        if old.refused_pins != pins:
            self._learn(ref, replace(old, refused_pins=pins))

    def _learn(self, ref: ModelRef, facts: _Facts) -> None:
        if facts == _NO_FACTS:
            self._facts.pop(ref, None)
        else:
            self._facts[ref] = facts
        status = self._statuses.get(ref)
        if status is not None:
            self._put(ref, status.state, status)

    def ready(self, ref: ModelRef, digest: Digest, size: int, pinned: bool, source: str) -> None:
        """A version is published; `source` is where its content came from."""
        self._facts[ref] = replace(self._facts.get(ref, _NO_FACTS), held=str(digest))
        done = replace(_status(ref, State.READY, source, str(digest), pinned), bytes_total=size, bytes_done=size)
        self._put(ref, State.READY, done)

    def adopt(self, ref: ModelRef, status: ModelStatus) -> None:
        """A version's status as the last daemon left it; its file is there already."""
        with self._lock:
            self._statuses[ref] = status

    def drop(self, ref: ModelRef) -> None:
        """A version is neither here nor wanted."""
        self._facts.pop(ref, None)
        if ref in self._statuses:
            self._say(ref, None)

    def sweep(self) -> None:
        """Remove the files of versions that nothing is said of: what a crash or somebody else left."""
        self._submit(self._sweep)

    def beat(self) -> None:
        """Move the heartbeat; where the disk did not take what was said, say it all again once it does."""
        self._daemon = replace(self._daemon, updated=timestamp(time.time()))
        if self._beating_since is not None:
            return  # the last one is not written yet
        if self._stale and self._trouble is None:
            self._stale = False
            self.sweep()
            for ref, status in self._statuses.items():
                self._queue(ref, status)
        self._beating_since = time.monotonic()
        self._submit(partial(self._beat, self._daemon.document()))

    def restore(self) -> None:
        """Write those files again that somebody deleted."""
        self._submit(self._write_missing)

    async def flushed(self) -> None:
        """Wait until everything said so far is in its file."""
        await asyncio.get_running_loop().run_in_executor(self._writer, _nothing)

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._writer.shutdown()

    def _put(self, ref: ModelRef, state: State, status: ModelStatus) -> None:
        now = timestamp(time.time())
        old = self._statuses.get(ref)
        since = old.since if old is not None and old.state == state else now
        facts = self._facts.get(ref, _NO_FACTS)
        status = replace(status, state=state, since=since, updated=now, held=facts.held, stale=facts.stale)
        status = replace(status, refused_pins=facts.refused_pins)
        self._say(ref, status)

    def _say(self, ref: ModelRef, status: ModelStatus | None) -> None:
        with self._lock:
            if status is None:
                del self._statuses[ref]
            else:
                self._statuses[ref] = status
        self.news.set()
        self._queue(ref, status)

    def _queue(self, ref: ModelRef, status: ModelStatus | None) -> None:
        """Have the file of a version say this, or nothing; what it waited to say is not said any more."""
        with self._lock:
            is_queued = ref in self._pending
            self._pending[ref] = status
        if not is_queued:
            self._submit(partial(self._write_newest, ref))

    def _submit(self, job: Callable[[], object]) -> None:
        self._writer.submit(job)

    def _write_newest(self, ref: ModelRef) -> None:
        with self._lock:
            status = self._pending.pop(ref)
        if status is None:
            self._unlink(self._public.model_status(ref))
        else:
            self._write(self._public.model_status(ref), status.document())

    def _beat(self, document: dict[str, object]) -> None:
        self._trouble = self._write(self._public.daemon_status, document)
        if self._trouble is None:
            self._saying.fine(_SUBJECT)
        self._beating_since = None

    def _write(self, path: Path, document: dict[str, object]) -> HoldfastError | None:
        """Write a file; returns what is wrong where it cannot be: the disk may be full or gone, and the daemon goes
        on."""
        try:
            self._check()
            durable.make_dir(path.parent, durable.PUBLIC_DIR_MODE)
            durable.replace_volatile(path, encode(document), _FILE_MODE)
        except OSError as error:
            return self._failed(durable.disk_error(error, _CANNOT))
        except HoldfastError as error:
            return self._failed(error)
        return None

    def _write_missing(self) -> None:
        for ref, status in self._said().items():
            path = self._public.model_status(ref)
            if not path.exists():
                self._write(path, status.document())

    def _said(self) -> dict[ModelRef, ModelStatus]:
        """What holds by the time a job runs, not when it was asked for: files of versions that were said of in between
        are written before it. What changes from here on has a job that comes after."""
        with self._lock:
            return dict(self._statuses)

    def _failed(self, error: HoldfastError) -> HoldfastError:
        self._stale = True
        self._saying.trouble(_SUBJECT, str(error))
        return error

    def _sweep(self) -> None:
        try:
            self._check()
            kept = frozenset(self._public.model_status(ref) for ref in self._said())
            found = [path for path in self._public.status.glob("*/*") if path not in kept]
        except OSError as error:
            self._failed(durable.disk_error(error, _CANNOT))
            return
        except HoldfastError as error:
            self._failed(error)
            return
        for path in found:
            self._unlink(path)

    def _unlink(self, path: Path) -> None:
        try:
            self._check()
            path.unlink(missing_ok=True)
            remove_empty(path.parent)
        except OSError as error:
            self._failed(durable.disk_error(error, _CANNOT))
        except HoldfastError as error:
            self._failed(error)


def _status(ref: ModelRef, state: State, source: str, digest: str | None, pinned: bool) -> ModelStatus:
    return ModelStatus(ref.name, ref.version, state, digest, pinned, source, None, 0, None, None, "", "", None)


def _with_progress(status: ModelStatus, progress: Progress) -> ModelStatus:
    return replace(
        status,
        bytes_total=progress.total,
        bytes_done=progress.done,
        rate_bytes_per_s=progress.rate,
        eta_s=progress.eta_s,
    )


def _nothing() -> None:
    """The job after which everything before it is done."""
