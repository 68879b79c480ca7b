"""When each snapshot is hashed again: once in a period, at a moment that restarts keep, and nodes do not share.

Law: pure: no I/O, the clock is an argument, in seconds. A snapshot is due at a share of the period after its oldest
hash, between a half and nine tenths, that depends on node, snapshot and hash: so a node that was filled in an hour is
not hashed in one, and a thousand nodes that were filled at once do not hash at once. What is overdue when it is first
seen, on a node that was off for long, is spread over the next quarter of the period, the oldest first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf

from cached.contract.digest import Digest

EARLIEST = 0.5  # of the period: what was hashed later than that is not hashed again
_LATEST = 0.9
_CATCH_UP = 0.25
_RETRY_SHARE, _RETRY_MOST_S = 0.1, 3600.0


@dataclass(frozen=True, slots=True)
class OldestHash:
    """The oldest hash of a snapshot's files: its time as the record has it, and its age in seconds; `inf`: a file was
    never hashed."""

    stamp: str
    age_s: float


@dataclass(frozen=True, slots=True)
class _Turn:
    """`hashed`: when the oldest file was, `-inf`: never; `known`: the same, or since when it is known that it never
    was; `due`: from when the snapshot is hashed again, `deadline`: until when fetches come first."""

    hashed: float
    known: float
    due: float
    deadline: float


class ScrubPlan:
    """The turns of the snapshots, for a scrub that hashes each once in `period_s`."""

    def __init__(self, period_s: float, node: str) -> None:
        self._period_s = period_s
        self._node = node
        self._turns: dict[Digest, _Turn] = {}

    def note(self, found: Mapping[Digest, OldestHash], now: float) -> None:
        """Plan these snapshots by their records, in place of what was planned for them."""
        overdue: list[Digest] = []
        for digest, oldest in found.items():
            self._turns[digest] = turn = self._make_turn(digest, oldest, now)
            if turn.due <= now and turn.hashed > -inf:
                overdue.append(digest)
        overdue.sort(key=lambda digest: self._turns[digest].hashed)
        for place, digest in enumerate(overdue):
            share = (place + self._draw(digest, found[digest].stamp)) / len(overdue)
            self._turns[digest] = self._spread(self._turns[digest], share, now)

    def hurry(self, digest: Digest, now: float) -> None:
        """Have a snapshot hashed next: a part of it was put back."""
        if (turn := self._turns.get(digest)) is not None:
            self._turns[digest] = _Turn(turn.hashed, turn.known, now, turn.deadline)

    def put_off(self, digest: Digest, now: float) -> None:
        """Have a snapshot that could not be hashed tried again after a tenth of the period, an hour at most."""
        if (turn := self._turns.get(digest)) is not None:
            due = now + min(_RETRY_MOST_S, _RETRY_SHARE * self._period_s)
            self._turns[digest] = _Turn(turn.hashed, turn.known, due, turn.deadline)

    def forget(self, digests: Collection[Digest]) -> None:
        """Forget snapshots that are gone."""
        for digest in digests:
            self._turns.pop(digest, None)

    def find_due(self, now: float) -> Digest | None:
        """Return the due snapshot that was hashed longest ago, None if none is due."""
        due = [digest for digest, turn in self._turns.items() if turn.due <= now]
        return min(due, key=lambda digest: self._turns[digest].hashed, default=None)

    def find_next_due(self) -> float:
        """Return when the next snapshot is due; `inf` without one."""
        return min((turn.due for turn in self._turns.values()), default=inf)

    def get_deadline(self, digest: Digest) -> float:
        """Return until when fetches come before this snapshot: its period ends then."""
        return self._turns[digest].deadline

    def compute_oldest_age_s(self, now: float) -> float:
        """Return the seconds since the file was hashed whose hash is the oldest, 0 without snapshots. A file that was
        never hashed counts from when that became known."""
        return max((now - turn.known for turn in self._turns.values()), default=0.0)

    def _make_turn(self, digest: Digest, oldest: OldestHash, now: float) -> _Turn:
        if oldest.age_s == inf:
            return _Turn(-inf, now, now, now + self._period_s)
        hashed = now - oldest.age_s
        share = EARLIEST + (_LATEST - EARLIEST) * self._draw(digest, oldest.stamp)
        return _Turn(hashed, hashed, hashed + share * self._period_s, hashed + self._period_s)

    def _spread(self, turn: _Turn, share: float, now: float) -> _Turn:
        """Return the turn of an overdue snapshot, at this share of the time in which all of these are hashed; but
        before its period ends, unless that is over."""
        window_s, deadline = _CATCH_UP * self._period_s, turn.deadline
        if deadline > now:
            window_s = min(window_s, (1 - _LATEST) * (deadline - now))
        else:
            deadline = now + 2 * window_s
        return _Turn(turn.hashed, turn.known, now + share * window_s, deadline)

    def _draw(self, digest: Digest, stamp: str) -> float:
        """Return a number from 0 to 1 that looks random."""
        drawn = hashlib.sha256(f"{self._node}\0{digest}\0{stamp}".encode()).digest()
        return int.from_bytes(drawn[:8]) / 2**64
