"""Carry out the plan: start, cancel and evict until what this node holds is what it wants.

Law: one task a version. Decisions are the planner's; this module keeps what it has to remember (pulls, failures, what
is under way) and applies each step. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

from cached.board import Board
from cached.catalog import Catalog
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.demand import Demand, Priority, PullWant, Want, compute_demand
from cached.eviction import Holding
from cached.flights import Flights
from cached.holdings import Holdings
from cached.janitor import Janitor
from cached.ledger import Ledger, NoSpace
from cached.metrics import Metrics
from cached.planner import Cancel, Evict, Forget, Refuse, Reprioritize, Situation, Start, Step, plan
from cached.transfer import Transfers

_log = logging.getLogger(__name__)

_PULL_KEPT_S = 600.0  # how long a pull that cannot be met keeps its answer
_BACKOFF_S, _BACKOFF_CAP_S = 1.0, 60.0
_AT_ONCE = {Priority.WAITING: 16, Priority.PULL: 16, Priority.PREFETCH: 4}  # versions, so that the first ones finish


@dataclass(slots=True)
class _Pull:
    want: PullWant
    failed_at: float | None = None  # on the monotonic clock


@dataclass(slots=True)
class _Active:
    want: Want
    task: asyncio.Task[None]
    cancelling: bool = False
    needed_bytes: int = 0


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


class Scheduler:
    """Keeps demand and holdings together."""

    def __init__(self, parts: Parts, high_watermark: float, low_watermark: float) -> None:
        self._parts = parts
        self._high, self._low = high_watermark, low_watermark
        self._catalog: Catalog | None = None
        self._pulls: dict[ModelRef, _Pull] = {}
        self._active: dict[ModelRef, _Active] = {}
        self._settled: dict[ModelRef, Want | Permanent] = {}
        self._counted: set[ModelRef] = set()
        self._demand = Demand({}, {})
        self._work = asyncio.Event()
        self._space = asyncio.Event()
        self._slots = {priority: asyncio.Semaphore(count) for priority, count in _AT_ONCE.items()}
        self._group: asyncio.TaskGroup | None = None

    # --- what comes in ---------------------------------------------------------------------------------------------

    def use_catalog(self, catalog: Catalog) -> None:
        """This catalog is in force from now on."""
        self._catalog = catalog
        self._work.set()

    def resume(self, refs: Iterable[ModelRef]) -> None:
        """These were on their way when the daemon last stopped: go on as if they had been pulled."""
        for ref in refs:
            self._pulls.setdefault(ref, _Pull(PullWant(ref, None)))
        self._work.set()

    def pull(self, ref: ModelRef, pin: Digest | None) -> str:
        """Want a version now; an earlier failure of it is forgotten. Returns the state it is in."""
        settled = self._settled.pop(ref, None)
        if settled is not None and ref not in self._active:
            self._parts.board.drop(ref)
        self._pulls[ref] = _Pull(PullWant(ref, pin))
        self._counted.discard(ref)
        self._refresh()
        self._work.set()
        status = self._parts.board.get(ref)
        return str(status.state) if status is not None else str(State.QUEUED)

    async def look_at_leases(self) -> None:
        """See what is in use now."""
        await self._parts.janitor.look_at_leases()

    async def lost_blob(self, sha256: str) -> None:
        """A blob's bytes went bad: take it out of use, and fetch again what it belonged to."""
        self.resume(await self._parts.janitor.quarantine(sha256))

    def wake(self) -> None:
        """Something changed: plan again."""
        self._work.set()

    def knows(self, ref: ModelRef) -> bool:
        """Tell whether the catalog has this version, or the node holds it: what metrics may name."""
        held = ref in self._parts.holdings.models
        return held or (self._catalog is not None and self._catalog.find(ref) is not None)

    def evictable(self) -> list[Holding]:
        """What nobody wants, uses or keeps, least recently used first."""
        holdings = [h for h in self.holdings() if h.evictable and not self._wanted(h)]
        return sorted(holdings, key=lambda h: (h.last_used, h.ref))

    async def evict(self, ref: ModelRef, digest: Digest, reason: str) -> int | None:
        """Evict one version unless it is in use; returns the bytes given back, None where it stays."""
        freed = await self._parts.janitor.evict(ref, digest, self._parts.transfers.needed_blobs())
        if freed is not None:
            self._parts.metrics.evicted(reason)
            self._counted.discard(ref)
            self._space.set()
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
                    await self._reconcile()
            finally:
                for active in self._active.values():
                    active.task.cancel()

    async def _reconcile(self) -> None:
        self._refresh()
        steps = self._plan()
        if any(isinstance(step, Evict) for step in steps):
            await self.sweep()  # what nobody can use goes before what somebody might
            steps = self._plan()
        for step in steps:
            if isinstance(step, Evict):
                await self.evict(step.ref, step.digest, step.reason)
            else:
                self._apply(step)

    async def sweep(self) -> int:
        """Delete what nothing refers to; returns the bytes given back."""
        if not self._active:
            await self._parts.janitor.drop_unnamed()
        transfers = self._parts.transfers
        freed = await self._parts.janitor.sweep(transfers.needed_blobs(), transfers.partial_blobs())
        if freed:
            self._space.set()
        return freed

    def _refresh(self) -> None:
        """What is wanted now, and what can be told about it at once."""
        if self._catalog is None:
            return
        now = time.monotonic()
        self._pulls = {
            ref: pull
            for ref, pull in self._pulls.items()
            if pull.failed_at is None or now - pull.failed_at < _PULL_KEPT_S
        }
        self._demand = compute_demand(self._catalog, (), [p.want for p in self._pulls.values()], {})
        self._count_new()
        for step in self._plan():
            if isinstance(step, (Refuse, Start)):
                self._apply(step)
        for ref in [ref for ref in self._pulls if self._met(ref)]:
            del self._pulls[ref]

    def _plan(self) -> tuple[Step, ...]:
        if self._catalog is None:
            return ()
        return plan(
            Situation(
                demand=self._demand,
                holdings=self.holdings(),
                active={ref: active.want for ref, active in self._active.items()},
                settled=self._settled,
                space=self._parts.ledger.use(),
                needed_bytes=next((a.needed_bytes for a in self._active.values() if a.needed_bytes), 0),
                high_watermark=self._high,
                low_watermark=self._low,
            )
        )

    def _apply(self, step: Step) -> None:
        match step:
            case Start(want):
                self._start(want)
            case Cancel(ref):
                active = self._active[ref]
                if not active.cancelling:
                    active.cancelling = True
                    active.task.cancel()
            case Reprioritize(want):
                self._active[want.ref].want = want
                self._parts.flights.reprioritize(want.ref, want.priority)
            case Refuse(ref, error):
                self._settled[ref] = error
                self._fail(ref, error)
            case Forget(ref):
                del self._settled[ref]
                if ref not in self._parts.holdings.models and ref not in self._active:
                    self._parts.board.drop(ref)
            case Evict():
                raise AssertionError("evictions are awaited, in _reconcile")

    def _start(self, want: Want) -> None:
        if want.ref in self._active or self._group is None:
            return  # its last flight is still coming down; its end plans again
        self._settled.pop(want.ref, None)
        self._parts.board.begin(want.ref, State.QUEUED, "", want.pin)
        task = self._group.create_task(self._deliver(want.ref), name=f"fetch {want.ref}")
        self._active[want.ref] = _Active(want, task)

    # --- one version -----------------------------------------------------------------------------------------------

    async def _deliver(self, ref: ModelRef) -> None:
        active = self._active[ref]
        failures = 0
        try:
            while True:
                try:
                    await self._fetch_once(ref, active)
                    return
                except Transient as error:
                    _log.warning("%s: %s", ref, error)
                    failures += 1
                    active.needed_bytes = error.needed_bytes if isinstance(error, NoSpace) else 0
                    self._parts.board.trouble(ref, State.QUEUED, error)
                    self._work.set()
                    await self._pause(error, failures)
        except Permanent as error:
            _log.error("%s: %s", ref, error)
            self._settled[ref] = active.want
            self._fail(ref, error)
        finally:
            del self._active[ref]
            self._parts.transfers.forget(ref)
            if active.cancelling and ref not in self._parts.holdings.models:
                self._parts.board.drop(ref)
            self._work.set()

    async def _fetch_once(self, ref: ModelRef, active: _Active) -> None:
        async with self._slots[active.want.priority]:
            published = await self._parts.transfers.fetch(active.want)
        self._parts.holdings.add(ref, published.digest, published.manifest)
        size = published.manifest.total_bytes
        self._parts.board.ready(ref, published.digest, size, active.want.pin is not None)
        _log.info("%s: ready, %d bytes, %s", ref, size, published.digest)

    async def _pause(self, error: Transient, failures: int) -> None:
        """Wait before another try: as long as the source asks, or with backoff, or until space was freed."""
        delay_s = min(_BACKOFF_CAP_S, _BACKOFF_S * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        if error.retry_after_s is not None:
            delay_s = error.retry_after_s
        if isinstance(error, NoSpace):
            self._space.clear()
            try:
                async with asyncio.timeout(delay_s):
                    await self._space.wait()
            except TimeoutError:
                return
        else:
            await asyncio.sleep(delay_s)

    def _fail(self, ref: ModelRef, error: HoldfastError) -> None:
        board = self._parts.board
        if board.get(ref) is None or ref not in self._active:
            board.begin(ref, State.FAILED, "", None)
        board.trouble(ref, State.FAILED, error)
        if ref in self._pulls:
            self._pulls[ref].failed_at = time.monotonic()

    # --- what is here ----------------------------------------------------------------------------------------------

    def holdings(self) -> list[Holding]:
        """What this node holds, as the planner sees it."""
        held = self._parts.holdings
        return [
            Holding(
                ref=ref,
                digest=digest,
                blobs=held.manifests[digest].blob_sizes(),
                last_used=held.last_used[ref],
                in_use=digest in held.leased,
                wanted=False,
                keep=ref in held.pins or self._kept(ref),
            )
            for ref, digest in held.models.items()
        ]

    def _kept(self, ref: ModelRef) -> bool:
        """The catalog's `pin: true` keeps every version of a model, wanted or not."""
        model = self._catalog.models.get(ref.name) if self._catalog is not None else None
        return model is not None and model.pin

    def _wanted(self, holding: Holding) -> bool:
        return holding.ref in self._demand.wants or holding.ref in self._demand.refused

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
