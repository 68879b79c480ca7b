"""One version's tracker: who has what, who fetches which piece from the origin, which pieces cross into a zone.

Law: pure; soft state, which announces rebuild. Grants are dealt evenly, one node a piece; a piece is dealt again when
no live and quick node holds or fetches it. Nothing is dealt before the survey of the members has ended, nor
while nodes that followed another tracker have yet to say what they have.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median_low

from cached.peers.bits import all_bits, numbers_in, pick
from cached.peers.messages import MAX_BLAMES, MAX_DIGESTS, MAX_NEIGHBOURS, Announce, PieceDigest, Reason, Reply

LEASE_S = 4.0  # of four announces: then a node counts as dead
SURVEY_S = 2.0  # at most, until all members said whether they have a version: before that nothing of it is dealt
_SURVEYED_S = 10.0  # the least time between two surveys of one version
SETTLE_S = 2.0  # for the announces of nodes that followed another tracker
SLOW_S = 30.0  # a node that others left as slow gets no grants and no neighbours for so long
_ORIGIN_AT_ONCE = 128  # of the whole pool: 64 saturate an object store's front; each begins a while after its grant
_FIRST_AT_ONCE = 16  # a slow origin is saturated by few, and the first piece of many comes late
_FIRST_SHARE, _MOST_FIRST = 64, 64  # of a large version this part of its pieces: they delay it by as little
_GAIN = 1.25  # twice as many requests must bring so much more, else it stays at these
_NODE_AT_ONCE = 16
_IMPORTS_AT_ONCE = 128  # of one zone: they cross at the pace of announces
_AHEAD = 0.5  # grants that a node may have got more than the average node
_REFUSED_S = 10.0  # a node whose grant failed gets no other for so long
_OVERDUE_S, _OVERDUE_TIMES = 10.0, 4.0  # a grant is dealt again after this, and so many times the usual duration
_FIRST_OVERDUE_S = 120.0  # while none of 16 has come: then the origin is slow, and its node alive
_TIDY_S = 0.5
_HALVED_S = 5.0
_WITNESSES = 2  # other nodes must agree before all believe a blame
_CONDEMNED_SHARE = 4  # at most every fourth node, or two
_DURATIONS = 64
_SEARCHED = 64
_MAX_NODES = 4096


@dataclass(slots=True)
class _Node:
    address: str
    zone: str
    have: int = 0
    seen_at: float = 0.0
    fetches: bool = True
    grants: dict[int, float] = field(default_factory=dict)  # when it was dealt, by piece
    imports: dict[int, float] = field(default_factory=dict)
    dealt: float = 0.0
    imported: float = 0.0
    slow_until: float = 0.0
    refused_until: float = 0.0
    blamed: dict[str, tuple[Reason, float]] = field(default_factory=dict)  # by who said it
    barred: bool = False

    def is_quick(self, now: float) -> bool:
        return not self.barred and now >= self.slow_until


@dataclass(slots=True)
class _Zone:
    """The nodes of one zone. `held`: the pieces that its live and quick nodes have; `holder`: the first of each."""

    nodes: dict[str, _Node] = field(default_factory=dict)
    roster: list[str] = field(default_factory=list)  # addresses of quick ones that have anything to give
    held: int = 0
    holder: dict[int, str] = field(default_factory=dict)
    importing: dict[int, float] = field(default_factory=dict)
    imported: float = 0.0
    fetching: int = 0


class _Pace:
    """How many pieces are asked of the origin at once: twice as many as long as that makes them come faster."""

    def __init__(self, pieces: int) -> None:
        self.at_once = min(max(_FIRST_AT_ONCE, pieces // _FIRST_SHARE), _MOST_FIRST)
        self._rate = 0.0  # pieces a second with half as many
        self._began_at: float | None = None  # when the first piece of this round was dealt
        self._received = 0

    def record_grant(self, now: float) -> None:
        """Note that a piece was dealt."""
        if self._began_at is None:
            self._began_at = now

    def record_piece(self, now: float) -> None:
        """Note that a piece came from the origin."""
        if self.at_once >= _ORIGIN_AT_ONCE or self._began_at is None:
            return
        self._received += 1
        if self._received < self.at_once:
            return
        rate = self._received / max(now - self._began_at, 1e-3)
        if rate > self._rate * _GAIN:
            self._rate = rate
            self.at_once = min(2 * self.at_once, _ORIGIN_AT_ONCE)
        self._began_at, self._received = now, 0


class Tracker:
    """The tracker of one version of `pieces` pieces."""

    def __init__(self, pieces: int, log: str, opens_at: float, rng: random.Random) -> None:
        """`log` names the log of digests: random, at most 32 hexadecimal digits. Nothing is dealt before `opens_at`,
        by which nodes that have the version had time to announce it."""
        self._pieces = pieces
        self._all = all_bits(pieces)
        self._log_id = log
        self._rng = rng
        self._opens_at = self._surveyed_at = opens_at
        self._surveys = 1
        self._lost = False  # pieces that no live node holds: their nodes left, or the origin does not give them
        self._barred: set[str] = set()  # also after their lease
        self._nodes: dict[str, _Node] = {}
        self._zones: dict[str, _Zone] = {}
        self._held = 0
        self._granted: dict[int, float] = {}  # when it was dealt last, by piece
        self._granted_bits = 0
        self._dealt = 0.0
        self._fetching = 0
        self._first_at = 0.0
        self._log: list[PieceDigest] = []
        self._known: dict[int, str] = {}
        self._durations: list[float] = []
        self._pace = _Pace(pieces)
        self._usual_s = 0.0
        self._tidied_at = self._halved_at = 0.0
        self._overdue = 0
        self._dealt_again = 0  # of the granted ones

    def is_fetching(self, address: str) -> bool:
        """Return whether the node at `address` announces the version, and has not all of it."""
        node = self._nodes.get(address)
        return node is not None and node.fetches

    def end_survey(self) -> None:
        """Deal from now on: all members were asked whether they have the version."""
        self._opens_at = 0.0

    @property
    def surveys(self) -> int:
        """How often all members are to be asked whether they have the version: at first, and again where pieces were
        lost, since nodes that have it announce it only while they are asked for it."""
        return self._surveys

    @property
    def log(self) -> str:
        """The name of the log of digests, by which a node shows that it follows this tracker."""
        return self._log_id

    @property
    def is_forgotten(self) -> bool:
        """Whether no node announces the version any more, as `tidy` found."""
        return not self._nodes

    def announce(self, address: str, message: Announce, now: float) -> Reply:
        """Take a node's announce and answer it. Raises ValueError for another number of pieces, or one node too
        many."""
        if message.pieces != self._pieces:
            raise ValueError(f"expected {self._pieces} pieces, found {message.pieces}")
        node = self._find(address, message, now)
        if message.log not in ("", self._log_id):
            self._opens_at = max(self._opens_at, self._first_at + SETTLE_S)
        self._take_digests(message.digests)
        self._take_have(node, message.have, now)
        self._end_grants(node, message, now)
        if node.is_quick(now):
            self._adopt_grants(node, message.working, now)
        self._take_blames(node, message.blames, now)
        if now >= self._tidied_at + _TIDY_S:
            self.tidy(now)
        if self._lost and now >= self._surveyed_at + _SURVEYED_S:
            self._begin_survey(now)
        grants: list[int] = []
        imports: list[tuple[int, str]] = []
        zone = self._zones[node.zone]
        if now >= self._opens_at and node.is_quick(now) and message.want:
            imports = self._deal_imports(node, zone, message.want, now)
            if now >= node.refused_until:
                grants = self._deal_grants(node, message.want, now)
        since = message.since if message.log == self._log_id else 0
        digests = tuple(self._log[since : since + MAX_DIGESTS])
        return Reply(
            grants=tuple(grants),
            imports=tuple(imports),
            neighbours=self._choose_neighbours(node, zone, message.neighbours),
            digests=digests,
            log=self._log_id,
            since=min(since, len(self._log)) + len(digests),
            active=any(zone.fetching for zone in self._zones.values()) or node.fetches,
            under_way=bool(self._granted_bits & ~self._overdue) and node.is_quick(now),
        )

    def tidy(self, now: float) -> None:
        """Drop nodes whose lease has ended, and count again what the others hold."""
        self._tidied_at = now
        before = self._held
        for node in [each for each in self._nodes.values() if now > each.seen_at + LEASE_S]:
            self._drop(node)
        self._held = 0
        self._fetching, self._dealt = 0, 0.0
        forgets = now >= self._halved_at + _HALVED_S
        self._halved_at = now if forgets else self._halved_at
        if forgets:  # a late node is not owed what the others had long before
            for node in self._nodes.values():
                node.dealt /= 2
                node.imported /= 2
        for zone in self._zones.values():
            self._count_zone(zone, now)
            self._held |= zone.held
        self._lost = self._lost or bool(before & ~self._held)
        self._usual_s = median_low(self._durations or [0.0])
        first_s = _FIRST_OVERDUE_S * self._pace.at_once / _FIRST_AT_ONCE
        late = now - (max(_OVERDUE_S, _OVERDUE_TIMES * self._usual_s) if self._durations else first_s)
        self._overdue = 0
        for piece, dealt_at in self._granted.items():
            if dealt_at < late:
                self._overdue |= 1 << piece

    # --- what a node says ------------------------------------------------------------------------------------------

    def _find(self, address: str, message: Announce, now: float) -> _Node:
        node = self._nodes.get(address)
        if node is not None and node.zone != message.zone:
            self._drop(node)
            node = None
        if node is None:
            if len(self._nodes) >= _MAX_NODES:
                raise ValueError(f"expected at most {_MAX_NODES} nodes of one version")
            if not self._nodes:
                self._first_at = now
            zone = self._zones.setdefault(message.zone, _Zone())
            node = _Node(address, message.zone)
            node.barred = address in self._barred
            self._fetching += 1
            zone.fetching += 1
            self._nodes[address] = zone.nodes[address] = node
            zone.roster.append(address)
        node.seen_at = now
        return node

    def _take_have(self, node: _Node, have: int, now: float) -> None:
        fresh = have & ~node.have
        lost = node.have & ~have
        node.have = have
        node.fetches = have != self._all
        if lost:
            self._tidied_at = 0.0  # count again
        if not fresh or not node.is_quick(now):
            return
        zone = self._zones[node.zone]
        new = fresh & ~zone.held
        if new:
            for piece in numbers_in(new):
                zone.holder[piece] = node.address
                zone.importing.pop(piece, None)
            zone.held |= new
            self._held |= new

    def _end_grants(self, node: _Node, message: Announce, now: float) -> None:
        if node.grants:
            working = set(message.working)
            for piece in [each for each in node.grants if each not in working or node.have >> each & 1]:
                began = node.grants.pop(piece)
                self._release(piece)
                if node.have >> piece & 1:
                    self._durations = [*self._durations[1 - _DURATIONS :], now - began]
                    self._pace.record_piece(now)
        if node.imports:
            working = set(message.working)
            zone = self._zones[node.zone]
            for piece in [each for each in node.imports if each not in working or node.have >> each & 1]:
                del node.imports[piece]
                zone.importing.pop(piece, None)
        if message.failed:
            node.refused_until = now + _REFUSED_S
            self._lost = self._lost or any(not self._held >> piece & 1 for piece in message.failed)

    def _begin_survey(self, now: float) -> None:
        """Have all members asked again; while no node holds anything, nothing is dealt before they answered."""
        self._lost = False
        self._surveyed_at = now
        self._surveys += 1
        if not self._held:
            self._opens_at = max(self._opens_at, now + SURVEY_S)

    def _adopt_grants(self, node: _Node, working: Iterable[int], now: float) -> None:
        """Count what a node fetches by the word of another tracker, which this one takes over from, as dealt here."""
        for piece in working:
            if piece in node.grants or piece in node.imports or (self._held | self._granted_bits) >> piece & 1:
                continue
            if len(node.grants) >= _NODE_AT_ONCE:
                return
            node.grants[piece] = self._granted[piece] = now
            self._granted_bits |= 1 << piece

    def _take_digests(self, digests: Iterable[PieceDigest]) -> None:
        """Add digests to the log, the first of each piece only: the file's own sha256 decides in the end."""
        for each in digests:
            if each.piece not in self._known:
                self._known[each.piece] = each.sha256
                self._log.append(each)

    def _take_blames(self, witness: _Node, blames: Iterable[tuple[str, Reason]], now: float) -> None:
        for address, reason in blames:
            node = self._nodes.get(address)
            if node is None or node is witness:
                continue
            if len(node.blamed) < MAX_BLAMES or witness.address in node.blamed:
                node.blamed[witness.address] = (reason, now)
            recent = [why for why, at in node.blamed.values() if at > now - SLOW_S]
            if recent.count(Reason.WRONG) >= _WITNESSES:
                node.barred = True
                self._barred.add(address)
            if len(recent) >= min(_WITNESSES, len(self._nodes) - 1) and self._may_condemn(now):
                node.slow_until = now + SLOW_S
            if not node.is_quick(now):
                self._take_back(node)
                self._tidied_at = 0.0

    def _may_condemn(self, now: float) -> bool:
        """Return whether one more node may count as slow: where many are said to be, the blames are wrong."""
        slow = sum(1 for node in self._nodes.values() if not node.is_quick(now))
        return (slow + 1) * _CONDEMNED_SHARE <= max(len(self._nodes), 2 * _CONDEMNED_SHARE)

    # --- what it is told -------------------------------------------------------------------------------------------

    def _deal_grants(self, node: _Node, want: int, now: float) -> list[int]:
        """Deal pieces that no node holds or fetches, while this node has not had more than the average one. Once all
        others have come, each that is overdue is dealt to one more node, once: most are slow, and come before that.
        What is overdue takes no place among the pieces that are asked of the origin at once."""
        fetching = max(1, self._fetching)
        at_once = min(self._pace.at_once, max(2 * fetching, self._pieces // 4))
        of_node = min(_NODE_AT_ONCE, -(-at_once // fetching))
        ahead = of_node - 1 + _AHEAD
        grants: list[int] = []
        lacking = want & ~self._held
        while (
            (free := lacking & ~self._granted_bits or lacking & self._find_late())
            and len(node.grants) < of_node
            and len(self._granted) - self._overdue.bit_count() < at_once
            and node.dealt <= self._dealt / fetching + ahead
        ):
            piece = pick(free, self._rng)
            lacking &= ~(1 << piece)
            self._dealt_again |= self._overdue & 1 << piece
            self._overdue &= ~(1 << piece)
            node.grants[piece] = self._granted[piece] = now
            self._granted_bits |= 1 << piece
            node.dealt += 1
            self._dealt += 1
            self._pace.record_grant(now)
            grants.append(piece)
        return grants

    def _find_late(self) -> int:
        """Return the overdue pieces to deal again: all of them, once no other is under way for the first time."""
        return 0 if self._granted_bits & ~(self._overdue | self._dealt_again) else self._overdue

    def _deal_imports(self, node: _Node, zone: _Zone, want: int, now: float) -> list[tuple[int, str]]:
        """Deal pieces that other zones hold and this one does not, with who has them."""
        imports: list[tuple[int, str]] = []
        free = want & self._held & ~zone.held
        if not free:
            return imports
        fetching = max(1, zone.fetching)
        of_node = min(_NODE_AT_ONCE, -(-_IMPORTS_AT_ONCE // fetching))
        ahead = of_node - 1 + _AHEAD
        tries = 2 * of_node
        while (
            free
            and tries
            and len(node.imports) < of_node
            and len(zone.importing) < _IMPORTS_AT_ONCE
            and node.imported <= zone.imported / fetching + ahead
        ):
            tries -= 1
            piece = pick(free, self._rng)
            free &= ~(1 << piece)
            if piece in zone.importing:
                tries += 1
                continue
            holder = self._find_holder(piece, zone, now)
            if holder is None:
                continue
            node.imports[piece] = zone.importing[piece] = now
            node.imported += 1
            zone.imported += 1
            imports.append((piece, holder))
        return imports

    def _find_holder(self, piece: int, besides: _Zone, now: float) -> str | None:
        """Return a live and quick node of another zone that has the piece."""
        zones = [zone for zone in self._zones.values() if zone is not besides and zone.held >> piece & 1]
        self._rng.shuffle(zones)
        for zone in zones:
            first = self._nodes.get(zone.holder.get(piece, ""))
            if first is not None and first.is_quick(now) and first.have >> piece & 1:
                return first.address
            for address in self._rng.sample(zone.roster, min(_SEARCHED, len(zone.roster))):
                node = self._nodes.get(address)
                if node is not None and node.is_quick(now) and node.have >> piece & 1:
                    zone.holder[piece] = address
                    return address
        return None

    def _choose_neighbours(self, node: _Node, zone: _Zone, count: int) -> tuple[str, ...]:
        """Return random live and quick nodes of the zone."""
        count = min(count, MAX_NEIGHBOURS)
        if not count or not node.fetches:
            return ()
        found = self._rng.sample(zone.roster, min(count + 1, len(zone.roster)))
        return tuple(address for address in found if address != node.address and address in zone.nodes)[:count]

    # --- accounts --------------------------------------------------------------------------------------------------

    def _count_zone(self, zone: _Zone, now: float) -> None:
        """Count a zone again: its pieces, its roster, and what its nodes were dealt."""
        zone.held, zone.roster = 0, []
        zone.fetching, zone.imported = 0, 0.0
        for node in zone.nodes.values():
            quick = node.is_quick(now)
            if quick:
                zone.held |= node.have
                zone.roster.append(node.address)
            if node.fetches and quick:
                zone.fetching += 1
                zone.imported += node.imported
                self._fetching += 1
                self._dealt += node.dealt

    def _release(self, piece: int) -> None:
        if self._granted.pop(piece, None) is not None:
            self._granted_bits &= ~(1 << piece)
            self._dealt_again &= ~(1 << piece)

    def _take_back(self, node: _Node) -> None:
        """Let others have what this node was dealt."""
        for piece in node.grants:
            self._release(piece)
        node.grants.clear()
        zone = self._zones[node.zone]
        for piece in node.imports:
            zone.importing.pop(piece, None)
        node.imports.clear()

    def _drop(self, node: _Node) -> None:
        self._take_back(node)
        del self._nodes[node.address]
        zone = self._zones[node.zone]
        del zone.nodes[node.address]
        if not zone.nodes:
            del self._zones[node.zone]
