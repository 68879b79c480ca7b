"""What this node saw last of each other member of its pool, for an operator.

Law: knows addresses and a clock; decides nothing: the swarm decides whom to ask. What was seen longer ago than ten
minutes says nothing of now.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from enum import StrEnum

from cached.contract.errors import HoldfastError
from cached.peers.members import MAX_MEMBERS
from cached.peers.messages import Reason

_FRESH_S = 600.0
_BLAMED_S = 60.0  # as long as the swarm asks a slow or lying peer for nothing


class PeerState(StrEnum):
    """`IDLE`: nothing was asked of the member in the last ten minutes. `REFUSED`: it does not take this node for one of
    its pool, or does not prove to be of it. `SLOW`, `WRONG`: it sent pieces far slower than others, or bytes that do
    not check, within the last minute."""

    LIVE = "live"
    SLOW = "slow"
    WRONG = "wrong"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    IDLE = "idle"


_AFTER = {
    "digest_mismatch": PeerState.WRONG,
    "bad_response": PeerState.WRONG,
    "too_large": PeerState.WRONG,
    "unauthorized": PeerState.REFUSED,
    "tls_verification": PeerState.REFUSED,
    "not_found": PeerState.LIVE,
    "connect": PeerState.UNREACHABLE,
    "reset": PeerState.UNREACHABLE,
    "stalled": PeerState.UNREACHABLE,
}  # by an error's code
_BLAMES = {Reason.SLOW: PeerState.SLOW, Reason.WRONG: PeerState.WRONG}


class PeerStates:
    """The states by address. Thread-safe. `clock` is in monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[PeerState, float]] = {}  # until when it counts, by address

    def note(self, peer: str, state: PeerState) -> None:
        """Note what an exchange with a peer showed. One that is slow or wrong stays so for its minute."""
        now = self._clock()
        until = now + (_BLAMED_S if state in _BLAMES.values() else _FRESH_S)
        with self._lock:
            seen = self._seen.pop(peer, None)
            is_kept = seen is not None and seen[0] in _BLAMES.values() and now < seen[1] and state is PeerState.LIVE
            self._seen[peer] = seen if is_kept and seen is not None else (state, until)
            if len(self._seen) > MAX_MEMBERS:
                del self._seen[next(iter(self._seen))]  # the one met longest ago

    def note_blames(self, blames: Iterable[tuple[str, Reason]]) -> None:
        """Note the peers that the swarm left as slow or wrong; of those that were gone an exchange told why."""
        for peer, reason in blames:
            if (state := _BLAMES.get(reason)) is not None:
                self.note(peer, state)

    def note_failure(self, peer: str, error: HoldfastError) -> None:
        """Note why a peer did not give what it was asked for; an error of this node's own says nothing of it."""
        if (state := _state_after(error.code)) is not None:
            self.note(peer, state)

    def count(self, state: PeerState, members: Iterable[str]) -> int:
        """Return how many of these members are in a state."""
        now = self._clock()
        with self._lock:
            seen = dict(self._seen)
        return sum(1 for member in members if _state_of(seen.get(member), now) is state)


def _state_after(code: str) -> PeerState | None:
    return PeerState.LIVE if code.startswith("http_") else _AFTER.get(code)


def _state_of(seen: tuple[PeerState, float] | None, now: float) -> PeerState:
    return PeerState.IDLE if seen is None or now >= seen[1] else seen[0]
