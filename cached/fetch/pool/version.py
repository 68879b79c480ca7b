"""One version's fetch in a pool of nodes: a swarm behind the supplies of its blobs, and the thread that speaks for it.

Law: the swarm decides (`cached/peers`), this carries out. One lock guards the swarm; nothing blocks while it is held.
The thread announces, and asks neighbours what they have; it ends with the version's fetch. Each bringer of news wakes
the downloads that had nothing to ask for. What this node has is served from the moment that it was checked.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.program import limits
from cached.fetch.blob import SEGMENT_BYTES, Segment
from cached.fetch.pool.chains import VersionChains, states_bytes, write_chain
from cached.fetch.pool.held_version import BUSY
from cached.fetch.supply import Assignment, PeerPiece, Receipt, SupplyMaker, is_whole_piece, piece_around
from cached.peers import bits, chaining
from cached.peers.messages import Announce, Reason, Reply
from cached.peers.neighbours import Load
from cached.peers.pieces import PIECE_BYTES, Piece, PieceMap
from cached.peers.swarm import PieceRequest, Swarm
from cached.store.blob import chains
from cached.transport.target import HttpTarget

_log = logging.getLogger(__name__)

assert PIECE_BYTES == SEGMENT_BYTES
_LOAD = re.compile(r"(\d{1,4}),(\d{1,4})", re.ASCII)
_TURN_S = 0.25  # between two looks of the thread, unless there is news
_UNASKED_S = 8.0  # a seed goes after so long without a fetch by a node
_TOLD_A_TURN = 8
_ASKED_S = 1.0  # between two questions to one neighbour how to check pieces
_ASKED_A_TURN = 3
_LOADING_S = 1.0
_MET = 4  # holders that are asked to announce what they have
_PATIENCE_S = 15.0  # for nodes that said they have the version: until then no grant is taken
_HASHED_AT_ONCE = 4 * 1024 * 1024


class PoolLink(Protocol):
    """The way to the other nodes of the pool. Blocking, for the pool's thread; `target_of` returns at once."""

    def announce(self, message: Announce) -> Reply | None:
        """Announce to the first tracker of the version that answers; None if none does."""

    def poll(self, peer: str, version: str, pieces: int) -> tuple[int, Load] | None:
        """Return what a peer has of a version, and its load; None if it does not answer."""

    def ask_for_seed(self, peer: str, message: Announce) -> Announce | None:
        """Return what a node has of a version, which it announces from now on; None if it has nothing of it."""

    def list_trackers(self, version: str) -> tuple[str, ...]:
        """Return the trackers of a version, the first to be asked first."""

    def read_chain(self, peer: str, version: str) -> bytes | None:
        """Return what a node says are the chaining values of a version; None if it does not say."""

    def want_digests(self, peer: str, version: str) -> None:
        """Ask a node to tell the sha256 of a version's pieces."""

    def note_transfer(self, peer: str, error: HoldfastError | None) -> None:
        """Note that a piece came from a peer, or why not."""

    def target_of(self, peer: str, piece: Piece, version: str | None) -> HttpTarget:
        """Return the signed address of a range of a blob at a peer, which says with it what it has of `version`."""


