"""One version's delivery: try after try, until it is here, can never be, or nobody wants it any more.

Law: keeps what it has to remember of its own tries; what is wanted is the scheduler's business, how a try goes the
transfer's. Whatever a try meets ends up in this version's status: no other version notices.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.program import limits
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.core.demand import Priority, Want
from cached.core.space import Ledger, NoInodes, NoSpace, Shortage, Stake
from cached.fetch.version import Transfers
from cached.node.status_files import Board
from cached.store.disk.durable import disk_error
from cached.transport.response import MAX_BAD_RESPONSES, hopeless

_log = logging.getLogger(__name__)

_BACKOFF_S, _BACKOFF_CAP_S = 1.0, 60.0
_SHORT_S = 300.0
_LOOKS = 8  # deliveries in trouble that are looked at again in each step
_AT_ONCE = {Priority.WAITING: 16, Priority.PULL: 16, Priority.PREFETCH: 4}  # versions, so that the first ones finish


class Delivery:
    """The tries at one version. `want` may be replaced by one for the same fetch at another priority."""

    def __init__(self, want: Want, board: Board, transfers: Transfers, turns: Turns) -> None:
        self.want = want
        self.called_off = False
        self.gives_way = False  # called off, to start over when there is room
        self.short: Transient | None = None  # what the last try had no space for
        self.passed = False  # whether no room can be made for it now: others go first
        self.order = turns.next_order()
        self._board = board
        self._transfers = transfers
        self._turns = turns
        self._nudged = asyncio.Event()

    @property
    def urgency(self) -> tuple[Priority, int]:
        """Who comes before whom: the lower one."""
        return self.want.priority, self.order

    @property
    def in_trouble(self) -> bool:
        """Tell whether its source keeps it waiting just now."""
        status = self._board.get(self.want.ref)
        return status is not None and status.error is not None

    def nudge(self) -> None:
        """Try again now instead of waiting out the pause: space was freed, or somebody asks."""
        self.short = None  # until that try tells: nothing more is evicted for the last one
        self.passed = False
        self._nudged.set()

    async def run(self) -> HoldfastError | None:
        """Returns None when the version is here, else why it can never be."""
        try:
            return await self._run()
        finally:
            self._turns.has_space(self)

    async def _run(self) -> HoldfastError | None:
        failures = bad_responses = 0
        while True:
            outcome = await self._try()
            if not isinstance(outcome, Transient):
                return outcome
            failures += 1
            bad_responses = bad_responses + 1 if outcome.code == "bad_response" else 0
            if bad_responses >= MAX_BAD_RESPONSES:
                return hopeless(outcome)
            _log.warning("%s: %s", self.want.ref, outcome)
            self.short = outcome if outcome.code == "no_space" else None
            self._board.trouble(self.want.ref, State.QUEUED, outcome)
            if self.short:
                self._turns.lacks_space(self)
            else:
                self._turns.has_space(self)
            await self._pause(outcome, failures)
            self.short = None  # what it needs now, the next try finds out: nothing is evicted for it twice

    async def _try(self) -> HoldfastError | None:
        ref = self.want.ref
        try:
            async with self._turns.turn(self):
                published = await self._transfers.fetch(
                    self.want, lambda: self.want.priority, lambda: self._turns.has_space(self)
                )
        except HoldfastError as error:
            return error
        except OSError as error:
            trouble = disk_error(error, f"fetching {ref}")
            trouble.__cause__ = error
            return trouble
        except Exception as error:  # noqa: BLE001 - a bug that one version brings out must not end the others
            short = limits.shortage(error, f"fetching {ref}")
            if short is not None:
                short.__cause__ = error
                return short
            _log.exception("%s", ref)
            return Permanent("internal", f"{ref}: {error!r}", "report this with the daemon's log")
        size = published.manifest.total_bytes
        self._board.ready(ref, published.digest, size, self.want.pin is not None, published.source)
        _log.info("%s: ready, %d bytes, %s", ref, size, published.digest)
        return None

    async def _pause(self, error: Transient, failures: int) -> None:
        """Wait before another try: with backoff, and at least as long as the source asks.

        Who lacks space is told when there is, and looks by himself but rarely: each try at a stream receives it anew.
        """
        delay_s = _SHORT_S
        if not isinstance(error, NoSpace | NoInodes):
            delay_s = min(_BACKOFF_CAP_S, _BACKOFF_S * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._nudged.clear()
        try:
            async with asyncio.timeout(max(delay_s, error.retry_after_s or 0.0)):
                await self._nudged.wait()
        except TimeoutError:
            return


class Turns:
    """Who may try now: at each priority so many at once, whoever came first. `short` is set where one needs space.

    While room is made for one, none that comes after it may begin: it would take that space, and have it made again.
    Each step looks at those that run and at the heads of queues, however many wait.
    """

    def __init__(self, short: asyncio.Event) -> None:
        self._short = short
        self._queues: dict[Priority, list[tuple[int, Delivery]]] = {priority: [] for priority in Priority}  # heaps
        self._waiting: dict[Delivery, tuple[Priority, asyncio.Event]] = {}  # entries of the heaps that differ are void
        self._running: set[Delivery] = set()  # as far as known, none of them is in trouble
        self._troubled: deque[Delivery] = deque()  # running, and in trouble when last looked at
        self.lacking: set[Delivery] = set()  # those that wait for space, and those that try again for it
        self._orders = itertools.count()

    def next_order(self) -> int:
        """A number for who came when."""
        return next(self._orders)

    def lacks_space(self, delivery: Delivery) -> None:
        """A delivery waits for space: the next plan makes room."""
        self.lacking.add(delivery)
        self._short.set()

    def has_space(self, delivery: Delivery) -> None:
        """A delivery has what it lacked, or waits for something else, or is over."""
        if delivery in self.lacking:
            self.lacking.discard(delivery)
            self.admit()

    def reprioritized(self, delivery: Delivery) -> None:
        """A delivery's want has another priority."""
        if delivery in self._waiting:
            self._enqueue(delivery, self._waiting[delivery][1])
        self.admit()

    @asynccontextmanager
    async def turn(self, delivery: Delivery) -> AsyncIterator[None]:
        """Wait for a turn at the delivery's priority, as it is or becomes, and keep it for the `with` block."""
        go = asyncio.Event()
        self._enqueue(delivery, go)
        self.admit()
        try:
            await go.wait()
            yield
        finally:
            self._waiting.pop(delivery, None)
            self._running.discard(delivery)
            if delivery in self._troubled:
                self._troubled.remove(delivery)
            self.admit()

    def admit(self) -> None:
        """Let those begin for whom there is room; call it now and then: whoever is in trouble takes no room, or one
        dead origin would keep versions of all others waiting."""
        self._look_for_trouble()
        first = min((each.urgency for each in self.lacking if not each.passed), default=None)
        running = Counter(delivery.want.priority for delivery in self._running)
        for priority, at_once in _AT_ONCE.items():
            while running[priority] < at_once:
                delivery = self._head(priority)
                if delivery is None or (first is not None and delivery.urgency > first):
                    break
                heapq.heappop(self._queues[priority])
                self._running.add(delivery)
                running[priority] += 1
                self._waiting.pop(delivery)[1].set()

    def _look_for_trouble(self) -> None:
        """Tell who is in trouble: of those that run all, of those that were a few each time."""
        for _ in range(min(_LOOKS, len(self._troubled))):
            delivery = self._troubled.popleft()
            if delivery.in_trouble:
                self._troubled.append(delivery)
            else:
                self._running.add(delivery)
        for delivery in [each for each in self._running if each.in_trouble]:
            self._running.discard(delivery)
            self._troubled.append(delivery)

    def _enqueue(self, delivery: Delivery, go: asyncio.Event) -> None:
        priority = delivery.want.priority
        self._waiting[delivery] = priority, go
        heapq.heappush(self._queues[priority], (delivery.order, delivery))

    def _head(self, priority: Priority) -> Delivery | None:
        queue = self._queues[priority]
        while queue:
            delivery = queue[0][1]
            waits = self._waiting.get(delivery)
            if waits is not None and waits[0] is priority:
                return delivery
            heapq.heappop(queue)
        return None


