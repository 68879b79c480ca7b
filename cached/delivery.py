"""One version's delivery: try after try, until it is here, can never be, or nobody wants it any more.

Law: keeps what it has to remember of its own tries; what is wanted is the scheduler's business, how a try goes the
transfer's. Whatever a try meets ends up in this version's status: no other version notices.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cached.board import Board
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.status import State
from cached.demand import Priority, Want
from cached.ledger import NoSpace
from cached.store.durable import disk_error
from cached.transfer import Transfers

_log = logging.getLogger(__name__)

_BACKOFF_S, _BACKOFF_CAP_S = 1.0, 60.0
_AT_ONCE = {Priority.WAITING: 16, Priority.PULL: 16, Priority.PREFETCH: 4}  # versions, so that the first ones finish


class Delivery:
    """The tries at one version. `want` may be replaced by one for the same fetch at another priority."""

    def __init__(self, want: Want, board: Board, transfers: Transfers, turns: Turns) -> None:
        self.want = want
        self.called_off = False
        self.needed_bytes = 0  # what the last try could not reserve
        self._board = board
        self._transfers = transfers
        self._turns = turns
        self._nudged = asyncio.Event()

    @property
    def in_trouble(self) -> bool:
        """Tell whether its source keeps it waiting just now."""
        status = self._board.get(self.want.ref)
        return status is not None and status.error is not None

    def nudge(self) -> None:
        """Try again now instead of waiting out the pause: space was freed, or somebody asks."""
        self._nudged.set()

    async def run(self) -> HoldfastError | None:
        """Returns None when the version is here, else why it can never be."""
        failures = 0
        while True:
            outcome = await self._try()
            if not isinstance(outcome, Transient):
                return outcome
            failures += 1
            _log.warning("%s: %s", self.want.ref, outcome)
            self.needed_bytes = outcome.needed_bytes if isinstance(outcome, NoSpace) else 0
            self._board.trouble(self.want.ref, State.QUEUED, outcome)
            if self.needed_bytes:
                self._turns.short_of_space()
            await self._pause(outcome, failures)
            self.needed_bytes = 0  # what it needs now, the next try finds out: nothing is evicted for it twice

    async def _try(self) -> HoldfastError | None:
        ref = self.want.ref
        try:
            async with self._turns.turn(self):
                published = await self._transfers.fetch(self.want, lambda: self.want.priority)
        except HoldfastError as error:
            return error
        except OSError as error:
            trouble = disk_error(error, f"fetching {ref}")
            trouble.__cause__ = error
            return trouble
        except Exception as error:  # noqa: BLE001 - a bug that one version brings out must not end the others
            _log.exception("%s", ref)
            return Permanent("internal", f"{ref}: {error!r}", "report this with the daemon's log")
        size = published.manifest.total_bytes
        self._board.ready(ref, published.digest, size, self.want.pin is not None)
        _log.info("%s: ready, %d bytes, %s", ref, size, published.digest)
        return None

    async def _pause(self, error: Transient, failures: int) -> None:
        """Wait before another try: with backoff, and at least as long as the source asks."""
        delay_s = min(_BACKOFF_CAP_S, _BACKOFF_S * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._nudged.clear()
        try:
            async with asyncio.timeout(max(delay_s, error.retry_after_s or 0.0)):
                await self._nudged.wait()
        except TimeoutError:
            return


class Turns:
    """Who may try now: at each priority so many at once, whoever came first. `short` is set where one needs space."""

    def __init__(self, short: asyncio.Event) -> None:
        self._short = short
        self._waiting: dict[Delivery, asyncio.Event] = {}
        self._running: set[Delivery] = set()

    def short_of_space(self) -> None:
        """A delivery waits for space: the next plan makes room."""
        self._short.set()

    @asynccontextmanager
    async def turn(self, delivery: Delivery) -> AsyncIterator[None]:
        """Wait for a turn at the delivery's priority, as it is or becomes, and keep it for the `with` block."""
        self._waiting[delivery] = go = asyncio.Event()
        self.admit()
        try:
            await go.wait()
            yield
        finally:
            self._waiting.pop(delivery, None)
            self._running.discard(delivery)
            self.admit()

    def admit(self) -> None:
        """Let those begin for whom there is room; call it where a priority changed, and now and then: whoever is in
        trouble takes no room, or one dead origin would keep versions of all others waiting."""
        for priority, at_once in _AT_ONCE.items():
            room = at_once - sum(1 for d in self._running if d.want.priority is priority and not d.in_trouble)
            for delivery in [each for each in self._waiting if each.want.priority is priority][: max(0, room)]:
                self._running.add(delivery)
                self._waiting.pop(delivery).set()
