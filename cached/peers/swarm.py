"""One node's fetch of one version: which piece to ask whom for, which peers to leave, what to announce.

Law: pure. A piece is asked of one place at a time, and of peers only once its digest is known. The origin is asked for
granted pieces; without help of a tracker and of peers for a while, for anything. An error of a peer ends its use, never
the fetch.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field

from cached.peers import bits
from cached.peers.bits import all_bits, pick
from cached.peers.messages import MAX_BLAMES, MAX_LISTED, Announce, PieceDigest, Reason, Reply
from cached.peers.neighbours import Load, Neighbours

ANNOUNCE_S = 1.0
SEED_S = 2.0  # of a node that has everything
HUNGRY_S = 0.3  # while no node is known to have anything that this one lacks
SOON_S = 0.1  # the least time between two announces
PATIENCE_S = 60.0  # with neighbours that have pieces and give none: then the same
ALONE_S = 10.0  # without a grant and without a peer that has anything: then the origin, up to half as long again later
_LEFT_S = 60.0  # a peer that was left is not asked for so long
_SLOW_SHARE = 4  # slow: below this part of one's own rate
_RATES = 32  # pieces whose median rate is one's own
_FEWEST_RATES = 8
_MOST_SERVING = 12


@dataclass(frozen=True, slots=True)
class PieceRequest:
    """A piece to receive now, from `peer`, or from the origin (None)."""

    piece: int
    peer: str | None


@dataclass(slots=True)
class _Left:
    until: float
    reason: Reason
    reported: bool = field(default=False)


class _Recent:
    """The last `_RATES` of some numbers, and the lower median of these."""

    def __init__(self) -> None:
        self._numbers: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def count(self) -> int:
        return len(self._numbers)

    @property
    def median_low(self) -> float:
        return self._sorted[(len(self._sorted) - 1) // 2]

    def add(self, number: float) -> None:
        if len(self._numbers) == _RATES:
            del self._sorted[bisect_left(self._sorted, self._numbers.popleft())]
        self._numbers.append(number)
        insort(self._sorted, number)


class Swarm:
    """The state of one node's fetch of one version. `zone` may change: the next announce says it."""

    def __init__(self, version: str, pieces: int, zone: str, have: int, now: float, rng: random.Random) -> None:
        """`have`: the pieces that the node has and serves already."""
        self._version = version
        self._pieces = pieces
        self._all = all_bits(pieces)
        self.zone = zone
        self._rng = rng
        self.have = have
        self._asked = 0  # pieces that are being received
        self._checkable = 0  # pieces whose digest is known
        self._digests: dict[int, str] = {}
        self._vouched: dict[int, str] = {}  # pieces that this node received from the origin
        self._untold: deque[PieceDigest] = deque()
        self._grants: dict[int, bool] = {}  # whether it is being received
        self._imports: dict[int, str] = {}
        self._failed: list[int] = []
        self._neighbours = Neighbours(rng)
        self._left: dict[str, _Left] = {}
        self._rates = _Recent()
        self._capacities = _Recent()  # rates, times the requests served beside
        self._own_rate = self._usual_capacity = 0.0
        self._log, self._since = "", 0
        self._helped_at = now  # by a peer's piece or a grant
        self._promised_at = now  # by a peer that has what is wanted, or a tracker that says it is under way
        self._at_peers = 0  # requests that run
        self._alone_s = ALONE_S * (1 + rng.random() / 2)
        self._patience_s = PATIENCE_S * (1 + rng.random() / 2)
        self._announced_at = -1e9
        self._pause_s = ANNOUNCE_S  # random: nodes that began together announce spread over the second
        self._news = True

    # --- what to receive -------------------------------------------------------------------------------------------

    def next_request(self, among: int, now: float) -> PieceRequest | None:
        """Return the next piece of the set `among` to receive; the caller reports it by `received` or `failed`."""
        wanted = among & ~(self.have | self._asked)
        if not wanted:
            return None
        request = self._choose_granted(wanted)
        if request is None and not (self._at_peers and self._is_put_off(now)):
            request = self._choose_imported(wanted, now) or self._choose_from_neighbours(wanted, now)
        if request is None and self.is_alone(now):
            request = PieceRequest(pick(wanted, self._rng), None)
        if request is not None:
            self._asked |= 1 << request.piece
            if request.peer is not None:
                self._neighbours.begin_request(request.peer)
                self._at_peers += 1
        return request

    def is_alone(self, now: float) -> bool:
        """Return whether no node has helped for so long that the origin is asked without a grant."""
        return now > max(self._helped_at, self._promised_at) + self._alone_s or self._is_put_off(now)

    def received(self, request: PieceRequest, rate: float, load: Load, now: float) -> None:
        """Take a piece that was received at `rate` bytes a second and checked; `load`: its peer's. A peer that was far
        slower than the others is left."""
        self._end(request)
        bit = 1 << request.piece
        self.have |= bit
        self._imports.pop(request.piece, None)
        if self._grants.pop(request.piece, None) is not None:
            self._news = True
        if request.peer is None:
            return
        self._helped_at = now
        self._neighbours.count_given(request.peer, load)
        if self._is_slow(rate, load):
            self.leave(request.peer, Reason.SLOW, now)
        self._rates.add(rate)
        self._capacities.add(rate * _bound_serving(load))
        if self._rates.count >= _FEWEST_RATES:
            self._own_rate = self._rates.median_low
            self._usual_capacity = self._capacities.median_low

    def failed(self, request: PieceRequest, reason: Reason | None, now: float) -> None:
        """Take back a piece that was not received, or did not check. `reason`: why its peer is left, None to keep it
        (it was busy), or where the origin failed: the grant goes back to the tracker."""
        self._end(request)
        self._imports.pop(request.piece, None)
        if request.peer is None:
            if self._grants.pop(request.piece, None) is not None:
                self._failed.append(request.piece)
                self._news = True
        elif reason is not None:
            self.leave(request.peer, reason, now)
        else:
            self._neighbours.forget_pieces(request.peer, now)

    def leave(self, peer: str, reason: Reason, now: float) -> None:
        """Ask a peer for nothing for a while, and tell the tracker why."""
        self._neighbours.remove(peer)
        self._left[peer] = _Left(now + _LEFT_S, reason)
        for piece in [piece for piece, holder in self._imports.items() if holder == peer]:
            del self._imports[piece]

    def find_promised(self) -> int:
        """Return the granted and imported pieces that are not asked for yet: others wait for them."""
        unbegun = bits.set_of([piece for piece, begun in self._grants.items() if not begun])
        return (unbegun | bits.set_of(self._imports) & self._checkable) & ~self._asked & ~self.have

    def find_untold(self) -> int:
        """Return the pieces whose digest no node has told, this one included."""
        return self._all & ~bits.set_of(self._digests) & ~bits.set_of(self._vouched)

    def set_chained(self, pieces: int) -> None:
        """Say which pieces can be checked by their place in a chain, whether their digest is known or not."""
        self._checkable = bits.set_of(self._digests) | pieces

    def meet(self, peer: str, have: int, now: float) -> None:
        """Add a neighbour that a tracker has not named, with what it has."""
        if peer not in self._left:
            self._neighbours.add_known(peer)
            self.heard(peer, have, Load(), now)

    def list_neighbours(self) -> tuple[str, ...]:
        """Return the neighbours now."""
        return tuple(self._neighbours)

    def vouch(self, piece: int, sha256: str) -> None:
        """Tell others the digest of a piece that came from the origin, or from a verified blob."""
        self._vouched[piece] = sha256
        self._untold.append(PieceDigest(piece, sha256))
        self._news = True

    def digest_of(self, piece: int) -> str | None:
        """Return the sha256 that a piece must have, None if no node has told it."""
        return self._digests.get(piece)

    def lose(self, pieces: int) -> None:
        """Take back pieces that turned out wrong: they are received again."""
        self.have &= ~pieces
        self._news = True

    # --- what neighbours have --------------------------------------------------------------------------------------

    def heard(self, peer: str, have: int, load: Load, now: float) -> None:
        """Note what a peer has, from its answer."""
        self._neighbours.hear(peer, have & self._all, load, now)

    def polls(self, among: int, now: float) -> list[str]:
        """Return the neighbours to ask what they have: those not heard for a while that have nothing we want."""
        return self._neighbours.list_unheard(among & ~self.have & ~self._asked & self._checkable, now)

    # --- announces -------------------------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Whether the node has all pieces."""
        return self.have == self._all

    def next_announce_at(self) -> float:
        """Return when the next announce is due, in the caller's time."""
        return self._announced_at + (SOON_S if self._news else self._pause_s)

    def describe(self) -> Announce:
        """Return what this node has and fetches, for a tracker that asks."""
        return Announce(self._version, self._pieces, self.zone, self.have, 0, working=tuple(self._grants))

    def make_announce(self, among: int, now: float, blobs: tuple[tuple[str, int], ...] = ()) -> Announce:
        """Return the announce that is due; `among`: the pieces that could be begun now."""
        hungry = not among & ~self.have & self._checkable
        usual_s = SEED_S if self.is_complete else HUNGRY_S if hungry else ANNOUNCE_S
        self._pause_s = usual_s * self._rng.uniform(0.8, 1.2)
        self._announced_at = now
        self._news = False
        if not self.is_complete:
            self._neighbours.rotate()
        blames = [(peer, left.reason) for peer, left in self._left.items() if not left.reported][:MAX_BLAMES]
        for peer, _ in blames:
            self._left[peer].reported = True
        self._left = {peer: left for peer, left in self._left.items() if left.until > now}
        digests = tuple(self._untold.popleft() for _ in range(min(len(self._untold), MAX_LISTED)))
        self._news = bool(self._untold)
        failed, self._failed = tuple(self._failed[:MAX_LISTED]), []
        return Announce(
            version=self._version,
            pieces=self._pieces,
            zone=self.zone,
            have=self.have,
            want=among & ~self.have & ~self._asked,
            working=(*self._grants, *self._imports),
            failed=failed,
            blames=tuple(blames),
            digests=digests,
            log=self._log,
            since=self._since,
            neighbours=0 if self.is_complete else self._neighbours.room,
            blobs=blobs,
        )

    def take_reply(self, reply: Reply, now: float) -> None:
        """Take a tracker's answer. Another log is another tracker: it is told what this node vouches for."""
        if reply.log != self._log:
            if self._log:
                told = [PieceDigest(piece, sha256) for piece, sha256 in self._vouched.items()]
                self._untold = deque(told)
                self._news = bool(told)
            self._log = reply.log
        self._since = reply.since
        for each in reply.digests:
            if each.piece not in self._digests:
                self._digests[each.piece] = each.sha256
                self._checkable |= 1 << each.piece
        for piece in reply.grants:
            if not (self.have | self._asked) >> piece & 1:
                self._grants[piece] = False
        for piece, holder in reply.imports:
            if not (self.have | self._asked) >> piece & 1 and holder not in self._left:
                self._imports[piece] = holder
        if reply.grants:
            self._helped_at = now
        if reply.imports or reply.under_way:  # else a slow origin would be asked for each piece by all
            self._promised_at = now
        for address in reply.neighbours:
            if address not in self._left:
                self._neighbours.add(address)

    def announce_failed(self, message: Announce) -> None:
        """Note that no tracker answered an announce: the next one, a second later, says the same again."""
        self._untold.extendleft(reversed(message.digests))
        self._failed.extend(message.failed)
        for peer, reason in message.blames:
            if (left := self._left.get(peer)) is not None and left.reason is reason:
                left.reported = False
        self._news = False

    # --- inside ----------------------------------------------------------------------------------------------------

    def _choose_granted(self, wanted: int) -> PieceRequest | None:
        for piece, begun in self._grants.items():
            if not begun and wanted >> piece & 1:
                self._grants[piece] = True
                return PieceRequest(piece, None)
        return None

    def _choose_imported(self, wanted: int, now: float) -> PieceRequest | None:
        for piece, holder in self._imports.items():
            if wanted & self._checkable & 1 << piece and not self._is_left(holder, now):
                return PieceRequest(piece, holder)
        return None

    def _choose_from_neighbours(self, wanted: int, now: float) -> PieceRequest | None:
        """Return a random piece of the least busy neighbour that has one."""
        offered, free = self._neighbours.join_offers()
        if not wanted & offered:
            return None
        self._promised_at = now  # also of what cannot be checked yet
        checkable = wanted & self._checkable
        found = self._neighbours.choose(checkable) if checkable & free else None
        return None if found is None else PieceRequest(pick(found[1], self._rng), found[0])

    def _is_put_off(self, now: float) -> bool:
        """Return whether peers have promised pieces for long and given none, and no tracker granted any: they may be
        busy for ever, or not have what they say. Then one is asked at a time, to see whether that has ended."""
        return now > self._helped_at + self._patience_s

    def _end(self, request: PieceRequest) -> None:
        self._asked &= ~(1 << request.piece)
        if request.peer is not None:
            self._at_peers -= 1
            self._neighbours.end_request(request.peer)

    def _is_slow(self, rate: float, load: Load) -> bool:
        """Return whether a peer is slow: its bytes come far slower than others', and that is not because it serves many
        at once."""
        capacity = rate * _bound_serving(load)
        return rate * _SLOW_SHARE < self._own_rate and capacity * _SLOW_SHARE < self._usual_capacity

    def _is_left(self, peer: str, now: float) -> bool:
        left = self._left.get(peer)
        return left is not None and now < left.until


def _bound_serving(load: Load) -> int:
    """Return how many requests a peer serves: what it says, within what a peer may serve."""
    return max(1, min(_MOST_SERVING, load.serving))
