"""Carry out the plan: start, cancel and evict until what this node holds is what it wants.

Law: one task a version. Decisions are the planner's; this module keeps what it has to remember (pulls, failures, what
is under way) and applies each step. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from cached.board import Board
from cached.catalog import Catalog
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.delivery import Delivery, Turns
from cached.demand import Demand, PullWant, Want, compute_demand, keeps
from cached.eviction import Holding, over_watermark
from cached.flights import Flights
from cached.holdings import Holdings
from cached.janitor import Janitor
from cached.ledger import Ledger
from cached.metrics import Metrics
from cached.planner import Cancel, Evict, Forget, Refuse, Reprioritize, Situation, Start, Step, plan
from cached.surroundings import Surroundings
from cached.transfer import Transfers
from cached.waits import Waits, used

_log = logging.getLogger(__name__)

_FAILURE_KEPT_S = 300.0  # what nobody could fetch may have been published, or allowed, meanwhile
_PULL_KEPT_S = 600.0  # how long a pull that cannot be met keeps its answer


@dataclass(slots=True)
class _Pull:
    want: PullWant
    failed_at: float | None = None  # on the monotonic clock


@dataclass(frozen=True, slots=True)
class _Active:
    delivery: Delivery
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the scheduler works with."""

    board: Board
    holdings: Holdings
    ledger: Ledger
    flights: Flights
    transfers: Transfers
    janitor: Janitor
    metrics: Metrics
    surroundings: Surroundings