class VersionPool:
    """The fetch of one version. `close` it when the version's downloads have ended."""

    def __init__(
        self,
        pieces: PieceMap,
        find_zone: Callable[[], str],
        have: int,
        link: PoolLink,
        layout: Layout,
        forget: Callable[[VersionPool], None],
        holders: Sequence[str] = (),
    ) -> None:
        """`find_zone`: asked at each turn; `have`: the pieces of blobs committed already; `forget` is called by
        the thread at its end; `holders`: nodes that are known to have the version. Raises `Transient` (`no_thread`)."""
        self.pieces = pieces
        self._link = link
        self._layout = layout
        self._forget = forget
        self._find_zone = find_zone
        self._clock = time.monotonic
        self._lock = threading.Lock()
        rng = random.Random()  # noqa: S311 - whom to ask, no secret
        self._swarm = Swarm(pieces.key, pieces.count, find_zone(), have, self._clock(), rng)
        self._is_chaining = chaining.is_available()
        self._chains = VersionChains(pieces)
        if self._is_chaining:
            self._swarm.set_chained(self._chains.known_pieces)
        self._asked: dict[str, float] = {}  # when a neighbour was asked how to check pieces
        self._liars: set[str] = set()  # whose chaining values a piece contradicted
        self._suspects: set[str] = set()  # whose piece contradicted chaining values
        self._digests_wanted = False
        self._loaded = threading.Event()
        self._unmet = list(holders[:_MET])
        self._patient_until = self._clock() + _PATIENCE_S if holders else 0.0
        self._users = 1
        self._active_at = self._clock()  # when a tracker last named a node that fetches the version
        self._supplies: dict[str, BlobSupply] = {}
        self.promised = 0  # pieces that this node is to fetch for others, and has not begun
        self._news = threading.Event()
        self._closing = self._ended = False
        self._sizes = dict(pieces.blobs)
        self._thread = threading.Thread(target=self._run, name=f"pool {pieces.key[:8]}", daemon=True)
        limits.start_thread(self._thread, "fetching with other nodes")

    def make_supply_of(self, sha256: str | None) -> SupplyMaker | None:
        """Return what makes the supply of a blob; None for one that is none of the version's pieces."""
        if sha256 not in self._sizes:
            return None
        return partial(self._make_supply, sha256)

    def _make_supply(self, sha256: str, wake: Callable[[], None]) -> BlobSupply:
        supply = BlobSupply(self, sha256, wake)
        with self._lock:
            self._supplies[sha256] = supply
        return supply

    def enter(self) -> bool:
        """Count one more fetch of the version; return False if it has ended."""
        with self._lock:
            self._users += not self._ended
            return not self._ended

    def leave(self) -> None:
        """End one fetch: what it committed is seeded while other nodes fetch it."""
        with self._lock:
            self._users -= 1
        self._news.set()

    def end_supply(self, sha256: str, *, is_committed: bool) -> None:
        """Note that a download has ended. A committed blob has all pieces, wherever they came from; of another one this
        node has none to serve."""
        with self._lock:
            self._supplies.pop(sha256, None)
            if sha256 not in self._sizes:
                return
            if is_committed:
                self._swarm.have |= self.pieces.pieces_of(sha256)
            else:
                self._swarm.lose(self.pieces.pieces_of(sha256))
        self._news.set()

    def find_checked(self, sha256: str, start: int, end: int) -> int | None:
        """Return the size of a blob of which this node has these bytes, checked: then it may serve them; else None."""
        size = self._sizes.get(sha256)
        if size is None or not start < end <= size:
            return None
        first, last = self.pieces.number_at(sha256, start), self.pieces.number_at(sha256, end - 1)
        with self._lock:
            is_here = all(self._swarm.have >> piece & 1 for piece in range(first, last + 1))
        return size if is_here else None

    def list_have(self) -> int:
        """Return the set of pieces that this node has."""
        with self._lock:
            return self._swarm.have

    def describe(self) -> Announce:
        """Return what this node has and fetches, for a tracker that asks."""
        with self._lock:
            return self._swarm.describe()

    def close(self) -> None:
        """End the thread, after what it is asking."""
        self._closing = True
        self._news.set()
        self._thread.join()

    # --- of the supplies -------------------------------------------------------------------------------------------

    def choose(self, sha256: str, segments: Sequence[Segment], size: int, origin_from: float) -> Assignment | None:
        """Return the next segment of a blob. What is left of a piece is the origin's: it cannot be checked alone. While
        the origin is not asked (before `origin_from`), a peer may send the whole piece for it."""
        is_paused = self._clock() < origin_from
        open_: dict[int, Segment] = {}
        for segment in segments:
            if not is_whole_piece(segment, size) and not is_paused:
                return Assignment(segment, None)
            open_.setdefault(self.pieces.number_at(sha256, segment.start), segment)
        with self._lock:
            request = self._next_request(bits.set_of(open_), is_paused=is_paused)
            self.promised = self._swarm.find_promised()
            if request is None:
                return None
            segment = open_[request.piece]
            extent = piece_around(segment, size)
            step = self._chains.find_step(sha256, extent.start) if self._is_chaining else None
            if request.peer is None:
                needs_sha256 = step is None or self._digests_wanted
                return Assignment(segment, None, is_told=True, needs_sha256=needs_sha256)
            digest = self._swarm.digest_of(request.piece)
        assert digest is not None or step is not None
        target = self._link.target_of(request.peer, self.pieces.find(request.piece), self.pieces.key)
        rest_of = None if segment == extent else extent
        return Assignment(segment, PeerPiece(target, digest, request.peer, step, rest_of))

    def _next_request(self, among: int, *, is_paused: bool) -> PieceRequest | None:
        """Return the next request. A node that knows holders gives grants back, the origin being for those that know
        none; so does one whose origin fails. Call with the lock held."""
        while True:
            now = self._clock()
            is_alone = self._swarm.is_alone(now)
            request = self._swarm.next_request(among, now)
            is_patient = is_paused or (now < self._patient_until and not is_alone)
            if request is None or request.peer is not None or not is_patient:
                return request
            self._swarm.failed(request, None, now)
            if is_alone:  # it would be named again
                return None

    def received(self, sha256: str, assignment: Assignment, receipt: Receipt) -> None:
        """Take a piece."""
        request, load = self._request_of(sha256, assignment), parse_load(receipt.load)
        rate = assignment.segment.size / max(receipt.seconds, 1e-6)
        have = self._parse_pieces(receipt.pieces)
        with self._lock:
            now = self._clock()
            if assignment.piece is not None and assignment.piece.extent is not None:
                self._swarm.failed(request, None, now)  # other parts of it may still come
                return
            self._swarm.received(request, rate, load, now)
            if request.peer is None and receipt.sha256 is not None:
                self._swarm.vouch(request.piece, receipt.sha256)
            elif request.peer is not None and have is not None:
                self._swarm.heard(request.peer, have, load, now)
        if request.peer is not None:
            self._link.note_transfer(request.peer, None)
        self._tell_news()

    def _parse_pieces(self, text: str) -> int | None:
        """Return the set of pieces of a `Holdfast-Pieces` header; None if there is none, or it is not one."""
        try:
            return bits.decode(base64.b64decode(text, validate=True), self.pieces.count) if text else None
        except ValueError:
            return None

    def failed(self, sha256: str, assignment: Assignment, error: HoldfastError | None) -> None:
        """Take back a piece, and leave its peer unless that was only busy."""
        request = self._request_of(sha256, assignment)
        reason = _reason_of(error)
        with self._lock:
            is_contradiction = error is not None and error.code == "digest_mismatch"
            if is_contradiction and assignment.piece is not None and assignment.piece.step is not None:
                reason = self._take_contradiction(sha256, assignment.piece.peer)
            self._swarm.failed(request, reason, self._clock())
        if request.peer is not None and error is not None and (reason is not None or not is_contradiction):
            self._link.note_transfer(request.peer, error)
        self._tell_news()

    def _take_contradiction(self, sha256: str, peer: str) -> Reason | None:
        """Take back a chain that a peer's piece contradicts; return why the peer is left. Either may be wrong: no node
        is told that the peer is, unless that follows, and it is left only if it did so before. Also where the peer told
        the chain: it may have been published so. Call with the lock held."""
        if self._chains.is_certain(sha256):
            reason: Reason | None = Reason.WRONG
        else:
            reason = Reason.GONE if peer in self._suspects else None
        self._suspects.add(peer)
        if not self._chains.is_certain(sha256):
            if self._chains.giver is not None:
                self._liars.add(self._chains.giver)
            if self._chains.drop():
                _log.warning("version %s: a piece contradicts its published chaining values", self.pieces.key[:12])
            self._swarm.set_chained(self._chains.known_pieces)
        return reason

    def take_published(self, states: Mapping[str, bytes]) -> None:
        """Take the chaining values of blobs, by sha256, that `publish` left at the source."""
        with self._lock:
            self._chains.take_published(states)
            self._swarm.set_chained(self._chains.known_pieces)

    def note_chain(self, sha256: str, states: bytes) -> None:
        """Take the chaining values of a committed blob, and keep them for later seeds."""
        with self._lock:
            self._keep_chain(sha256, states)
        write_chain(self._layout, sha256, states)

    def _keep_chain(self, sha256: str, states: bytes) -> None:
        self._chains.keep(sha256, states)
        if self._is_chaining:
            self._swarm.set_chained(self._chains.known_pieces)

    def read_chain(self) -> bytes | None:
        """Return the chaining values of the version; None unless all are known."""
        self._loaded.wait(_LOADING_S)
        with self._lock:
            return self._chains.encode()

    def want_digests(self) -> None:
        """Tell the sha256 of pieces too: a node cannot check them by the chain."""
        self._digests_wanted = True

    def lose(self, sha256: str) -> None:
        """Take back all pieces of a blob: they are neither announced nor served any more."""
        with self._lock:
            self._swarm.lose(self.pieces.pieces_of(sha256))
        self._news.set()

    def _tell_news(self) -> None:
        """Let the thread announce, and downloads try again that had nothing to ask for: a neighbour is free again."""
        self._news.set()
        self._wake_idle()

    def _wake_idle(self) -> None:
        with self._lock:
            idle = [each for each in self._supplies.values() if each.is_idle]
        for each in idle:
            each.is_idle = False
        for each in idle[:1]:
            each.wake()  # a worker that finds work wakes the next

    def _request_of(self, sha256: str, assignment: Assignment) -> PieceRequest:
        peer = None if assignment.piece is None else assignment.piece.peer
        return PieceRequest(self.pieces.number_at(sha256, assignment.segment.start), peer)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._load_chains()
        while not self._is_over():
            try:
                self._take_turn()
            except Exception:  # noqa: BLE001 - the downloads go on with what they have, and with the origin
                _log.exception("fetching version %s with other nodes", self.pieces.key[:12])
            self._news.wait(_TURN_S)
            self._news.clear()
        self._forget(self)

    def _load_chains(self) -> None:
        """Read the chaining values that were found out before, of the blobs that are here."""
        for sha256, _ in self.pieces.blobs:
            length = states_bytes(self.pieces, sha256)
            with self._lock:
                is_here = not self.pieces.pieces_of(sha256) & ~self._swarm.have
            states = chains.read(self._layout, sha256, length) if is_here and length else None
            if states is not None:
                with self._lock:
                    self._keep_chain(sha256, states)
        self._loaded.set()

    def _is_over(self) -> bool:
        """Return whether the thread may end: no fetch here, and no node elsewhere to seed for."""
        with self._lock:
            idle = not self._users and (not self._swarm.is_complete or self._clock() > self._active_at + _UNASKED_S)
            self._ended = self._closing or idle
            return self._ended

    def _tell_digests(self) -> None:
        """Tell the sha256 of some pieces here that no node has told yet, from a random one on: of all, once this node
        does not know their chain; else only if a node asks for them."""
        with self._lock:
            tells = self._digests_wanted or (self._swarm.is_complete and not self._chains.is_known)
            untold = list(bits.numbers_in(self._swarm.find_untold() & self._swarm.have)) if tells else []
        start = random.randrange(len(untold)) if untold else 0  # noqa: S311
        for number in (untold[start:] + untold[:start])[:_TOLD_A_TURN]:
            piece = self.pieces.find(number)
            places = (self._layout.blob(piece.sha256), self._layout.ingest / piece.sha256 / "data")
            sha256 = next((found for each in places if (found := _hash_range(each, piece.start, piece.end))), None)
            if sha256 is not None:
                with self._lock:
                    self._swarm.vouch(number, sha256)

    def _meet_holders(self) -> None:
        """Have the nodes that hold the version announce it, and ask those of this zone at once."""
        while self._unmet and not self._closing:
            holder = self._unmet.pop()
            with self._lock:
                message = replace(self._swarm.describe(), blobs=self.pieces.blobs)
            found = self._link.ask_for_seed(holder, message)
            if found is not None and found.pieces == self.pieces.count and found.zone == message.zone:
                with self._lock:
                    self._swarm.meet(holder, found.have, self._clock())

    def _ask_how_to_check(self) -> None:
        """Ask some nodes for the chaining values, or to tell the sha256 of pieces where those cannot be used."""
        for number, peer in enumerate(self._list_advisers()):
            if self._closing or (number and self._is_announce_due()):  # one at least: a busy node is always late
                return
            self._asked[peer] = self._clock()
            if not self._is_chaining or self._liars or self._chains.is_refuted:
                self._link.want_digests(peer, self.pieces.key)
            data = self._link.read_chain(peer, self.pieces.key) if self._is_chaining else None
            with self._lock:
                if data is not None and self._chains.take(peer, data):
                    self._swarm.set_chained(self._chains.known_pieces)
                    return

    def _list_advisers(self) -> list[str]:
        """Return the nodes to ask how pieces are checked: trackers, who asked all members, and then neighbours."""
        with self._lock:
            if self._swarm.is_complete or (self._is_chaining and self._chains.is_known):
                return []
            neighbours = list(self._swarm.list_neighbours())
        trackers, now = self._link.list_trackers(self.pieces.key), self._clock()
        with self._lock:
            random.shuffle(neighbours)
            known = dict.fromkeys((*trackers, *neighbours))
            due = [each for each in known if now >= self._asked.get(each, -_ASKED_S) + _ASKED_S]
            return [each for each in due if each not in self._liars][:_ASKED_A_TURN]

    def _take_turn(self) -> None:
        self._meet_holders()
        with self._lock:
            supplies = list(self._supplies.values())
            has_idle = any(each.is_idle for each in supplies)  # before the announce, which wakes them
            among = self._find_open(supplies)
            now = self._clock()
            self._swarm.zone = self._find_zone()
            due = now >= self._swarm.next_announce_at()
            message = self._swarm.make_announce(among, now, self.pieces.blobs) if due else None
        if message is not None:
            self._announce(message)
        with self._lock:
            asked = self._swarm.polls(among, self._clock()) if has_idle else []
        for peer in asked:
            if self._closing or self._is_announce_due():  # a silent peer may take seconds
                break
            self._poll(peer)
        if any(each.is_open for each in supplies):
            self._ask_how_to_check()
        self._wake_idle()
        self._tell_digests()

    def _is_announce_due(self) -> bool:
        with self._lock:
            return self._clock() >= self._swarm.next_announce_at()

    def _find_open(self, supplies: Sequence[BlobSupply]) -> int:
        """Return the pieces of the blobs whose downloads ask for segments."""
        among = 0
        for supply in supplies:
            if supply.is_open:
                among |= self.pieces.pieces_of(supply.sha256)
        return among

    def _announce(self, message: Announce) -> None:
        reply = self._link.announce(message)
        with self._lock:
            if reply is None:
                self._swarm.announce_failed(message)
            else:
                self._swarm.take_reply(reply, self._clock())
                self.promised = self._swarm.find_promised()
                if reply.active:
                    self._active_at = self._clock()
        self._wake_idle()

    def _poll(self, peer: str) -> None:
        answer = self._link.poll(peer, self.pieces.key, self.pieces.count)
        with self._lock:
            if answer is None:
                self._swarm.leave(peer, Reason.GONE, self._clock())
            else:
                self._swarm.heard(peer, *answer, self._clock())
        self._wake_idle()


