"""Doubt a version that the gate refuses, and wait for the daemon's verdict on it.

Law: reads the public folder and takes locks in it, which the daemon sees; bounded: by silence of the daemon, by the
number of doubts of a version, and at once where the daemon has looked and the gate finds the same again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.reference import ModelRequest
from cached.contract.snapshot.doubt import Doubt
from cached.contract.status import DaemonStatus, ModelStatus, State
from sidecar.gate.daemon_status import read_status
from sidecar.gate.exit_codes import Confirmed

BEAT_S = 10.0  # the daemon writes a heartbeat at least every five seconds
SIGN_S = 20.0  # until the daemon begins to look, and between two signs of its progress
MOST_DOUBTS = 3  # of one version

Identity = tuple[object, ...]


@dataclass(slots=True)
class _Pending:
    """A doubt without a verdict. `seen`: its subject then; `beat` and `sign`: the daemon's last, and since when."""

    doubt: Doubt
    error: Permanent
    snapshot: SnapshotLayout | None
    seen: Identity
    beat: str
    beat_at: float
    sign: object
    sign_at: float


class GateDoubts:
    """The doubts of one gate. `clock` gives monotonic seconds."""

    def __init__(self, public: PublicLayout, clock: Callable[[], float]) -> None:
        self._public = public
        self._clock = clock
        self._pending: dict[ModelRequest, _Pending] = {}
        self._reasons: dict[ModelRequest, list[str]] = {}

    @property
    def any(self) -> bool:
        """Whether a verdict is waited for."""
        return bool(self._pending)

    def add(
        self, want: ModelRequest, snapshot: SnapshotLayout | None, error: Permanent, seen: Identity | None = None
    ) -> bool:
        """Doubt the snapshot that `want` leads to, or the name itself (None), because of `error`; return whether it is
        doubted. It is not where it is another one since it was `seen`: it must be looked at again first. Raises
        `error`, with the reason, where a doubt is in vain: no daemon runs, or it has looked already."""
        found = self.identify(want, snapshot)
        if seen is not None and found != seen:
            return False
        reasons = self._reasons.setdefault(want, [])
        beat = self._read_beat()
        if beat is None:
            raise error
        status = read_status(self._public, want.ref)
        if error.message in reasons and not (status is not None and status.is_checked_again):
            raise Confirmed(error, "the daemon of this node looked at it, and the gate finds the same again")
        if error.message not in reasons and len(reasons) >= MOST_DOUBTS:
            raise Confirmed(error, f"the daemon of this node looked at it {MOST_DOUBTS} times")
        try:
            doubt = Doubt(self._public, snapshot)
        except OSError as unreadable:
            raise error from unreadable
        if error.message not in reasons:  # else of a check that began before this doubt, and goes on
            reasons.append(error.message)
        now = self._clock()
        self._pending[want] = _Pending(doubt, error, snapshot, found, beat, now, None, now)
        return True

    def check(self, want: ModelRequest) -> tuple[Permanent, ModelStatus | None] | None:
        """Return why `want` is doubted, and its status, while there is no verdict; None without a doubt, or once the
        record, the snapshot or the name is another one. Raises the error, with the reason, where the daemon is silent.
        """
        pending = self._pending.get(want)
        if pending is None:
            return None
        if self.identify(want, pending.snapshot) != pending.seen:
            self._end(want)
            return None
        pending.doubt.hold()
        now, beat, status = self._clock(), self._read_beat(), read_status(self._public, want.ref)
        if beat is not None and beat != pending.beat:
            pending.beat, pending.beat_at = beat, now
        sign = (status.bytes_done, status.updated) if status is not None and status.state is State.VERIFYING else None
        if sign is not None and sign != pending.sign:
            pending.sign, pending.sign_at = sign, now
        if now - pending.beat_at > BEAT_S:
            raise self._give_up(want, "the daemon of this node, which could repair it, is silent")
        if now - pending.sign_at > SIGN_S:
            raise self._give_up(want, f"the daemon of this node was asked to look at it, and did not for {SIGN_S:g} s")
        return pending.error, status if sign is not None else None

    def identify(self, want: ModelRequest, snapshot: SnapshotLayout | None) -> Identity:
        """Return what a repair changes: the name and its folder, the snapshot that it leads to, and the record."""
        link = self._public.model_link(want.ref)
        try:
            target = os.readlink(link)
        except OSError:
            target = ""
        named = self._public.snapshots / os.path.basename(target)
        record = None if snapshot is None else _time_of(snapshot.verified)
        folders = tuple(map(_inode_of, (link.parent, named)))
        return target, _time_of(link), record, *folders

    def close(self) -> None:
        """Withdraw all doubts."""
        for want in list(self._pending):
            self._end(want)

    def _give_up(self, want: ModelRequest, why: str) -> HoldfastError:
        error = self._pending[want].error
        self._end(want)
        return Confirmed(error, why)

    def _end(self, want: ModelRequest) -> None:
        self._pending.pop(want).doubt.close()

    def _read_beat(self) -> str | None:
        try:
            return DaemonStatus.parse(self._public.daemon_status.read_bytes()).updated
        except (OSError, HoldfastError):
            return None


def _inode_of(path: Path) -> tuple[int, int, int] | None:
    """Return device, inode and kind: a folder may get the inode of the symlink that was in its place."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, stat.S_IFMT(found.st_mode)


def _time_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns
