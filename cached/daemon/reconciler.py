"""Keep what this node holds at what it wants: report events to the versions' records, and carry out the steps.

Law: decides nothing. What becomes of one version is `core.versions`'s, what is done about several the planner's; this
module keeps the tasks, one a try, and looks up what those need to know. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.core.catalog import EMPTY_CATALOG, Catalog, CatalogVersion
from cached.core.demand import Demand, PodWant, Priority, PullWant, Want, is_kept, unknown_model, used
from cached.core.demand_index import DemandIndex
from cached.core.eviction import InventoryEntry, by_age, count_excess
from cached.core.planner import (
    AllowOthers,
    Cancel,
    Evict,
    Forget,
    Preempt,
    Refuse,
    Reprioritize,
    Situation,
    SpaceStep,
    StartFetch,
    Versions,
    VersionStep,
    mark_protected,
    plan_space,
    plan_versions,
)
from cached.core.space import Ledger, NoInodes, NoSpace, Shortage
from cached.core.versions import messages
from cached.core.versions.messages import (
    Arrived,
    Asked,
    Event,
    Evicted,
    Looked,
    NeedFound,
    Resumed,
    SpaceReserved,
    Step,
    Stopped,
    TryFailed,
)
from cached.core.versions.record import Blocked, Held, Pull
from cached.core.versions.table import VersionTable
from cached.daemon.metrics import DaemonMetrics
from cached.daemon.outcomes import VersionStatuses
from cached.fetch.downloads import Downloads
from cached.fetch.version import Published, SourceComparison, VersionFetches
from cached.node.cluster import Cluster
from cached.node.inventory import Inventory, list_entries
from cached.node.log_once import LogOnce
from cached.node.publisher import Publisher
from cached.node.status_files import StatusFiles

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReconcilerParts:
    """What the scheduler works with. `clock`: the event loop's, in seconds."""

    board: StatusFiles
    holdings: Inventory
    ledger: Ledger
    flights: Downloads
    transfers: VersionFetches
    janitor: Publisher
    metrics: DaemonMetrics
    surroundings: Cluster
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Running:
    """Where tasks and timers begin."""

    group: asyncio.TaskGroup
    loop: asyncio.AbstractEventLoop


