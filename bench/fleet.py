"""A fleet that fetches one version from one origin, simulated with the decisions of `cached/peers`.

Law: discrete events and virtual time: other work of the machine changes no figure, but for the tracker's
processor time. Transfers share the network cards of both ends as TCP's flows do, in steps of 2 ms: no card sends or
receives more than it can, and a transfer ends, and its piece is checked, with a step.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import itertools
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import numpy as np

from bench.report import Target
from cached.contract.program.units import parse_size
from cached.fetch.workers import MAX_OPEN, MAX_PARKED, PEER_HTTP, POOL_CONNECTIONS
from cached.peers.messages import Reason, Reply, decode_announce, decode_reply, encode_announce, encode_reply
from cached.peers.neighbours import Load
from cached.peers.pieces import PIECE_BYTES, PieceMap
from cached.peers.serving.server import ServerSettings
from cached.peers.swarm import SEED_S, PieceRequest, Swarm
from cached.peers.tracker import SURVEY_S, Tracker
from cached.peers.uploads import Uploads, UploadVerdict

_SERVING = ServerSettings()
_SLOTS, _QUEUE, _WAIT_S = _SERVING.uploads, _SERVING.queue, _SERVING.wait_s
_REQUESTS = POOL_CONNECTIONS
_ORIGIN_CONNECTIONS = 64
_BLOBS = 30
_REQUEST_S, _ANNOUNCE_S = 0.001, 0.005
_SURVEYED_S = 0.001  # of one member: what the tracker's node takes to ask it
_TURN_S = 0.25
_JITTER_S = 0.25  # of the first announces
_CONNECT_S, _STALL_S = PEER_HTTP.connect_timeout_s, PEER_HTTP.stall_window_s
_STEP_S = 0.002
_SHARINGS = 8  # rounds of sharing what a round before left of the cards
_LEAST_MORE = 1e6
_TOO_LONG = 20
_GIGABIT = 1e9 / 8
_UNKNOWN = Load()
_workers_of = attrgetter("workers")


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated: `size` in bytes, rates in bytes a second; `dying`, `slow`: shares of the nodes."""

    nodes: int
    size: int
    card: float
    origin: float
    zones: int = 1
    dying: float = 0.0
    slow: float = 0.0
    seed: int = 1

    @property
    def bound_s(self) -> float:
        """The least time in which the last node can have the version."""
        return max(self.size / self.card, self.size / self.origin)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`copies`: what the origin sent, `crossed`: what crossed between zones, as parts of the version; `last_s`: when
    the last live node of full speed had it, `p50_s`: when half of these had it."""

    copies: float
    crossed: float
    last_s: float
    p50_s: float
    events: int


@dataclass(slots=True, eq=False)
class _Transfer:
    request: PieceRequest
    receiver: _Node
    sender: _Node | None
    blob: _Blob
    began: float = 0.0
    place: int | None = None
    over: bool = False
    load: Load = _UNKNOWN  # of the sender, when it began to answer
    have: int = 0  # what it had then


@dataclass(slots=True, eq=False)
class _Blob:
    """An unfinished blob of a node: its pieces, those that are neither here nor asked for, and whether nothing could be
    asked for when a worker looked last."""

    pieces: int
    left: int
    workers: int = 0
    is_idle: bool = False


@dataclass(slots=True, eq=False)
class _Node:
    number: int
    address: str
    zone: str
    card: float
    swarm: Swarm
    blobs: list[_Blob]  # the unfinished ones
    is_slow: bool = False
    alive: bool = True
    uploads: Uploads[_Transfer] = field(default_factory=lambda: Uploads(_SLOTS, _QUEUE))
    running: set[_Transfer] = field(default_factory=set)  # both ways
    opened: int = 0  # so many of the blobs
    requests: int = 0
    among: int = 0
    announcing: bool = False
    woken_at: float = 0.0
    done_at: float | None = None
    looks_at: float = 0.0  # when its thread looks next
    polling: bool = False

    @property
    def load(self) -> Load:
        return Load(max(1, self.uploads.serving), self.uploads.waiting)


class Simulation:
    """One run."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.now = 0.0
        self._rng = random.Random(fleet.seed)
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        blob = -(-fleet.size // _BLOBS)
        self.pieces = PieceMap((hashlib.sha256(b"%d" % n).hexdigest(), blob) for n in range(_BLOBS))
        self._masks = [self.pieces.pieces_of(sha256) for sha256, _ in self.pieces.blobs]
        self.tracker = Tracker(self.pieces.count, "1", SURVEY_S, random.Random(fleet.seed + 1))
        self.nodes = [self._make_node(n) for n in range(fleet.nodes)]
        cards = [node.card for node in self.nodes]
        self._flows = _Flows([*cards, fleet.origin], [*cards, 0.0])
        self._by_address = {node.address: node for node in self.nodes}
        self._origin_busy = 0
        self._origin_queue: deque[_Transfer] = deque()
        self._from_origin = self._crossed = 0
        self._waited_for = 0
        self._surveyed: set[int] = set()
        self.events = 0

    def run(self) -> Outcome:
        """Run until all live nodes of full speed are done."""
        fleet = self.fleet
        for node in self.nodes:
            self._at(self._rng.uniform(0, _JITTER_S), self._announce, node)
        mortal = self.nodes[:: max(1, round(1 / fleet.dying))] if fleet.dying else []
        for node in mortal:
            self._at(self._rng.uniform(1, 0.9 * fleet.bound_s), self._die, node)
        lasting = [node for node in self.nodes if not node.is_slow and node not in mortal]
        self._waited_for = len(lasting)
        while self._waited_for and self.now < _TOO_LONG * fleet.bound_s:
            self._step()
        times = sorted(node.done_at for node in lasting if node.done_at is not None)
        if len(times) < len(lasting):
            raise RuntimeError(f"{len(lasting) - len(times)} nodes never finished")
        count = self.pieces.count
        return Outcome(self._from_origin / count, self._crossed / count, times[-1], times[len(times) // 2], self.events)

    def _step(self) -> None:
        """Do what is due within a step, then what ends with it."""
        end = self.now + _STEP_S
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action, arguments = heapq.heappop(self._heap)
            self.events += 1
            action(*arguments)
        self.now = end
        for transfer in self._flows.advance(_STEP_S):
            if not transfer.over:
                self.events += 1
                self._finish(transfer)

    def _make_node(self, number: int) -> _Node:
        fleet = self.fleet
        slow = bool(fleet.slow) and number % round(1 / fleet.slow) == 1
        card = fleet.card / 10 if slow else fleet.card
        zone = f"zone-{number % fleet.zones}"
        rng = random.Random(fleet.seed * 100_003 + number)
        swarm = Swarm(self.pieces.key, self.pieces.count, zone, 0, 0.0, rng)
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:9402"
        return _Node(number, address, zone, card, swarm, [_Blob(mask, mask) for mask in self._masks], slow)

    def _at(self, delay: float, action: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), action, arguments))

    def _open(self, node: _Node) -> bool:
        """Open another blob, while few of the open ones have anything to ask for."""
        if node.opened >= min(MAX_PARKED, len(node.blobs)):
            return False
        busy = sum(1 for blob in node.blobs[: node.opened] if blob.workers or not blob.is_idle)
        if busy >= MAX_OPEN:
            return False
        node.among |= node.blobs[node.opened].pieces
        node.opened += 1
        return True

    def _close(self, node: _Node, blob: _Blob) -> None:
        node.blobs.remove(blob)
        node.opened -= 1
        node.among &= ~blob.pieces

    # --- announces -------------------------------------------------------------------------------------------------

    def _announce(self, node: _Node) -> None:
        if node.announcing or not node.alive:
            return
        node.announcing = True
        if not self._surveyed:
            self._at(0.0, self._survey)
        self._surveyed.add(node.number)
        message = node.swarm.make_announce(node.among, self.now)
        reply = self.tracker.announce(node.address, message, self.now)
        self._at(_ANNOUNCE_S, self._take_reply, node, reply)

    def _survey(self) -> None:
        """Ask the next member whether it has the version, unless it has announced itself."""
        rest = next((node for node in self.nodes if node.number not in self._surveyed), None)
        if rest is None:
            self.tracker.end_survey()
            return
        self._surveyed.add(rest.number)
        self._at(_SURVEYED_S, self._survey)

    def _take_reply(self, node: _Node, reply: Reply) -> None:
        node.announcing = False
        if not node.alive:
            return
        node.swarm.take_reply(reply, self.now)
        if node.swarm.is_complete:
            self._at(SEED_S, self._announce, node)
            return
        self._plan_announce(node)
        self._wake_blobs(node)

    def _plan_announce(self, node: _Node) -> None:
        if node.announcing:
            return
        at = max(self.now, node.swarm.next_announce_at())
        if not self.now < node.woken_at <= at:
            node.woken_at = at
            self._at(at - self.now, self._wake, node, at)

    def _wake(self, node: _Node, at: float) -> None:
        if node.woken_at == at:
            node.woken_at = 0.0
            self._announce(node)

    # --- requests --------------------------------------------------------------------------------------------------

    def _pump(self, node: _Node) -> None:
        """Let free workers take pieces, each of the open blob that has the fewest workers."""
        able, promised = _list_able(node), node.swarm.find_promised()
        ranked: list[_Blob] = []  # the able ones, until a request changes their ranks
        while node.requests < _REQUESTS and node.alive:
            blob = next((blob for blob in able if blob.left & promised), None) if promised else None
            if blob is None:
                ranked = ranked or sorted(able, key=_workers_of)
                blob = ranked[0] if ranked else None
                if (blob is None or blob.workers) and self._open(node):
                    able, ranked = _list_able(node), []
                    continue
            if blob is None:
                break
            request = node.swarm.next_request(blob.left, self.now)
            if request is None:
                blob.is_idle = True
                able.remove(blob)
                if blob in ranked:
                    ranked.remove(blob)
                continue
            ranked = []
            blob.workers += 1
            blob.left ^= 1 << request.piece
            node.requests += 1
            if not blob.left:
                able.remove(blob)
            promised = node.swarm.find_promised()
            if request.peer is None:
                self._ask_origin(_Transfer(request, node, None, blob))
            else:
                self._ask_peer(_Transfer(request, node, self._by_address[request.peer], blob))
        if node.alive and not node.swarm.is_complete and not self.now < node.looks_at:
            node.looks_at = self.now + _TURN_S
            self._at(_TURN_S, self._look, node)

    def _look(self, node: _Node) -> None:
        """A turn of the node's thread, of which nothing else reminded it."""
        if node.alive and not node.swarm.is_complete:
            self._wake_blobs(node)

    def _wake_blobs(self, node: _Node) -> None:
        if not node.polling and any(blob.is_idle for blob in node.blobs[: node.opened]):
            asked = node.swarm.polls(node.among, self.now)
            if asked:
                node.polling = True
                self._poll(node, asked)
        for blob in node.blobs[: node.opened]:
            blob.is_idle = False
        self._pump(node)

    def _poll(self, node: _Node, asked: list[str]) -> None:
        """Ask neighbours what they have, one after another; a dead one takes its time."""
        if not node.alive or not asked:
            node.polling = False
            return
        peer = self._by_address[asked[0]]
        if peer.alive:
            self._at(_REQUEST_S, self._hear, node, peer, asked[1:])
        else:
            self._at(_CONNECT_S, self._miss, node, peer, asked[1:])

    def _hear(self, node: _Node, peer: _Node, asked: list[str]) -> None:
        node.swarm.heard(peer.address, peer.swarm.have, peer.load, self.now)
        for blob in node.blobs[: node.opened]:
            blob.is_idle = False
        self._pump(node)
        self._poll(node, asked)

    def _miss(self, node: _Node, peer: _Node, asked: list[str]) -> None:
        node.swarm.leave(peer.address, Reason.GONE, self.now)
        self._poll(node, asked if self.now < node.swarm.next_announce_at() else [])

    def _ask_peer(self, transfer: _Transfer) -> None:
        node, peer = transfer.receiver, transfer.sender
        assert peer is not None
        if not peer.alive:
            self._at(_CONNECT_S, self._fail, transfer)
            return
        verdict = peer.uploads.ask(node.address, transfer)
        if verdict is UploadVerdict.REFUSE:
            self._at(_REQUEST_S, self._refuse, transfer)
            return
        peer.running.add(transfer)
        if verdict is UploadVerdict.SERVE:
            self._start(transfer)
        else:
            self._at(_WAIT_S, self._end_wait, transfer)

    def _end_wait(self, transfer: _Transfer) -> None:
        """A request waited too long: it is refused."""
        sender = transfer.sender
        assert sender is not None
        if sender.alive and sender.uploads.withdraw(transfer.receiver.address, transfer):
            sender.running.discard(transfer)
            self._refuse(transfer)

    def _refuse(self, transfer: _Transfer) -> None:
        receiver, sender = transfer.receiver, transfer.sender
        assert sender is not None
        if receiver.alive:
            self._release(transfer)
            receiver.swarm.failed(transfer.request, None, self.now)
            self._wake_blobs(receiver)

    def _release(self, transfer: _Transfer) -> None:
        """End a worker's request."""
        transfer.receiver.requests -= 1
        transfer.blob.workers -= 1
        if not transfer.receiver.swarm.have >> transfer.request.piece & 1:
            transfer.blob.left |= 1 << transfer.request.piece

    def _start(self, transfer: _Transfer) -> None:
        if not transfer.receiver.alive:
            self._at(_STALL_S, self._end_upload, transfer)
            return
        sender = transfer.sender
        assert sender is not None
        self._begin(transfer, sender.number, np.inf)

    def _begin(self, transfer: _Transfer, sender: int, cap: float) -> None:
        transfer.began = self.now
        if transfer.sender is not None:
            transfer.load, transfer.have = transfer.sender.load, transfer.sender.swarm.have
        transfer.receiver.running.add(transfer)
        transfer.place = self._flows.add(sender, transfer.receiver.number, cap, transfer)

    def _finish(self, transfer: _Transfer) -> None:
        receiver, sender = transfer.receiver, transfer.sender
        self._stop(transfer)
        if sender is None:
            self._finish_origin(receiver, transfer)
            return
        self._end_upload(transfer)
        if sender.zone != receiver.zone:
            self._crossed += 1
        rate = PIECE_BYTES / (self.now - transfer.began)
        receiver.swarm.received(transfer.request, rate, transfer.load, self.now)
        receiver.swarm.heard(sender.address, transfer.have, transfer.load, self.now)
        self._release(transfer)
        self._have(receiver, transfer)

    def _stop(self, transfer: _Transfer) -> None:
        transfer.over = True
        transfer.receiver.running.discard(transfer)
        if transfer.place is not None:
            self._flows.remove(transfer.place)
            transfer.place = None

    def _end_upload(self, transfer: _Transfer) -> None:
        sender = transfer.sender
        assert sender is not None
        sender.running.discard(transfer)
        if sender.alive:
            following = sender.uploads.end(transfer.receiver.address)
            if following is not None:
                self._start(following)

    def _fail(self, transfer: _Transfer) -> None:
        """A peer went away: its receiver notices."""
        receiver = transfer.receiver
        if receiver.alive:
            self._release(transfer)
            receiver.swarm.failed(transfer.request, Reason.GONE, self.now)
            self._wake_blobs(receiver)

    # --- the origin ------------------------------------------------------------------------------------------------

    def _ask_origin(self, transfer: _Transfer) -> None:
        if self._origin_busy >= _ORIGIN_CONNECTIONS:
            self._origin_queue.append(transfer)
            return
        self._origin_busy += 1
        self._from_origin += 1
        self._begin(transfer, len(self.nodes), self.fleet.origin / _ORIGIN_CONNECTIONS)

    def _end_origin(self) -> None:
        self._origin_busy -= 1
        if self._origin_queue:
            self._ask_origin(self._origin_queue.popleft())

    def _finish_origin(self, node: _Node, transfer: _Transfer) -> None:
        self._end_origin()
        node.swarm.received(transfer.request, 0.0, Load(), self.now)
        self._release(transfer)
        node.swarm.vouch(transfer.request.piece, "0" * 64)
        self._have(node, transfer)

    # --- ends ------------------------------------------------------------------------------------------------------

    def _have(self, node: _Node, transfer: _Transfer) -> None:
        if node.swarm.is_complete:
            if node.done_at is None and node.alive:
                node.done_at = self.now
                self._waited_for -= not node.is_slow
            self._plan_announce(node)
            return
        if not transfer.blob.pieces & ~node.swarm.have:
            self._close(node, transfer.blob)
        self._plan_announce(node)
        self._wake_blobs(node)

    def _die(self, node: _Node) -> None:
        if node.done_at is not None:
            return
        node.alive = False
        for transfer in [each for each in node.running if not each.over]:
            self._stop(transfer)
            if transfer.sender is node:
                self._at(_STALL_S, self._fail, transfer)
            elif transfer.sender is None:
                self._end_origin()
            else:
                self._at(_STALL_S, self._end_upload, transfer)


def _list_able(node: _Node) -> list[_Blob]:
    """Return the open blobs of which something may be asked for."""
    return [blob for blob in node.blobs[: node.opened] if blob.left and not blob.is_idle]


class _Flows:
    """All transfers that send bytes now. The last sender is the origin."""

    def __init__(self, senders: Sequence[float], receivers: Sequence[float]) -> None:
        """The rates of all cards, in bytes a second."""
        self._send, self._receive = np.array(senders), np.array(receivers)
        size = len(senders) * _SLOTS + _ORIGIN_CONNECTIONS
        self._sender = np.zeros(size, dtype=np.int64)
        self._receiver = np.zeros(size, dtype=np.int64)
        self._cap = np.zeros(size)
        self._left = np.zeros(size)
        self._transfers: list[_Transfer | None] = [None] * size
        self._free = list(range(size))[::-1]
        self._used = np.zeros(size, dtype=bool)

    def add(self, sender: int, receiver: int, cap: float, transfer: _Transfer) -> int:
        place = self._free.pop()
        self._sender[place], self._receiver[place], self._cap[place] = sender, receiver, cap
        self._left[place], self._used[place], self._transfers[place] = PIECE_BYTES, True, transfer
        return place

    def remove(self, place: int) -> None:
        self._used[place], self._transfers[place] = False, None
        self._free.append(place)

    def advance(self, seconds: float) -> list[_Transfer]:
        """Send for so long; return the transfers that ended."""
        places = np.flatnonzero(self._used)
        if not len(places):
            return []
        left = self._left[places] - seconds * self._rates(places)
        self._left[places] = left
        return [each for place in places[left <= 0] if (each := self._transfers[place]) is not None]

    def _rates(self, places: np.ndarray) -> np.ndarray:
        """Share every card among its transfers, each as fast as both ends allow: no card sends or receives more than it
        can."""
        sender, receiver, cap = self._sender[places], self._receiver[places], self._cap[places]
        ends = ((self._send, sender), (self._receive, receiver))
        shares = [(card / np.maximum(np.bincount(end, minlength=len(card)), 1))[end] for card, end in ends]
        more = np.minimum(*shares)
        rates: np.ndarray = np.minimum(more, cap)
        for _ in range(_SHARINGS - 1):
            grows = (more > _LEAST_MORE) & (rates < cap)
            if not grows.any():
                break
            more = np.full(len(places), np.inf)
            for card, end in ends:
                rest = card - np.bincount(end, rates, len(card))
                share = rest / np.maximum(np.bincount(end[grows], minlength=len(card)), 1)
                more = np.minimum(more, share[end])
            rates = np.minimum(rates + np.where(grows, np.maximum(more, 0.0), 0.0), cap)
        return rates


# --- the tracker's processor time ----------------------------------------------------------------------------------


def measure_tracker(nodes: int, pieces: int, seconds: int) -> float:
    """Return the processor seconds a second that `nodes` announces a second cost one tracker: their bodies read,
    answered and written, while a version of so many pieces spreads evenly in 50 s."""
    rng = random.Random(7)
    tracker = Tracker(pieces, "1", 0.0, rng)
    swarms = [Swarm("0" * 64, pieces, f"zone-{n % 4}", 0, 0.0, random.Random(n)) for n in range(nodes)]
    spent = 0.0
    each = pieces // 50
    order = list(range(pieces))
    rng.shuffle(order)
    for second in range(seconds):
        new = order[second * each : (second + 1) * each]
        for number, swarm in enumerate(swarms):
            now = second + number / nodes
            for piece in rng.sample(new, len(new) * 9 // 10):
                swarm.have |= 1 << piece
            if second and number % (nodes // 100) == 0:
                swarm.vouch(new[number * len(new) // nodes], hashlib.sha256(b"%d" % number).hexdigest())
            body = encode_announce(swarm.make_announce((1 << pieces) - 1, now))
            began = time.process_time()
            address = f"10.0.{number >> 8}.{number & 255}:9402"
            reply = encode_reply(tracker.announce(address, decode_announce(body), now))
            spent += time.process_time() - began
            swarm.take_reply(decode_reply(reply, pieces), now)
    return spent / seconds


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table: a fleet, and the most that it may take, as multiples of the bound and of the version."""

    name: str
    fleet: Fleet
    last: float
    copies: float
    crossed: float = 0.0


def list_cases(nodes: int, size: int, card: float, origin: float, seed: int) -> list[Case]:
    """Return the cases of the table for a fleet of so many nodes."""
    plain = Fleet(nodes, size, card, origin, seed=seed)
    return [
        Case("all well", plain, 1.10, 1.02),
        Case("5 % die, 5 % at a tenth of the speed", replace(plain, dying=0.05, slow=0.05), 1.25, 1.02),
        Case("four zones", replace(plain, zones=4), 1.10, 1.02, 3.2),
        Case(
            "four zones, 5 % die, 5 % at a tenth of the speed",
            replace(plain, zones=4, dying=0.05, slow=0.05),
            1.25,
            1.02,
            3.2,
        ),
    ]


def main(arguments: Sequence[str]) -> int:
    """Simulate the cases and measure the tracker; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet", description="Simulate a fleet that fetches one version from one origin."
    )
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--size", type=parse_size, default=140 * 10**9, help="of the version, as 140GB")
    parser.add_argument("--card", type=float, default=25.0, help="Gb/s of each node's network card")
    parser.add_argument("--origin", type=float, default=40.0, help="Gb/s of the origin")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random")
    parser.add_argument("--case", type=int, action="append", help="the number of a case; default: all")
    parser.add_argument("--tracker", action="store_true", help="measure the tracker's processor time only")
    given = parser.parse_args(arguments)
    missed = []
    if not given.tracker:
        cases = list_cases(given.nodes, given.size, given.card * _GIGABIT, given.origin * _GIGABIT, given.seed)
        print(_HEADER)
        for number, case in enumerate(cases):
            if given.case is None or number in given.case:
                missed += _simulate(case)
    if given.tracker or given.case is None:
        share = measure_tracker(1000, 4172, 20)
        print(f"\ntracker: 1,000 announces a second take {share:.1%} of a core")
        missed += [target for target in (Target("tracker, of a core", share, 0.30, False, ""),) if share > target.bound]
    for target in missed:
        print(target)
    return 1 if missed else 0


_HEADER = """| fleet | nodes | seed | bound, s | last / bound | median / bound | copies from the origin | across zones |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def _simulate(case: Case) -> list[Target]:
    """Simulate a case, print its row, and return the targets that it missed."""
    fleet, found = case.fleet, Simulation(case.fleet).run()
    last, median = found.last_s / fleet.bound_s, found.p50_s / fleet.bound_s
    print(
        f"| {case.name} | {fleet.nodes} | {fleet.seed} | {fleet.bound_s:.1f} | {last:.3f} | {median:.3f} "
        f"| {found.copies:.3f} | {found.crossed:.2f} |",
        flush=True,
    )
    targets = [
        Target(f"{case.name}, last / bound", last, case.last, False, ""),
        Target(f"{case.name}, copies from the origin", found.copies, case.copies, False, ""),
        Target(f"{case.name}, copies across zones", found.crossed, case.crossed, False, ""),
    ]
    return [target for target in targets if not target.met]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
