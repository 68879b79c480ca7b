"""Carry out the plan: start, cancel and evict until what this node holds is what it wants.

Law: one task a version. Decisions are the planner's; this module keeps what it has to remember (pulls, failures, what
is under way) and applies each step. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.core import planner
from cached.core.catalog import EMPTY_CATALOG, Catalog, CatalogVersion
from cached.core.demand import Demand, PodWant, Priority, Want, keeps, unknown_model
from cached.core.demand_index import DemandIndex
from cached.core.eviction import Holding, by_age, over_watermark
from cached.core.planner import (
    Evict,
    GiveWay,
    Held,
    LetPass,
    Situation,
    Step,
    Versions,
    plan_space,
    plan_versions,
    protected,
)
from cached.core.pulls import Pull, Pulls
from cached.core.settled import Settled
from cached.core.space import Ledger, NoInodes, NoSpace
from cached.core.waits import Waits, used
from cached.daemon.metrics import Metrics
from cached.daemon.outcomes import Answers
from cached.fetch.downloads import Flights
from cached.fetch.queue import Delivery, Lacking, Turns
from cached.fetch.version import PinMismatch, Seen, Transfers
from cached.node.cluster import Surroundings
from cached.node.inventory import Holdings, as_holdings, find_holding
from cached.node.log_once import Saying
from cached.node.publisher import Janitor
from cached.node.status_files import Board

_log = logging.getLogger(__name__)

T = TypeVar("T")


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
        self._pulls = Pulls()
        self._active: dict[ModelRef, _Active] = {}
        self._settled = Settled()
        self._waits = Waits()
        self._counted: set[ModelRef] = set()
        self._index = DemandIndex()
        self._demand = self._index.demand
        self._dirty: set[ModelRef] = set()  # versions of which something changed since they were last planned
        self._all_dirty = True
        self._pods_seen: Sequence[PodWant] | None = None
        self._rechecks: set[ModelRef] = set()  # held, and to be resolved again
        self._work = asyncio.Event()
        self._turns = Turns(self._work)
        self._litter = True  # whether anything may lie about that a sweep would find: an earlier life's, to begin with
        self._group: asyncio.TaskGroup | None = None
        self._saying = Saying(_log)
        self._lacking = Lacking(parts.ledger, parts.transfers)
        self._answers = Answers(parts.board, parts.holdings, self._settled, self._pulls)

    # --- what comes in ---------------------------------------------------------------------------------------------

    def use_catalog(self, catalog: Catalog) -> None:
        """This catalog is in force from now on."""
        self._catalog = catalog
        self.plan_all()

    def resume(self, pins: Mapping[ModelRef, Digest | None]) -> None:
        """These were on their way when the daemon last stopped, or went bad: go on as if they had been pulled."""
        for ref, pin in pins.items():
            self._pulls.resume(ref, pin)
        self._work.set()

    def pull(self, ref: ModelRef, pin: Digest | None, *, refresh: bool) -> Pull:
        """Want a version now, with `refresh` as its source has it now, although it is here; an earlier failure of it is
        forgotten. Returns the pull, which gets its own answer."""
        pull = self._pulls.ask(ref, pin, refresh=refresh)
        self._counted.discard(ref)
        if refresh and ref in self._parts.holdings.models:
            self._rechecks.add(ref)
            self._dirty.add(ref)
        if ref in self._active and refresh:
            self._call_off(ref)  # its source was listed before: it starts over, with what is here of it
        elif ref in self._active:
            self._active[ref].delivery.nudge()
        elif self._settled.asked_anew(ref):
            self._answers.over(ref)
        self._refresh()
        self._work.set()
        if self._catalog is None and self._parts.board.get(ref) is None:  # so there is no more to say
            self._parts.board.begin(ref, State.QUEUED, "", pin)
        return pull

    def pulled(self, id_: str) -> Pull | None:
        """The pull of this id; None where it is not known, or not any more."""
        return self._pulls.find(id_)

    def resolvable(self) -> dict[ModelRef, CatalogVersion]:
        """The versions whose sources may change: here as the catalog asks for them, unpinned, not under way."""
        found = ((ref, self.to_resolve(ref)) for ref in self._parts.holdings.models)
        return {ref: entry for ref, entry in found if entry is not None}

    def to_resolve(self, ref: ModelRef) -> CatalogVersion | None:
        """What the catalog says of one of those; None where it is none of them."""
        held, entry = self._parts.holdings, (self._catalog or EMPTY_CATALOG).find(ref)
        if entry is None or entry.digest is not None or ref in self._active or ref not in held.models:
            return None
        return entry if held.fetched[ref].request == entry.request else None

    def seen(self, ref: ModelRef, seen: Seen) -> None:
        """A source was asked what it has now: tell where that is not what is here, and take it where the catalog says
        `follow`."""
        held, entry = self._parts.holdings, self.to_resolve(ref)
        if entry is None or held.models[ref] != seen.held:
            return  # it moved meanwhile
        if not seen.changed:
            held.drifted.pop(ref, None)
        elif ref not in held.drifted or held.drifted[ref] != seen.digest:
            held.drifted[ref] = seen.digest
            now = "not known without a fetch" if seen.digest is None else str(seen.digest)
            _log.warning("%s: its source has other content now: here %s, there %s", ref, seen.held, now)
        if seen.changed and entry.follow:
            self._rechecks.add(ref)
            self._pulls.resume(ref, None)
        self._dirty.add(ref)
        self._work.set()

    async def look_at_leases(self) -> None:
        """See what is in use now. What lost its name, and was in use when that was swept, may not be any more."""
        await self._parts.janitor.look_at_leases()
        self._litter = self._litter or bool(self._parts.holdings.unnamed())

    async def lost_blob(self, sha256: str) -> None:
        """A blob's bytes went bad: take it out of use, and fetch again what it belonged to."""
        self._litter = True
        self.resume(dict.fromkeys(await self._parts.janitor.quarantine(sha256)))

    async def put_together(self, digest: Digest) -> None:
        """Somebody deleted or replaced files of a snapshot: put it together again, or fetch what is nowhere."""
        self._litter = True
        self.resume(dict.fromkeys(await self._parts.janitor.restore((digest,))))

    async def lost_snapshot(self, digest: Digest) -> None:
        """A snapshot's manifest went bad: take it away, and publish again what it was."""
        self._litter = True
        self.resume(dict.fromkeys(await self._parts.janitor.lose(digest)))

    def wake(self) -> None:
        """Something changed: plan again."""
        self._work.set()

    def plan_all(self) -> None:
        """Plan every version again, whatever is known to have changed."""
        self._all_dirty = True
        self._work.set()

    def try_again(self) -> None:
        """The disk takes again what it is given: nobody waits out a pause."""
        for active in self._active.values():
            active.delivery.nudge()
        self._work.set()

    def try_what_fits(self) -> None:
        """Others may have freed space that somebody waits for."""
        for delivery in self._waiting():
            if self._lacking.fits(delivery):
                delivery.nudge()

    def is_fetching(self) -> bool:
        """Tell whether a version is being fetched, or waits to be tried again."""
        return bool(self._active)

    def knows(self, ref: ModelRef) -> bool:
        """Tell whether the catalog has this version, or the node holds it: what metrics may name."""
        held = ref in self._parts.holdings.models
        return held or (self._catalog is not None and self._catalog.find(ref) is not None)

    def require_known(self, ref: ModelRef) -> None:
        """Raise `Permanent` (`unknown_model`) unless this version is here or in the catalog; `Transient`
        (`no_catalog`) where it is not here and there is no catalog yet."""
        if self.knows(ref):
            return
        if self._catalog is None:
            raise Transient(
                "no_catalog", f"{ref} is not on this node, and the catalog is not read yet", "ask again in a moment"
            )
        raise unknown_model(self._catalog, ref)

    def is_kept(self, ref: ModelRef) -> bool:
        """Tell whether the catalog keeps this version from eviction."""
        return self._catalog is not None and keeps(self._catalog, ref, self._parts.surroundings.labels)

    def evictable(self) -> list[Holding]:
        """What nobody wants, uses or keeps, least recently used first."""
        self._refresh()
        holdings = [h for h in self.holdings() if h.evictable and not self.wanted(h.ref)]
        return by_age(holdings)

    async def evict(self, ref: ModelRef, digest: Digest, reason: str) -> int | None:
        """Evict one version unless it is in use; returns the bytes given back, None where it stays."""
        stays = partial(self._stays, ref, digest, reason)
        freed = await self._parts.janitor.evict(ref, digest, stays)
        self._dirty.add(ref)
        if freed is not None:
            self._parts.metrics.evicted(reason)
            self._counted.discard(ref)
            self._pulls.pins.pop(ref, None)
            self._litter = True
            self._space_was_freed()
        return freed

    async def sweep(self) -> int:
        """Delete what nothing refers to; returns the bytes given back.

        Nothing while a version that is wanted has not yet said what it goes on from, unless space is lacking: after a
        restart its partial blobs, and what it had committed, look like litter.
        """
        if self._unlisted() and not self._waiting():
            return 0
        self._litter = False
        await self._parts.janitor.drop_unnamed()
        freed = await self._parts.janitor.sweep()
        if freed:
            self._space_was_freed()
        return freed

    # --- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plan and carry out until cancelled; then every fetch is called off, keeping what is durable."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._all_dirty = True  # what could not be started before
            try:
                while True:
                    await self._work.wait()
                    self._work.clear()
                    try:
                        await self._reconcile()
                        self._saying.fine("planning")
                    except HoldfastError as error:  # the disk refuses: the next look at the leases plans again
                        self._saying.trouble("planning", str(error))
            finally:
                self._group = None

    async def _reconcile(self) -> None:
        self._refresh()
        if self._litter and self._is_tight():
            await self.sweep()  # what nobody can use goes before what somebody might
        await self._make_room()

    async def _make_room(self) -> None:
        steps = self._plan_space()
        if any(isinstance(step, Evict) for step in steps):
            await self.look_at_leases()
            self._refresh()
            steps = self._plan_space()
        for step in steps:
            if not isinstance(step, Evict):
                self._apply(step)
        hopeless = {step.ref for step in steps if isinstance(step, LetPass)}
        for delivery in self._waiting():
            delivery.passed = delivery.want.ref in hopeless
        self._turns.admit()
        for step in steps:  # last, because these take their time, and meanwhile the situation changes
            if isinstance(step, Evict) and not self._stays(step.ref, step.digest, step.reason):
                await self.evict(step.ref, step.digest, step.reason)

    def _unlisted(self) -> bool:
        """Tell whether what lies about may belong to a version whose files are not known yet, but may soon be."""
        claims = self._parts.janitor.claims
        return self._catalog is None or any(
            not claims.has_claimed(ref) and not active.delivery.in_trouble for ref, active in self._active.items()
        )

    def _is_tight(self) -> bool:
        return bool(self._waiting()) or over_watermark(self._parts.ledger.use(), self._high, self._low) > 0

    def _refresh(self) -> None:
        """Know what is wanted now, and take the steps of the versions for which something changed."""
        if self._catalog is None:
            return
        self._dirty.update(self._settled.expire())
        self._pulls.expire()
        self._look_at_pods()
        self._update_demand(self._catalog)
        if self._all_dirty:
            self._all_dirty = False
            self._dirty.update(self._demand.wants, self._demand.refused, self._active, self._settled.outcomes)
            self._dirty.update(self._parts.holdings.models)
        dirty, self._dirty = self._dirty, set()
        self._rechecks -= {
            ref for ref in dirty if ref not in self._demand.wants or ref not in self._parts.holdings.models
        }
        verdicts = {key: error for ref in dirty for key, error in self._index.verdicts(ref).items()}
        self._pulls.refused(verdicts)
        self._answers.compare(dirty, self._catalog)
        self._answers.pins(dirty, self._index.pods, verdicts)
        self._count_new(dirty)
        for step in plan_versions(self._versions(dirty)):
            self._apply(step)
        held = self._parts.holdings.models
        met = {ref: held[ref] for ref in dirty if self._pulls.has(ref) and self._met(ref)}
        self._pulls.met(met)
        self._update_demand(self._catalog)  # less the pulls that have their answer
        self._answers.here(dirty, self._index.pods, self._catalog)

    def _look_at_pods(self) -> None:
        """A pod uses what it wants; a new one has an earlier failure tried again."""
        pods, held = self._parts.surroundings.pods(), self._parts.holdings
        for seconds in self._waits.over(held.models):
            self._parts.metrics.gate_waited(seconds)
        if pods is self._pods_seen and not self._all_dirty:
            return
        self._pods_seen = pods
        for ref in self._waits.look(pods, held.models):
            if ref not in self._active and self._settled.asked_anew(ref):
                self._dirty.add(ref)
        for ref in used(pods, held.models, self._catalog):
            held.used(ref)

    def _update_demand(self, catalog: Catalog) -> None:
        around, settled = self._parts.surroundings, self._settled
        changes = self._pulls.take_changes(), settled.pins, settled.take_changed_pins()
        self._dirty.update(self._index.update(catalog, around.labels or {}, around.pods(), *changes))

    def _versions(self, refs: Collection[ModelRef]) -> Versions:
        wants, refused = self._demand.wants, self._demand.refused
        held, settled = self._parts.holdings, self._settled.outcomes
        return Versions(
            demand=Demand(_among(refs, wants), _among(refs, refused)),
            held={
                ref: Held(held.models[ref], held.fetched[ref].request, ref in self._rechecks)
                for ref in refs
                if ref in held.models
            },
            active={ref: self._active[ref].delivery.want for ref in refs if ref in self._active},
            settled=_among(refs, settled),
        )

    def _plan_space(self) -> tuple[Step, ...]:
        if self._catalog is None or not self._is_tight():
            return ()
        return tuple(
            plan_space(
                Situation(
                    demand=self._demand,
                    holdings=self.holdings(),
                    active={ref: active.delivery.want for ref, active in self._active.items()},
                    settled=self._settled.outcomes,
                    space=self._parts.ledger.use(),
                    lacking=self._lacking.shortages(self._turns.lacking),
                    stakes=self._lacking.stakes(self._deliveries()),
                    high_watermark=self._high,
                    low_watermark=self._low,
                )
            )
        )

    def _waiting(self) -> list[Delivery]:
        """Those that wait for space, the most urgent first."""
        return self._lacking.among(self._turns.lacking)

    def _deliveries(self) -> list[Delivery]:
        return [active.delivery for active in self._active.values()]

    def _apply(self, step: Step) -> None:
        match step:
            case planner.Start(want):
                self._start(want)
            case planner.Cancel(ref):
                self._call_off(ref)
            case GiveWay(ref):
                if not self._active[ref].delivery.called_off:
                    _log.info("%s: gives way to one that is more urgent", ref)
                self._active[ref].delivery.gives_way = True
                self._call_off(ref)
            case LetPass():
                return  # those who ask for a turn are told in _reconcile
            case planner.Reprioritize(want):
                self._active[want.ref].delivery.want = want
                self._turns.reprioritized(self._active[want.ref].delivery)
                self._parts.flights.reprioritize(want.ref, want.priority)
            case planner.Refuse(ref, error):
                self._settled.refused(ref, error)
                if ref not in self._active:
                    self._answers.refused(ref, error)
            case planner.Forget(ref):
                self._settled.forget(ref)
                if ref not in self._active:
                    self._answers.over(ref)
            case Evict():
                raise AssertionError("evictions are awaited, in _reconcile")

    # --- one version -----------------------------------------------------------------------------------------------

    def _start(self, want: Want) -> None:
        if want.ref in self._active or self._group is None:
            return  # its last flight is still coming down; its end plans again
        self._settled.begun(want.ref)
        self._pulls.begun(want.ref)
        held = self._parts.holdings.models.get(want.ref)
        if held is not None:
            _log.info(
                "%s: what is here is not what is asked for now: resolving again; it stays until then: %s",
                want.ref,
                held,
            )
        self._parts.board.begin(want.ref, State.QUEUED, "", want.pin)
        delivery = Delivery(want, self._parts.board, self._parts.transfers, self._turns)
        task = self._group.create_task(self._deliver(delivery), name=f"fetch {want.ref}")
        self._active[want.ref] = _Active(delivery, task)
        task.add_done_callback(partial(self._ended, delivery))  # also where it is called off before it began to run

    def _call_off(self, ref: ModelRef) -> None:
        active = self._active[ref]
        if not active.delivery.called_off:
            active.delivery.called_off = True
            active.task.cancel()

    async def _deliver(self, delivery: Delivery) -> None:
        ref = delivery.want.ref
        error = await delivery.run()
        rechecked = ref in self._rechecks
        self._rechecks.discard(ref)
        if error is None:
            self._settled.published(ref, self._parts.holdings.models.get(ref))
            return
        _log.error("%s: %s", ref, error)
        want = delivery.want
        if rechecked and self._met(ref):  # what is here is what is asked for: that its source has other content, or
            self._pulls.not_refreshed(ref, error)  # none, is for those who asked it again
            self._settled.forget(ref)
            self._answers.over(ref)
        elif isinstance(error, PinMismatch) and want.pin is not None and not want.pin_promised:
            self._settled.pin_failed(ref, want.pin, error)
            self._answers.over(ref)
        else:
            self._settled.failed(want)
            self._fail(ref, error)

    def _ended(self, delivery: Delivery, _task: asyncio.Task[None]) -> None:
        ref = delivery.want.ref
        del self._active[ref]
        self._dirty.add(ref)
        self._parts.transfers.forget(ref)
        self._litter = True
        for other in self._waiting():  # what it had reserved and did not use is free, what it brought is here
            other.nudge()
        if not delivery.gives_way:
            self._lacking.forget(ref)
        if delivery.called_off:
            self._answers.over(ref)
        self._work.set()

    def _space_was_freed(self) -> None:
        """Whoever has what it lacks by now tries again; so does whom the disk refused, which names no size."""
        for delivery in self._waiting():
            if not isinstance(delivery.short, NoSpace | NoInodes) or self._lacking.fits(delivery):
                delivery.nudge()

    def _fail(self, ref: ModelRef, error: HoldfastError) -> None:
        self._answers.failed(ref, error, under_way=ref in self._active)

    # --- what is here ----------------------------------------------------------------------------------------------

    def holdings(self) -> list[Holding]:
        """What this node holds, as the planner sees it."""
        return as_holdings(self._parts.holdings, self._parts.surroundings, self._catalog)

    def _stays(self, ref: ModelRef, digest: Digest, reason: str) -> bool:
        """Tell whether a version need not or must not go any more, now that its turn comes."""
        self._refresh()
        lacking = self._waiting()
        if reason == "space" and not lacking:
            return True
        if reason == "watermark" and over_watermark(self._parts.ledger.use(), self._low, self._low) == 0:
            return True
        for_pod = reason == "space" and lacking[0].want.priority is Priority.WAITING
        found = find_holding(self._parts.holdings, ref, self._parts.surroundings, self._catalog)
        if found is None or found.digest != digest:
            return True
        (holding,) = protected([found], self._demand, {each.want.ref for each in lacking})
        return not (holding.evictable or (for_pod and holding.yields_to_pods))

    def wanted(self, ref: ModelRef) -> bool:
        """Tell whether anybody asks for `ref`."""
        return ref in self._demand.refused or ref in self._demand.wants

    def _met(self, ref: ModelRef) -> bool:
        held, want = self._parts.holdings, self._demand.wants.get(ref)
        if ref in self._rechecks:
            return False
        return ref in held.models and want is not None and want.is_met_by(held.models[ref], held.fetched[ref].request)

    def _count_new(self, refs: Iterable[ModelRef]) -> None:
        """Every new want counts once in `holdfast_requests_total`."""
        for ref in refs:
            if ref not in self._demand.wants:
                self._counted.discard(ref)
            elif ref not in self._counted:
                self._counted.add(ref)
                result = "hit" if self._met(ref) else "joined" if ref in self._active else "miss"
                self._parts.metrics.requested(result)


def _among(refs: Iterable[ModelRef], all_: Mapping[ModelRef, T]) -> dict[ModelRef, T]:
    return {ref: all_[ref] for ref in refs if ref in all_}