class Reconciler:
    """Keeps demand and holdings together."""

    def __init__(self, parts: ReconcilerParts, high_watermark: float, low_watermark: float) -> None:
        self._parts = parts
        self._high, self._low = high_watermark, low_watermark
        self._catalog: Catalog | None = None
        self._versions = VersionTable(self._in_trouble)
        self._tries: dict[ModelRef, asyncio.Task[Published | HoldfastError]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._index = DemandIndex()
        self._demand = self._index.demand
        self._dirty: set[ModelRef] = set()  # versions of which something changed since they were last planned
        self._all_dirty = True
        self._pods_seen: Sequence[PodWant] | None = None
        self._work = asyncio.Event()
        self._litter = True  # whether anything may lie about that a sweep would find: an earlier life's, to begin with
        self._running: _Running | None = None
        self._saying = LogOnce(_log)
        self._statuses = VersionStatuses(parts.board, parts.holdings)

    # --- what comes in ---------------------------------------------------------------------------------------------

    def use_catalog(self, catalog: Catalog) -> None:
        """This catalog is in force from now on."""
        self._catalog = catalog
        self.plan_all()

    def resume(self, pins: Mapping[ModelRef, Digest | None]) -> None:
        """These were on their way when the daemon last stopped, or went bad: go on as if they had been pulled."""
        for ref, pin in pins.items():
            self._resume(ref, pin, recheck=False)
        self._work.set()

    def pull(self, ref: ModelRef, pin: Digest | None, *, refresh: bool) -> Pull:
        """Want a version now, with `refresh` as its source has it now, although it is here; an earlier failure of it is
        forgotten. Returns the pull, which gets its own answer."""
        pull = _pull(ref, pin, refresh=refresh)
        self._handle(ref, Asked(pull, ref in self._parts.holdings.models))
        self._refresh()
        self._work.set()
        if self._catalog is None and self._parts.board.get(ref) is None:  # so there is no more to say
            self._parts.board.reset(ref, State.QUEUED, "", pin)
        return pull

    def pulled(self, id_: str) -> Pull | None:
        """The pull of this id; None where it is not known, or not any more."""
        return self._versions.find_pull(id_)

    def resolvable(self) -> dict[ModelRef, CatalogVersion]:
        """The versions whose sources may change: here as the catalog asks for them, unpinned, not under way."""
        found = ((ref, self.to_resolve(ref)) for ref in self._parts.holdings.models)
        return {ref: entry for ref, entry in found if entry is not None}

    def to_resolve(self, ref: ModelRef) -> CatalogVersion | None:
        """What the catalog says of one of those; None where it is none of them."""
        held, entry = self._parts.holdings, (self._catalog or EMPTY_CATALOG).find(ref)
        if entry is None or entry.digest is not None or ref in self._versions.fetching or ref not in held.models:
            return None
        return entry if held.fetched[ref].request == entry.request else None

    def seen(self, ref: ModelRef, seen: SourceComparison) -> None:
        """A source was asked what it has now: tell where that is not what is here, and take it where the catalog says
        `follow`."""
        held, entry = self._parts.holdings, self.to_resolve(ref)
        if entry is None or held.models[ref] != seen.held:
            return  # the name moved since
        if not seen.changed:
            held.drifted.pop(ref, None)
        elif ref not in held.drifted or held.drifted[ref] != seen.digest:
            held.drifted[ref] = seen.digest
            now = "not known without a fetch" if seen.digest is None else str(seen.digest)
            _log.warning("%s: its source has other content now: here %s, there %s", ref, seen.held, now)
        if seen.changed and entry.follow:
            self._resume(ref, None, recheck=True)
        self._dirty.add(ref)
        self._work.set()

    async def look_at_leases(self) -> None:
        """See what is in use now. What lost its name, and was in use when that was swept, may not be any more."""
        await self._parts.janitor.update_leases()
        self._litter = self._litter or bool(self._parts.holdings.unnamed())

    async def lost_blob(self, sha256: str) -> None:
        """A blob's bytes went bad: take it out of use, and fetch again what it belonged to."""
        self._litter = True
        self.resume(dict.fromkeys(await self._parts.janitor.quarantine(sha256)))

    async def put_together(self, digest: Digest) -> None:
        """Restore a snapshot with deleted or replaced files, and fetch the files without a copy."""
        self._litter = True
        self.resume(dict.fromkeys(await self._parts.janitor.restore((digest,))))

    async def lost_snapshot(self, digest: Digest) -> None:
        """A snapshot's manifest went bad: take it away, and publish again what it was."""
        self._litter = True
        self.resume(dict.fromkeys(await self._parts.janitor.withdraw_snapshot(digest)))

    def wake(self) -> None:
        """Something changed: plan again."""
        self._work.set()

    def plan_all(self) -> None:
        """Plan every version again, whatever is known to have changed."""
        self._all_dirty = True
        self._work.set()

    def try_again(self) -> None:
        """End all pauses: the disk accepts writes again."""
        self._carry_out(self._versions.nudge(tuple(self._versions.fetching), self._parts.clock()))
        self._work.set()

    def try_what_fits(self) -> None:
        """Retry the blocked fetches whose space is free now."""
        fitting = [ref for ref, blocked in self._versions.blocked if self._fits(ref, blocked)]
        self._carry_out(self._versions.nudge(fitting, self._parts.clock()))

    def is_fetching(self) -> bool:
        """Tell whether a version is being fetched, or waits to be tried again."""
        return bool(self._versions.fetching)

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
        return self._catalog is not None and is_kept(self._catalog, ref, self._parts.surroundings.labels)

    def evictable(self) -> list[InventoryEntry]:
        """Return the versions without a want, a lease or a pin, least recently used first."""
        self._refresh()
        holdings = [h for h in self.holdings() if h.evictable and not self.wanted(h.ref)]
        return by_age(holdings)

    async def evict(self, ref: ModelRef, digest: Digest, reason: str) -> int | None:
        """Evict one version unless it is in use; returns the bytes given back, None where it stays."""
        stays = partial(self._stays, ref, digest, reason)
        freed = await self._parts.janitor.evict(ref, digest, stays)
        self._dirty.add(ref)
        if freed is not None:
            self._parts.metrics.count_eviction(reason)
            self._handle(ref, Evicted())
            self._litter = True
            self._space_was_freed()
        return freed

    async def sweep(self) -> int:
        """Delete what nothing refers to; returns the bytes given back.

        Nothing while a version that is wanted has not yet said what it goes on from, unless space is lacking: after a
        restart its partial blobs, and what it had committed, look like litter.
        """
        if self._unlisted() and not self._versions.blocked:
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
            self._running = _Running(group, asyncio.get_running_loop())
            self._all_dirty = True  # what could not be started before
            try:
                while True:
                    await self._work.wait()
                    self._work.clear()
                    try:
                        await self._reconcile()
                        self._saying.log_recovery("planning")
                    except HoldfastError as error:  # the disk refuses: the next look at the leases plans again
                        self._saying.log_error("planning", str(error))
            finally:
                self._running = None
                if self._timer is not None:
                    self._timer.cancel()

    async def _reconcile(self) -> None:
        self._refresh()
        if self._litter and self._is_tight():
            await self.sweep()  # unused blobs go before versions
        await self._make_room()

    async def _make_room(self) -> None:
        steps = self._plan_space()
        if any(isinstance(step, Evict) for step in steps):
            await self.look_at_leases()
            self._refresh()
            steps = self._plan_space()
        for step in steps:
            if isinstance(step, Preempt):
                self._handle(step.ref, step)
        hopeless = {step.ref for step in steps if isinstance(step, AllowOthers)}
        now = self._parts.clock()
        self._carry_out([*self._versions.seek_room(hopeless, now), *self._versions.admit(now)])
        for step in steps:  # last: these take time, and the situation changes until they are done
            if isinstance(step, Evict) and not self._stays(step.ref, step.digest, step.reason):
                await self.evict(step.ref, step.digest, step.reason)

    def _unlisted(self) -> bool:
        """Tell whether what lies about may belong to a version whose files are not known yet, but may soon be."""
        claims = self._parts.janitor.claims
        return self._catalog is None or any(
            not claims.has_claimed(ref) and not self._in_trouble(ref) for ref in self._versions.fetching
        )

    def _is_tight(self) -> bool:
        return bool(self._versions.blocked) or count_excess(self._parts.ledger.compute_use(), self._high, self._low) > 0

    def _refresh(self) -> None:
        """Know what is wanted now, and take the steps of the versions for which something changed."""
        if self._catalog is None:
            return
        self._carry_out(self._versions.pass_time(self._parts.clock()))
        self._look_at_pods()
        self._update_demand(self._catalog)
        held, records = self._parts.holdings.models, self._versions.records
        if self._all_dirty:
            self._all_dirty = False
            self._dirty.update(self._demand.wants, self._demand.refused, records, held)
        dirty, self._dirty = self._dirty, set()
        self._statuses.compare(dirty, self._catalog)
        for ref in dirty:
            self._statuses.show_pins(self._versions.get(ref), self._index.verdicts(ref))
        looks = {ref: self._looked(ref) for ref in dirty}
        self._carry_out(self._versions.handle_all(looks, self._parts.clock()))
        for step in plan_versions(self._planned(dirty)):
            self._apply(step)
        self._update_demand(self._catalog)  # less the pulls that have their answer
        for ref in dirty:
            self._statuses.show_pinned(self._versions.get(ref), self._catalog)

    def _look_at_pods(self) -> None:
        """A pod uses what it wants."""
        pods, held = self._parts.surroundings.pods(), self._parts.holdings
        if pods is self._pods_seen and not self._all_dirty:
            return
        self._pods_seen = pods
        self._carry_out(self._versions.see_pods(pods, held.models, self._parts.clock()))
        for ref in used(pods, held.models, self._catalog):
            held.mark_used(ref)

    def _update_demand(self, catalog: Catalog) -> None:
        labels, versions = self._parts.surroundings.labels or {}, self._versions
        self._dirty.update(self._index.update(catalog, labels, versions.records, versions.take_changed_asks()))

    def _looked(self, ref: ModelRef) -> Looked:
        want, refused = self._demand.wants.get(ref), ref in self._demand.refused
        return Looked(want, refused, self._index.verdicts(ref), self._held(ref))

    def _planned(self, refs: Collection[ModelRef]) -> Versions:
        wants, versions = self._demand.wants, {ref: self._versions.get(ref) for ref in refs}
        return Versions(
            demand=Demand(_among(refs, wants), _among(refs, self._demand.refused)),
            met={ref for ref, version in versions.items() if version.is_met(wants.get(ref), self._held(ref))},
            active=_among(refs, self._versions.fetching),
            settled={ref: version.settled for ref, version in versions.items() if version.settled is not None},
        )

    def _plan_space(self) -> tuple[SpaceStep, ...]:
        if self._catalog is None or not self._is_tight():
            return ()
        return tuple(
            plan_space(
                Situation(
                    demand=self._demand,
                    holdings=self.holdings(),
                    active=self._versions.fetching,
                    space=self._parts.ledger.compute_use(),
                    lacking={ref: self._shortage(ref, blocked) for ref, blocked in self._versions.blocked},
                    stakes={ref: self._parts.transfers.stake(ref) for ref in self._versions.fetching},
                    high_watermark=self._high,
                    low_watermark=self._low,
                )
            )
        )

    def _apply(self, step: VersionStep) -> None:
        match step:
            case StartFetch(want):
                if self._running is not None:  # else `run` plans all
                    self._carry_out(self._versions.start(want, self._parts.clock()))
            case Reprioritize(want):
                self._handle(want.ref, step)
            case Cancel(ref) | Refuse(ref, _) | Forget(ref):
                self._handle(ref, step)

    # --- events, and the steps that follow -------------------------------------------------------------------------

    def _handle(self, ref: ModelRef, event: Event) -> None:
        self._carry_out(self._versions.handle(ref, event, self._parts.clock()))

    def _carry_out(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._show(step)
            self._act(step)
        self._set_timer()

    def _act(self, step: Step) -> None:
        match step:
            case messages.Run(_, want):
                self._try(want)
            case messages.Stop(ref, gives_way):
                self._stop(ref, gives_way=gives_way)
            case messages.Hasten(ref, want):
                self._parts.flights.reprioritize(ref, want.priority)
            case messages.MakeRoom():
                self._work.set()
            case messages.Plan(ref):
                self._dirty.add(ref)
                self._work.set()
            case messages.Ended(ref):
                self._parts.transfers.forget(ref)
                self._litter = True
                self._dirty.add(ref)
                self._work.set()

    def _show(self, step: Step) -> None:
        board, metrics = self._parts.board, self._parts.metrics
        match step:
            case messages.ShowQueued(ref, want):
                if (held := self._parts.holdings.models.get(ref)) is not None:
                    _log.info(
                        "%s: what is here is not what is asked for now: resolving again; it stays until then: %s",
                        ref,
                        held,
                    )
                board.reset(ref, State.QUEUED, "", want.pin)
            case messages.ShowTrouble(ref, error):
                _log.warning("%s: %s", ref, error)
                board.set_error(ref, State.QUEUED, error)
            case messages.LogFailure(ref, failure):
                _log.error("%s: %s", ref, failure)
            case messages.ShowFailed(ref, failure):
                self._statuses.show_failed(ref, failure)
            case messages.ShowRefused(ref, refusal):
                self._statuses.show_refused(self._versions.get(ref), refusal, self._catalog)
            case messages.ShowIdle(ref):
                self._statuses.show_idle(self._versions.get(ref), self._catalog)
            case messages.CountWant(_, result):
                metrics.count_request(result)
            case messages.CountWait(_, seconds):
                metrics.observe_gate_wait(seconds)

    def _set_timer(self) -> None:
        """Have time pass for the versions when the next thing is due."""
        due = self._versions.due
        if self._running is None or (self._timer is not None and self._timer.when() == due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due == inf else self._running.loop.call_at(due, self._pass_time)

    def _pass_time(self) -> None:
        self._timer = None
        self._carry_out(self._versions.pass_time(self._parts.clock()))

    # --- tries -----------------------------------------------------------------------------------------------------

    def _try(self, want: Want) -> None:
        if self._running is None:
            return  # the daemon ends
        task = self._running.group.create_task(self._fetch(want), name=f"fetch {want.ref}")
        self._tries[want.ref] = task
        task.add_done_callback(partial(self._tried, want.ref))  # also where it is stopped before it began to run

    async def _fetch(self, want: Want) -> Published | HoldfastError:
        ref, board = want.ref, self._parts.board
        got_space = partial(self._handle, ref, SpaceReserved())
        outcome = await self._parts.transfers.try_fetch(want, partial(self._priority, want), got_space)
        if isinstance(outcome, Published):
            size = outcome.manifest.total_bytes
            board.set_ready(ref, outcome.digest, size, pinned=want.pin is not None, source=outcome.source)
            _log.info("%s: ready, %d bytes, %s", ref, size, outcome.digest)
        return outcome

    def _tried(self, ref: ModelRef, task: asyncio.Task[Published | HoldfastError]) -> None:
        del self._tries[ref]
        if task.cancelled() or task.exception() is not None:  # an exception ends the daemon
            self._handle(ref, Stopped())
            return
        outcome = task.result()
        if isinstance(outcome, Published):
            self._handle(ref, Arrived(self._parts.holdings.models.get(ref)))
        else:
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            self._handle(ref, TryFailed(outcome, jitter, self._held(ref), self._demand.wants.get(ref)))

    def _stop(self, ref: ModelRef, *, gives_way: bool) -> None:
        if gives_way:
            _log.info("%s: gives way to one that is more urgent", ref)
        if ref in self._tries:
            self._tries[ref].cancel()
        elif self._running is not None:
            self._running.loop.call_soon(self._handle, ref, Stopped())

    def _priority(self, want: Want) -> Priority:
        """The priority that a fetch has by now."""
        return self._versions.fetching.get(want.ref, want).priority

    def _in_trouble(self, ref: ModelRef) -> bool:
        """Tell whether a version's source keeps it waiting just now."""
        status = self._parts.board.get(ref)
        return status is not None and status.error is not None

    def _resume(self, ref: ModelRef, pin: Digest | None, *, recheck: bool) -> None:
        self._handle(ref, Resumed(_pull(ref, pin, refresh=False), recheck))

    # --- space -----------------------------------------------------------------------------------------------------

    def _space_was_freed(self) -> None:
        """Retry the blocked fetches whose space is free now, and those that the disk refused: it names no size."""
        tries = [
            ref
            for ref, blocked in self._versions.blocked
            if not isinstance(blocked.error, NoSpace | NoInodes) or self._fits(ref, blocked)
        ]
        self._carry_out(self._versions.nudge(tries, self._parts.clock()))

    def _fits(self, ref: ModelRef, blocked: Blocked) -> bool:
        """Return whether the space that a fetch lacks is free now; False if the disk does not tell."""
        try:
            needed, use = self._shortage(ref, blocked), self._parts.ledger.compute_use()
        except Transient:
            return False
        return use.free >= needed.bytes and use.files_free >= needed.files

    def _shortage(self, ref: ModelRef, blocked: Blocked) -> Shortage:
        told = self._parts.ledger.compute_shortage(blocked.error)
        if not isinstance(blocked.error, NoSpace):
            return told
        here = self._parts.transfers.stake(ref).total()
        self._handle(ref, NeedFound(here + told.bytes))
        return replace(told, bytes=self._versions.get(ref).needs_bytes - here)

    # --- what is here ----------------------------------------------------------------------------------------------

    def holdings(self) -> list[InventoryEntry]:
        """What this node holds, as the planner sees it."""
        held = self._parts.holdings
        return list_entries(held, held.models, self._parts.surroundings, self._catalog)

    def _stays(self, ref: ModelRef, digest: Digest, reason: str) -> bool:
        """Tell whether a version need not or must not go any more, now that its turn comes."""
        self._refresh()
        blocked = self._versions.blocked
        if reason == "space" and not blocked:
            return True
        if reason == "watermark" and count_excess(self._parts.ledger.compute_use(), self._low, self._low) == 0:
            return True
        for_pod = reason == "space" and blocked[0][1].fetch.want.priority is Priority.WAITING
        found = list_entries(self._parts.holdings, [ref], self._parts.surroundings, self._catalog)
        if not found or found[0].digest != digest:
            return True
        (holding,) = mark_protected(found, self._demand, {each for each, _ in blocked})
        return not (holding.evictable or (for_pod and holding.evictable_for_pod))

    def wanted(self, ref: ModelRef) -> bool:
        """Tell whether anybody asks for `ref`."""
        return ref in self._demand.refused or ref in self._demand.wants

    def _held(self, ref: ModelRef) -> Held | None:
        held = self._parts.holdings
        return Held(held.models[ref], held.fetched[ref].request) if ref in held.models else None


def _pull(ref: ModelRef, pin: Digest | None, *, refresh: bool) -> Pull:
    return Pull(secrets.token_hex(8), PullWant(ref, pin), refresh)


def _among(refs: Iterable[ModelRef], all_: Mapping[ModelRef, T]) -> dict[ModelRef, T]:
    return {ref: all_[ref] for ref in refs if ref in all_}