class Scheduler:
    """Keeps demand and holdings together."""

    def __init__(self, parts: Parts, high_watermark: float, low_watermark: float) -> None:
        self._parts = parts
        self._high, self._low = high_watermark, low_watermark
        self._catalog: Catalog | None = None
        self._pulls: dict[ModelRef, _Pull] = {}
        self._active: dict[ModelRef, _Active] = {}
        self._settled: dict[ModelRef, Want | Permanent] = {}
        self._failed_at: dict[ModelRef, float] = {}  # on the monotonic clock
        self._waits = Waits()
        self._counted: set[ModelRef] = set()
        self._demand = Demand({}, {})
        self._work = asyncio.Event()
        self._turns = Turns(self._work)
        self._litter = True  # whether anything may lie about that a sweep would find: an earlier life's, to begin with
        self._group: asyncio.TaskGroup | None = None

    # --- what comes in ---------------------------------------------------------------------------------------------

    def use_catalog(self, catalog: Catalog) -> None:
        """This catalog is in force from now on."""
        self._catalog = catalog
        self._work.set()

    def resume(self, pins: Mapping[ModelRef, Digest | None]) -> None:
        """These were on their way when the daemon last stopped, or went bad: go on as if they had been pulled."""
        for ref, pin in pins.items():
            self._pulls.setdefault(ref, _Pull(PullWant(ref, pin)))
        self._work.set()

    def pull(self, ref: ModelRef, pin: Digest | None) -> str:
        """Want a version now; an earlier failure of it is forgotten. Returns the state it is in."""
        self._pulls[ref] = _Pull(PullWant(ref, pin))
        self._counted.discard(ref)
        if ref in self._active:
            self._active[ref].delivery.nudge()
        elif self._settled.pop(ref, None) is not None:
            self._tell_plainly(ref)
        self._refresh()
        self._work.set()
        status = self._parts.board.get(ref)
        if status is None:  # there is no catalog yet, so there is no more to say
            self._parts.board.begin(ref, State.QUEUED, "", pin)
            return str(State.QUEUED)
        return str(status.state)

    async def look_at_leases(self) -> None:
        """See what is in use now."""
        await self._parts.janitor.look_at_leases()

    async def lost_blob(self, sha256: str) -> None:
        """A blob's bytes went bad: take it out of use, and fetch again what it belonged to."""
        self._litter = True
        self.resume(dict.fromkeys(await self._parts.janitor.quarantine(sha256)))

    def wake(self) -> None:
        """Something changed: plan again."""
        self._work.set()

    def knows(self, ref: ModelRef) -> bool:
        """Tell whether the catalog has this version, or the node holds it: what metrics may name."""
        held = ref in self._parts.holdings.models
        return held or (self._catalog is not None and self._catalog.find(ref) is not None)

    def evictable(self) -> list[Holding]:
        """What nobody wants, uses or keeps, least recently used first."""
        self._refresh()
        holdings = [h for h in self.holdings() if h.evictable and not self.wanted(h.ref)]
        return sorted(holdings, key=lambda h: (h.last_used, h.ref))

    async def evict(self, ref: ModelRef, digest: Digest, reason: str) -> int | None:
        """Evict one version unless it is in use; returns the bytes given back, None where it stays."""
        stays = partial(self._stays, ref, digest)
        freed = await self._parts.janitor.evict(ref, digest, self._parts.transfers.needed_blobs, stays)
        if freed is not None:
            self._parts.metrics.evicted(reason)
            self._counted.discard(ref)
            self._litter = True
            self._space_was_freed()
        return freed

    async def sweep(self) -> int:
        """Delete what nothing refers to; returns the bytes given back."""
        self._litter = False
        if not self._active:
            await self._parts.janitor.drop_unnamed()
        transfers = self._parts.transfers
        freed = await self._parts.janitor.sweep(transfers.needed_blobs, transfers.partial_blobs)
        if freed:
            self._space_was_freed()
        return freed

    # --- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plan and carry out until cancelled; then every fetch is called off, keeping what is durable."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                while True:
                    await self._work.wait()
                    self._work.clear()
                    try:
                        await self._reconcile()
                    except HoldfastError as error:  # the disk refuses: the next look at the leases plans again
                        _log.error("%s", error)
            finally:
                self._group = None

    async def _reconcile(self) -> None:
        self._refresh()
        if self._litter and self._is_tight():
            await self.sweep()  # what nobody can use goes before what somebody might
        steps = self._plan()
        if any(isinstance(step, Evict) for step in steps):
            await self.look_at_leases()
            steps = self._plan()
        for step in steps:
            if not isinstance(step, Evict):
                self._apply(step)
        self._turns.admit()
        for step in steps:  # last, because these take their time, and meanwhile the situation changes
            if isinstance(step, Evict) and not self.wanted(step.ref, step.digest):
                await self.evict(step.ref, step.digest, step.reason)

    def _is_tight(self) -> bool:
        use = self._parts.ledger.use()
        return self._needed_bytes() > 0 or over_watermark(use, self._high, self._low) > 0

    def _refresh(self) -> None:
        """What is wanted now, and what can be told about it at once."""
        if self._catalog is None:
            return
        now = time.monotonic()
        for ref in [ref for ref, at in self._failed_at.items() if now - at >= _FAILURE_KEPT_S]:
            del self._failed_at[ref]
            self._settled.pop(ref, None)
        self._pulls = {
            ref: pull
            for ref, pull in self._pulls.items()
            if pull.failed_at is None or now - pull.failed_at < _PULL_KEPT_S
        }
        self._look_at_pods()
        self._demand = self._demanded(self._catalog)
        self._count_new()
        for step in self._plan():
            if isinstance(step, (Refuse, Start)):
                self._apply(step)
        met = [ref for ref in self._pulls if self._met(ref)]
        if met:
            self._tell_pinned(met)
            for ref in met:
                del self._pulls[ref]
            self._demand = self._demanded(self._catalog)
        self._tell_pinned(self._demand.wants)

    def _look_at_pods(self) -> None:
        """A pod uses what it wants; a new one has an earlier failure tried again."""
        pods, held = self._parts.surroundings.pods(), self._parts.holdings
        for seconds in self._waits.over(held.models):
            self._parts.metrics.gate_waited(seconds)
        for ref in self._waits.look(pods, held.models):
            if ref not in self._active:
                self._settled.pop(ref, None)
        for ref in used(pods, held.models, self._catalog):
            held.used(ref)

    def _demanded(self, catalog: Catalog) -> Demand:
        around = self._parts.surroundings
        return compute_demand(catalog, around.pods(), [pull.want for pull in self._pulls.values()], around.labels or {})

    def _plan(self) -> tuple[Step, ...]:
        if self._catalog is None:
            return ()
        return plan(
            Situation(
                demand=self._demand,
                holdings=self.holdings(),
                active={ref: active.delivery.want for ref, active in self._active.items()},
                settled=self._settled,
                space=self._parts.ledger.use(),
                needed_bytes=self._needed_bytes(),
                high_watermark=self._high,
                low_watermark=self._low,
            )
        )

    def _needed_bytes(self) -> int:
        """What the most urgent of those needs that wait for space; of equals, the one that waits longest."""
        waiting = [active.delivery for active in self._active.values() if active.delivery.needed_bytes]
        return min(waiting, key=lambda each: each.want.priority).needed_bytes if waiting else 0

    def _apply(self, step: Step) -> None:
        match step:
            case Start(want):
                self._start(want)
            case Cancel(ref):
                active = self._active[ref]
                if not active.delivery.called_off:
                    active.delivery.called_off = True
                    active.task.cancel()
            case Reprioritize(want):
                self._active[want.ref].delivery.want = want
                self._parts.flights.reprioritize(want.ref, want.priority)
            case Refuse(ref, error):
                self._settled[ref] = error
                self._fail(ref, error)
            case Forget(ref):
                del self._settled[ref]
                if ref not in self._active:
                    self._tell_plainly(ref)
            case Evict():
                raise AssertionError("evictions are awaited, in _reconcile")

    # --- one version -----------------------------------------------------------------------------------------------

    def _start(self, want: Want) -> None:
        if want.ref in self._active or self._group is None:
            return  # its last flight is still coming down; its end plans again
        self._settled.pop(want.ref, None)
        self._failed_at.pop(want.ref, None)
        if want.ref in self._pulls:
            self._pulls[want.ref].failed_at = None
        self._parts.board.begin(want.ref, State.QUEUED, "", want.pin)
        delivery = Delivery(want, self._parts.board, self._parts.transfers, self._turns)
        task = self._group.create_task(self._deliver(delivery), name=f"fetch {want.ref}")
        self._active[want.ref] = _Active(delivery, task)

    async def _deliver(self, delivery: Delivery) -> None:
        ref = delivery.want.ref
        try:
            error = await delivery.run()
            if error is not None:
                _log.error("%s: %s", ref, error)
                self._settled[ref] = delivery.want
                self._failed_at[ref] = time.monotonic()
                self._fail(ref, error)
        finally:
            del self._active[ref]
            self._parts.transfers.forget(ref)
            self._litter = True
            self._space_was_freed()  # what it had reserved and did not use
            if delivery.called_off:
                self._tell_plainly(ref)
            self._work.set()

    def _space_was_freed(self) -> None:
        for active in self._active.values():
            if active.delivery.needed_bytes:
                active.delivery.nudge()

    def _fail(self, ref: ModelRef, error: HoldfastError) -> None:
        board = self._parts.board
        if board.get(ref) is None or ref not in self._active:
            board.begin(ref, State.FAILED, "", None)
        board.trouble(ref, State.FAILED, error)
        if ref in self._pulls:
            self._pulls[ref].failed_at = time.monotonic()

    def _tell_plainly(self, ref: ModelRef) -> None:
        """A version is not under way any more: what holds of it now is a refusal, that it is here, or nothing."""
        settled = self._settled.get(ref)
        if settled is not None:
            if isinstance(settled, Permanent):
                self._fail(ref, settled)
        elif ref in self._parts.holdings.models:
            status = self._parts.board.get(ref)
            if status is None or status.state is not State.READY:
                self._tell_ready(ref, pinned=False)
        else:
            self._parts.board.drop(ref)

    def _tell_pinned(self, refs: Mapping[ModelRef, Want] | list[ModelRef]) -> None:
        """Say of versions that were here before somebody promised their digest that they are pinned now."""
        for ref in refs:
            want, digest = self._demand.wants[ref], self._parts.holdings.models.get(ref)
            status = self._parts.board.get(ref)
            if want.pin is None or want.pin != digest or status is None or status.pinned:
                continue
            if status.state is State.READY:
                self._tell_ready(ref, pinned=True)

    def _tell_ready(self, ref: ModelRef, *, pinned: bool) -> None:
        held = self._parts.holdings
        self._parts.board.ready(ref, held.models[ref], held.size(ref), pinned)

    # --- what is here ----------------------------------------------------------------------------------------------

    def holdings(self) -> list[Holding]:
        """What this node holds, as the planner sees it."""
        held = self._parts.holdings
        around, catalog = self._parts.surroundings, self._catalog
        asked = used(around.pods(), held.models, catalog)
        return [
            Holding(
                ref=ref,
                digest=digest,
                blobs=held.blobs[digest],
                last_used=held.last_used[ref],
                in_use=digest in held.leased or not around.synced,
                wanted=ref in asked,
                keep=ref in held.pins or (catalog is not None and keeps(catalog, ref, around.labels)),
            )
            for ref, digest in held.models.items()
        ]

    def _stays(self, ref: ModelRef, digest: Digest) -> bool:
        """Tell whether somebody came to want or keep a version while its eviction was under way."""
        self._refresh()
        return self.wanted(ref, digest) or any(h.ref == ref and not h.evictable for h in self.holdings())

    def wanted(self, ref: ModelRef, digest: Digest | None = None) -> bool:
        """Tell whether anybody asks for `ref`; given a digest, whether as this one."""
        want = self._demand.wants.get(ref)
        return ref in self._demand.refused or (want is not None and (digest is None or want.pin in (None, digest)))

    def _met(self, ref: ModelRef) -> bool:
        digest = self._parts.holdings.models.get(ref)
        want = self._demand.wants.get(ref)
        return digest is not None and want is not None and want.pin in (None, digest)

    def _count_new(self) -> None:
        """Every new want counts once in `holdfast_requests_total`."""
        for ref in self._demand.wants:
            if ref in self._counted:
                continue
            self._counted.add(ref)
            result = "hit" if self._met(ref) else "joined" if ref in self._active else "miss"
            self._parts.metrics.requested(result)
        self._counted &= self._demand.wants.keys()
