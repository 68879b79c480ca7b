"""The nodes that one node asks for the pieces of a version: what each has, how busy it is, and what it gave.

Law: pure. Only this module changes a neighbour, and forgets with each change what neighbours offer together.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

NEIGHBOURS = 24
POLL_S = 0.25  # how often an idle node asks what a neighbour has
_REQUESTS_EACH = 1  # requests to one neighbour at once
_ROTATED = 3  # neighbours replaced with each announce: those that gave least


@dataclass(frozen=True, slots=True)
class Load:
    """The requests that a peer serves and those that wait there, as its answer says."""

    serving: int = 1
    waiting: int = 0


@dataclass(slots=True)
class _Neighbour:
    have: int = 0
    heard_at: float = -1e9
    load: int = 0  # requests that it served, and that waited there, when it was heard last
    asked: int = 0  # requests of ours
    gave: int = 0  # pieces since the last rotation

    @property
    def is_free(self) -> bool:
        return self.asked < _REQUESTS_EACH


class Neighbours:
    """At most `NEIGHBOURS` nodes by address, those of `add_known` apart; what is said of another one is ignored."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._nodes: dict[str, _Neighbour] = {}
        self._offers: tuple[int, int] | None = None  # None: not joined since the last change

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    @property
    def room(self) -> int:
        """How many may be added."""
        return max(0, NEIGHBOURS - len(self._nodes))

    def add(self, address: str) -> None:
        """Add a neighbour, if there is room, of which nothing is known yet."""
        if self.room:
            self.add_known(address)

    def add_known(self, address: str) -> None:
        """Add a neighbour that was heard of otherwise than from a tracker, with or without room."""
        self._nodes.setdefault(address, _Neighbour())

    def remove(self, address: str) -> None:
        """Remove a neighbour."""
        if self._nodes.pop(address, None) is not None:
            self._offers = None

    def hear(self, address: str, have: int, load: Load, now: float) -> None:
        """Note what a neighbour has, and how busy it is."""
        if (node := self._nodes.get(address)) is not None:
            node.have, node.heard_at, node.load = have, now, load.serving + load.waiting
            self._offers = None

    def forget_pieces(self, address: str, now: float) -> None:
        """Count a neighbour as having nothing, until it is asked what it has."""
        if (node := self._nodes.get(address)) is not None:
            node.have, node.heard_at = 0, now
            self._offers = None

    def begin_request(self, address: str) -> None:
        """Count a request that a neighbour is asked."""
        self._add_requests(address, 1)

    def end_request(self, address: str) -> None:
        """Count a request less."""
        self._add_requests(address, -1)

    def _add_requests(self, address: str, count: int) -> None:
        if (node := self._nodes.get(address)) is not None:
            node.asked = max(0, node.asked + count)  # one that left and came again has no requests from before
            self._offers = None

    def count_given(self, address: str, load: Load) -> None:
        """Count a piece that a neighbour gave; note how busy it is."""
        if (node := self._nodes.get(address)) is not None:
            node.gave += 1
            node.load = load.serving + load.waiting

    def list_unheard(self, wanted: int, now: float) -> list[str]:
        """Return the neighbours to ask what they have: those not heard for a while that have none of `wanted`."""
        return [
            address for address, node in self._nodes.items() if now >= node.heard_at + POLL_S and not node.have & wanted
        ]

    def join_offers(self) -> tuple[int, int]:
        """Return the pieces that any neighbour has, and those of the neighbours that may be asked for one more: most
        looks for a piece of a blob find none, and need no more than these."""
        if self._offers is None:
            pieces = free = 0
            for node in self._nodes.values():
                pieces |= node.have
                if node.is_free:
                    free |= node.have
            self._offers = pieces, free
        return self._offers

    def choose(self, wanted: int) -> tuple[str, int] | None:
        """Return the least busy neighbour that may be asked and has some of `wanted`, with those pieces; of several,
        one by chance."""
        best, least, equal = None, 0, 0
        for address, node in self._nodes.items():
            if not node.is_free or (best is not None and node.load > least) or not node.have & wanted:
                continue
            equal = equal + 1 if best is not None and node.load == least else 1
            if equal == 1 or self._rng.random() * equal < 1:
                best, least = (address, node.have & wanted), node.load
        return best

    def rotate(self) -> None:
        """Remove those of a full set that gave least since the last rotation, so that sets mix."""
        if not self.room:
            for address in sorted(self._nodes, key=lambda each: self._nodes[each].gave)[:_ROTATED]:
                self.remove(address)
        for node in self._nodes.values():
            node.gave = 0
