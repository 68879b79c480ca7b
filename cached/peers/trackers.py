"""The versions that this node keeps track of, one tracker each.

Law: pure. Bounded, whatever is announced: so many versions, so many announces of one node a second; a version that
no node announces is forgotten. A node is the host that it was heard from, with the port that it says; one host is few
nodes, whatever ports it says.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from cached.peers.members import host_of, is_before
from cached.peers.messages import Announce, BadMessage, Reply
from cached.peers.pieces import PieceMap
from cached.peers.tracker import SURVEY_S, Tracker

MAX_VERSIONS = 256
_BURST = 20  # announces of one node, then so many a second
_PER_SECOND = 12.0  # the least pause between two of one node's announces is a tenth of a second
_MAX_NODES = 8192
_MAX_OF_HOST = 16  # a node is its host and the port that it says: no host is more nodes than this at once
_TIDY_S = 5.0
_NAMED_S = 15.0  # how long it counts that nodes follow another tracker: of three introductions


class TooMany(Exception):
    """An announce beyond what this node takes: it is sent again later, or to another tracker."""


@dataclass(slots=True)
class _Budget:
    left: float
    at: float


class Trackers:
    """The trackers of one node, by version."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._trackers: dict[str, Tracker] = {}
        self._budgets: dict[str, _Budget] = {}
        self._hosts = Counter[str]()  # the budgets of each
        self._named: dict[str, tuple[str, float]] = {}  # by version: the first one that nodes follow, until when
        self._tidied_at = 0.0

    def __len__(self) -> int:
        return len(self._trackers)

    def find_survey(self, version: str) -> tuple[str, int] | None:
        """Return what names the last survey of a version, None where there is none: another name is another one, for
        which all members are to be asked."""
        tracker = self._trackers.get(version)
        return None if tracker is None else (tracker.log, tracker.surveys)

    def is_fetching(self, version: str, address: str) -> bool:
        """Return whether the node at `address` announces a version, and has not all of it."""
        tracker = self._trackers.get(version)
        return tracker is not None and tracker.is_fetching(address)

    def end_survey(self, version: str) -> None:
        """Deal a version from now on: all members were asked whether they have it."""
        if version in self._trackers:
            self._trackers[version].end_survey()

    def announce(self, address: str, message: Announce, now: float) -> Reply:
        """Take the announce of the node at `address` (`IP:PORT`). Raises `TooMany`, or `BadMessage` for one that
        contradicts itself or what others say of the version."""
        if now >= self._tidied_at + _TIDY_S:
            self._tidy(now)
        self._spend(address, now)
        _check_blobs(message)
        if message.tracker:
            return self._introduce(message.version, message.tracker, now)
        tracker = self._trackers.get(message.version)
        if tracker is None:
            if len(self._trackers) >= MAX_VERSIONS:
                raise TooMany(f"expected at most {MAX_VERSIONS} versions at once")
            log = f"{self._rng.getrandbits(128):032x}"
            tracker = Tracker(message.pieces, log, now + SURVEY_S, self._rng)
            self._trackers[message.version] = tracker
        named, until = self._named.get(message.version, ("", 0.0))
        if now >= until:
            named = ""
        if named and message.log != tracker.log:  # it asks that one first; only where that is lost it comes back
            message = replace(message, want=0)
        try:
            return replace(tracker.announce(address, message, now), tracker=named)
        except ValueError as error:
            raise BadMessage(f"version {message.version[:12]}: {error}") from error

    def _introduce(self, version: str, tracker: str, now: float) -> Reply:
        """Remember the first tracker that nodes of a version follow: those that come here are told."""
        known, until = self._named.get(version, ("", 0.0))
        if (len(self._named) < MAX_VERSIONS or known) and (now >= until or not is_before(version, known, tracker)):
            self._named[version] = tracker, now + _NAMED_S
        return Reply((), (), (), (), "", 0, active=True)

    def _spend(self, address: str, now: float) -> None:
        """Take one announce from a node's budget; raises `TooMany` if it is spent."""
        budget = self._budgets.get(address)
        if budget is None:
            if len(self._budgets) >= _MAX_NODES:
                self._tidy(now)
            host = host_of(address)
            if len(self._budgets) >= _MAX_NODES or self._hosts[host] >= _MAX_OF_HOST:
                raise TooMany(f"expected at most {_MAX_NODES} nodes at once, {_MAX_OF_HOST} of a host")
            budget = self._budgets[address] = _Budget(_BURST, now)
            self._hosts[host] += 1
        budget.left = min(_BURST, budget.left + (now - budget.at) * _PER_SECOND)
        budget.at = now
        if budget.left < 1:
            raise TooMany("too many announces of this node")
        budget.left -= 1

    def _tidy(self, now: float) -> None:
        """Forget versions without nodes, and nodes without recent announces."""
        self._tidied_at = now
        for version, tracker in list(self._trackers.items()):
            tracker.tidy(now)
            if tracker.is_forgotten:
                del self._trackers[version]
        self._named = {version: each for version, each in self._named.items() if now < each[1]}
        full_s = _BURST / _PER_SECOND
        self._budgets = {address: each for address, each in self._budgets.items() if now < each.at + full_s}
        self._hosts = Counter(map(host_of, self._budgets))


def _check_blobs(message: Announce) -> None:
    """Raise `BadMessage` unless the blobs, where they are told, are those of the version."""
    if not message.blobs:
        return
    try:
        pieces = PieceMap(message.blobs)
    except ValueError as error:
        raise BadMessage(f"blobs: {error}") from error
    if (pieces.key, pieces.count) != (message.version, message.pieces):
        raise BadMessage(f"blobs: expected those of version {message.version[:12]}, found {pieces.key[:12]}")