class Lacking:
    """The deliveries that wait for space."""

    def __init__(self, ledger: Ledger, transfers: Transfers) -> None:
        self._ledger = ledger
        self._transfers = transfers
        self._known: dict[ModelRef, int] = {}  # bytes that a version takes in all, at least

    def among(self, deliveries: Collection[Delivery]) -> list[Delivery]:
        """Those that wait for space, the most urgent first; of equals, who came first."""
        return sorted((each for each in deliveries if each.short), key=lambda each: each.urgency)

    def shortages(self, deliveries: Collection[Delivery]) -> dict[ModelRef, Shortage]:
        """What each of those needs, in their order."""
        return {
            each.want.ref: self._shortage(each.want.ref, each.short) for each in self.among(deliveries) if each.short
        }

    def stakes(self, deliveries: Collection[Delivery]) -> dict[ModelRef, Stake]:
        """What the space holds for each delivery."""
        return {each.want.ref: self._transfers.stake(each.want.ref) for each in deliveries}

    def fits(self, delivery: Delivery) -> bool:
        """Tell whether what it lacks is free by now; False where nobody knows."""
        try:
            return delivery.short is not None and self._is_free(self._shortage(delivery.want.ref, delivery.short))
        except Transient:
            return False

    def forget(self, ref: ModelRef) -> None:
        """Nobody wants `ref` any more, or it is here."""
        self._known.pop(ref, None)

    def _is_free(self, needed: Shortage) -> bool:
        use = self._ledger.use()
        return use.free >= needed.bytes and use.files_free >= needed.files

    def _shortage(self, ref: ModelRef, short: Transient) -> Shortage:
        told = self._ledger.shortage(short)
        if not isinstance(short, NoSpace):
            return told
        stake = self._transfers.stake(ref)
        here = stake.total()
        known = self._known[ref] = max(self._known.get(ref, 0), here + told.bytes)
        return replace(told, bytes=known - here)