class BlobSupply:
    """The supply of one blob of a version in a pool: a `Supply`."""

    keeps_chain: bool
    joins = False  # other nodes may have the segments after it

    def __init__(self, pool: VersionPool, sha256: str, wake: Callable[[], None]) -> None:
        self.sha256 = sha256
        self.is_idle = False  # the last `choose` found nothing
        self.is_open = False  # a download has asked
        self._pool = pool
        self._size = dict(pool.pieces.blobs)[sha256]
        self._pieces = pool.pieces.pieces_of(sha256)
        self.wake = wake
        self._only_origin = False
        self._origin_from = 0.0
        self.keeps_chain = chaining.is_available()

    def choose(self, segments: Sequence[Segment]) -> Assignment | None:
        """Return the next segment and its place, None if nothing is to be asked now."""
        self.is_open = True
        if self._only_origin:
            return Assignment(segments[0], None)
        assignment = self._pool.choose(self.sha256, segments, self._size, self._origin_from)
        self.is_idle = assignment is None
        return assignment

    def has_work(self, segments: Sequence[Segment]) -> bool:  # noqa: ARG002 - of any of them
        """Return whether a segment may be asked for."""
        return not self.is_idle

    def is_waited_for(self) -> bool:
        """Return whether this node is to fetch a piece of the blob for others, and has not begun."""
        return bool(self._pieces & self._pool.promised)

    def received(self, assignment: Assignment, receipt: Receipt) -> None:
        """Tell the swarm of a piece."""
        self._pool.received(self.sha256, assignment, receipt)

    def failed(self, assignment: Assignment, error: HoldfastError | None) -> None:
        """Tell the swarm that a piece did not come."""
        self._pool.failed(self.sha256, assignment, error)

    def lose(self) -> None:
        """Take back what was received: it is received again."""
        self.is_idle = False
        self._pool.lose(self.sha256)

    def distrust(self) -> None:
        """Fetch this blob from its origin alone."""
        self._only_origin = True
        self.is_idle = False

    def pause_origin(self, until: float) -> bool:
        """Ask peers alone until then; return whether that is possible."""
        self._origin_from = until
        return not self._only_origin

    def note_chain(self, states: bytes) -> None:
        """Keep the states of sha256 between the blob's pieces."""
        self._pool.note_chain(self.sha256, states)


def _hash_range(path: Path, start: int, end: int) -> str | None:
    """Return the sha256 of a part of a file; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            file.seek(start)
            while start < end and (data := file.read(min(_HASHED_AT_ONCE, end - start))):
                digest.update(data)
                start += len(data)
    except OSError:
        return None
    return digest.hexdigest() if start == end else None


def parse_load(text: str) -> Load:
    """Return the load of a `Holdfast-Load` header; that of an idle node if there is none."""
    match = _LOAD.fullmatch(text)
    return Load() if match is None else Load(int(match[1]), int(match[2]))


def _reason_of(error: HoldfastError | None) -> Reason | None:
    if error is None or error.code in BUSY:
        return None
    return Reason.WRONG if error.code in ("digest_mismatch", "bad_response") else Reason.GONE
