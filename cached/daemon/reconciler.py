"""Reconcile the inventory with the demand: report events to the versions' records, and carry out the steps.

Law: decides nothing: `core.versions` decides about one version, the planner about several. This module keeps the tasks,
one a try, and looks up the facts for these decisions. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.core import planner
from cached.core.catalog import Catalog
from cached.core.demand import Demand, PodWant, Priority, PullWant, Want
from cached.core.eviction import InventoryEntry, by_age, count_excess
from cached.core.planner import Evict, Preempt, Situation, SpaceStep, StartFetch, VersionStep
from cached.core.space import NoInodes, NoSpace, Shortage
from cached.core.versions import messages
from cached.core.versions.messages import Event, Step
from cached.core.versions.record import Blocked, Pull
from cached.daemon.eviction_guard import EvictionGuard
from cached.daemon.metrics import DaemonMetrics
from cached.daemon.node_state import NodeState
from cached.daemon.version_statuses import VersionStatuses
from cached.fetch.downloads import Downloads
from cached.fetch.resolving.comparison import SourceComparison
from cached.fetch.version import Published
from cached.node.log_once import LogOnce
from cached.node.publisher import Publisher

_log = logging.getLogger(__name__)
_RETRY_S = 4.0  # of the fetches blocked on space
_RETRIES_A_PLAN = 3

T = TypeVar("T")


class Reconciler:
    """Keeps the inventory at the demand. The clock of `state` is that of `loop`. Watermarks: shares of the capacity."""

    def __init__(
        self,
        *,
        state: NodeState,
        downloads: Downloads,
        publisher: Publisher,
        metrics: DaemonMetrics,
        loop: asyncio.AbstractEventLoop,
        high_watermark: float,
        low_watermark: float,
    ) -> None:
        self._state = state
        self._status_files = state.status_files
        self._inventory = state.inventory
        self._ledger = state.ledger
        self._downloads = downloads
        self._fetches = state.fetches
        self._publisher = publisher
        self._metrics = metrics
        self._cluster = state.cluster
        self._loop = loop
        self._clock = state.clock
        self._high, self._low = high_watermark, low_watermark
        self._versions = state.versions
        self._group = asyncio.TaskGroup()  # of the tries; `run` enters it
        self._is_running = False  # while it is, tries and timers may start
        self._tries: dict[ModelRef, asyncio.Task[Published | HoldfastError]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._demand = state.index.demand
        self._dirty: set[ModelRef] = set()  # versions with a change since their last plan
        self._all_dirty = True
        # The pods, the inventory and the mounts at the last look.
        self._filled_at: tuple[Sequence[PodWant] | None, int, frozenset[str]] | None = None
        self._work = asyncio.Event()
        self.has_planned = asyncio.Event()  # with a catalog, at least once
        self._guard = EvictionGuard(state, low_watermark, self.refresh)
        self._sweep_is_due = True  # there may be unused blobs: at first, those of an earlier daemon
        self._log_once = LogOnce(_log)
        self._has_failed = False  # the last plan: the disk failed
        self._statuses = VersionStatuses(state)

    # --- commands --------------------------------------------------------------------------------------------------

    def use_catalog(self, catalog: Catalog) -> None:
        """Put a catalog in force."""
        self._state.catalog = catalog
        self.plan_all()

    def resume(self, pins: Mapping[ModelRef, Digest | None]) -> None:
        """Fetch versions that were unfinished at the last stop, or lost since, like pulls."""
        for ref, pin in pins.items():
            self._resume(ref, pin, refresh=False)
        self._work.set()

    def pull(self, ref: ModelRef, pin: Digest | None, *, refresh: bool) -> Pull:
        """Pull a version, with `refresh` although the node has it; forget its earlier failure. Return the pull."""
        pull = _make_pull(ref, pin, refresh=refresh)
        self._handle(ref, messages.Pulled(pull, ref in self._inventory.models))
        self.refresh()
        self._work.set()
        if self._state.catalog is None and self._status_files.get(ref) is None:
            self._status_files.reset(ref, State.QUEUED, "", pin)
        return pull

    def record_comparison(self, ref: ModelRef, found: SourceComparison) -> None:
        """Record whether a source has other content now, and fetch that if the catalog says `follow`."""
        inventory, entry = self._inventory, self._state.find_resolvable(ref)
        if entry is None or inventory.models[ref] != found.held:
            return  # the name moved since
        if not found.changed:
            inventory.drifted.pop(ref, None)
        elif ref not in inventory.drifted or inventory.drifted[ref] != found.digest:
            inventory.drifted[ref] = found.digest
            now = "not known without a fetch" if found.digest is None else str(found.digest)
            _log.warning("%s: its source has other content now: here %s, there %s", ref, found.held, now)
        if found.changed and entry.follow:
            self._resume(ref, None, refresh=True)
        self._dirty.add(ref)
        self._work.set()

    async def update_leases(self) -> None:
        """Update the leased snapshots. A sweep is due if some have no name: their lease may have ended."""
        await self._publisher.update_leases()
        self._sweep_is_due = self._sweep_is_due or bool(self._inventory.unnamed())

    async def quarantine_blobs(self, sha256s: Collection[str]) -> None:
        """Quarantine corrupt blobs, and then fetch their versions again."""
        self._sweep_is_due = True
        gone: list[ModelRef] = []
        try:
            await self._publisher.quarantine(sha256s, gone)
        finally:
            self.resume(dict.fromkeys(gone))

    async def restore_snapshot(self, digest: Digest) -> None:
        """Restore a snapshot with deleted or replaced files or a bad manifest, and fetch the files without a copy."""
        self._sweep_is_due = True
        self.resume(dict.fromkeys(await self._publisher.restore((digest,))))

    def adopt_import(self, ref: ModelRef) -> None:
        """Stop the fetch of a version that was published without one, show it ready, and answer who waits for it."""
        if ref in self._versions.fetching:
            self._handle(ref, planner.Cancel(ref))
        else:
            self._statuses.show_idle(ref)
        self._dirty.add(ref)
        self._sweep_is_due = True
        self._work.set()

    async def wait_until_stopped(self, ref: ModelRef) -> None:
        """Return once the running try of a version has ended, and the steps that follow were carried out."""
        if ref in self._tries:
            await asyncio.wait([self._tries[ref]])
        await asyncio.sleep(0)  # the loop calls these steps, before it comes back here

    def take_wants(self) -> None:
        """Plan for the present wants at once: afterwards the statuses tell what holds for them."""
        self.refresh()
        self._work.set()

    def is_fetched(self, ref: ModelRef) -> bool:
        """Return whether a fetch of the version has not ended: its status is the fetch's."""
        return self._state.is_fetched(ref)

    def show_settled(self, ref: ModelRef) -> None:
        """Show the status of a version whose files were hashed again, unless a fetch of it shows its own."""
        status = self._status_files.get(ref)
        if not self._state.is_fetched(ref) and status is not None and status.state is State.VERIFYING:
            self._statuses.show_idle(ref)

    def refresh(self) -> None:
        """Update the demand, and carry out the steps of the versions that pods, catalog or time changed."""
        if self._state.catalog is None:
            return
        self._carry_out(self._versions.pass_time(self._clock()))
        self._update_pods()
        self._update_demand(self._state.catalog)
        held, records = self._inventory.models, self._versions.records
        if self._all_dirty:
            self._all_dirty = False
            self._dirty.update(self._demand.wants, self._demand.refused, records, held)
        dirty, self._dirty = self._dirty, set()
        self._statuses.compare(dirty, self._state.catalog)
        for ref in dirty:
            self._statuses.show_refusals(ref)
        updates = {ref: self._make_update(ref) for ref in dirty}
        self._carry_out(self._versions.handle_all(updates, self._clock()))
        for step in self._plan_versions(updates):
            self._apply(step)
        self._update_demand(self._state.catalog)  # without the answered pulls
        for ref in dirty:
            self._statuses.show_pinned(ref)
        self._observe_fills()

    def wake(self) -> None:
        """Plan again: wants or the disk space may have changed."""
        self._work.set()

    def plan_all(self) -> None:
        """Plan every version again, not only the changed ones."""
        self._all_dirty = True
        self._work.set()

    def end_pauses(self) -> None:
        """Retry all fetches: the disk accepts writes again."""
        self._carry_out(self._versions.end_pauses(tuple(self._versions.fetching), self._clock()))
        self._work.set()

    def retry_fitting(self) -> None:
        """Retry the blocked fetches whose space is free now."""
        fitting = [ref for ref, blocked in self._versions.blocked if self._fits(ref, blocked)]
        self._carry_out(self._versions.end_pauses(fitting, self._clock()))

    @property
    def unlisted_pods(self) -> Transient | None:
        """Why the last eviction could not ask for the pods; None where it could."""
        return self._guard.unlisted_pods

    def list_evictable(self) -> list[InventoryEntry]:
        """Return the versions without a want, a lease or a pin, least recently used first."""
        self.refresh()
        return by_age(
            entry for entry in self._state.list_inventory() if entry.evictable and not self._state.is_wanted(entry.ref)
        )

    async def evict(self, ref: ModelRef, digest: Digest, reason: str) -> int | None:
        """Evict one version unless it is in use; return the freed bytes, None if it stays."""
        freed = await self._publisher.evict(ref, digest, partial(self._guard.is_wanted_now, ref, digest, reason))
        self._dirty.add(ref)
        if freed is not None:
            self._metrics.count_eviction(reason)
            self._handle(ref, messages.Evicted())
            self._sweep_is_due = True
            self._retry_after_deletion()
        return freed

    async def sweep(self) -> int:
        """Delete unused blobs; return the freed bytes.

        Unless space is short, delete nothing before each wanted version has claimed its files: after a restart its
        partial and committed blobs look unused.
        """
        if self._has_unlisted() and not self._versions.blocked:
            return 0
        self._sweep_is_due = False
        await self._publisher.drop_unnamed()
        freed = await self._publisher.sweep()
        if freed:
            self._retry_after_deletion()
        return freed

    # --- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plan and carry out until cancelled; then cancel every fetch, keeping its durable bytes."""
        async with self._group:
            self._is_running = True
            self._all_dirty = True  # no fetch could start before
            try:
                while True:
                    await self._work.wait()
                    self._work.clear()
                    try:
                        await self._reconcile()
                        if self._state.catalog is not None:
                            self.has_planned.set()
                        self._has_failed = False
                        self._log_once.log_recovery("planning")
                    except HoldfastError as error:  # the disk fails: `run_retries` plans again
                        self._has_failed = True
                        self._log_once.log_error("planning", str(error))
            finally:
                self._is_running = False
                if self._timer is not None:
                    self._timer.cancel()

    async def run_retries(self) -> None:
        """Retry and plan periodically until cancelled: sources, leases and other programs on the disk send no event."""
        while True:
            for _ in range(_RETRIES_A_PLAN):
                await asyncio.sleep(_RETRY_S)
                self.retry_fitting()
            await self._plan_unfinished()

    async def _plan_unfinished(self) -> None:
        """Look at the leases and plan everything again while a fetch has not ended, or space is short. Else do
        nothing."""
        try:
            is_tight = self._is_tight()
        except HoldfastError:
            is_tight = True
        if is_tight:
            await self.update_leases()
        if is_tight or self._has_failed or self._versions.fetching:
            self.plan_all()

    async def _reconcile(self) -> None:
        self.refresh()
        if self._sweep_is_due and self._is_tight():
            await self.sweep()  # unused blobs go before versions
        await self._make_room()

    async def _make_room(self) -> None:
        steps = self._plan_space()
        if any(isinstance(step, Evict) for step in steps):
            await self.update_leases()
            self.refresh()
            steps = self._plan_space()
        for step in steps:
            if isinstance(step, Preempt):
                self._handle(step.ref, step)
        hopeless = {step.ref for step in steps if isinstance(step, planner.AllowOthers)}
        now = self._clock()
        self._carry_out([*self._versions.record_space_plan(hopeless, now), *self._versions.admit(now)])
        for step in steps:  # last: evictions take time, and the plan may be outdated after each
            if self._guard.is_paused():
                return  # a later plan repeats the steps
            if isinstance(step, Evict) and not self._guard.must_stay(step.ref, step.digest, step.reason):
                await self.evict(step.ref, step.digest, step.reason)

    def _has_unlisted(self) -> bool:
        """Return whether unused blobs may belong to a version whose files are still unknown."""
        claims = self._publisher.claims
        return self._state.catalog is None or any(
            not claims.has_claimed(ref) and not self._state.is_in_trouble(ref) for ref in self._versions.fetching
        )

    def _is_tight(self) -> bool:
        return bool(self._versions.blocked) or count_excess(self._ledger.compute_use(), self._high, self._low) > 0

    def _observe_fills(self) -> None:
        """Observe the pods that have their weights now; nothing where pods, versions and mounts are as before."""
        unmounted = self._cluster.list_unmounted()
        seen = self._state.pods, self._inventory.changes, unmounted
        if not self._cluster.synced or seen == self._filled_at:
            return
        self._filled_at = seen
        pods, models = self._state.pods or (), self._inventory.models
        for seconds in self._state.fills.update(pods, models, self._clock(), unmounted):
            self._metrics.observe_pod_fill(seconds)

    def _update_pods(self) -> None:
        """Record the pods; a version that a pod wants is used by it."""
        pods = self._cluster.pods()
        if pods == self._state.pods and not self._all_dirty:
            return
        self._state.mark_used()  # by the pods until now, of which some may be gone
        self._state.pods = pods
        self._carry_out(self._versions.update_pods(pods, self._inventory.models, self._clock()))
        self._state.mark_used()

    def _update_demand(self, catalog: Catalog) -> None:
        labels, versions = self._cluster.labels or {}, self._versions
        self._dirty.update(self._state.index.update(catalog, labels, versions.records, versions.take_changed_asks()))

    def _make_update(self, ref: ModelRef) -> messages.DemandUpdated:
        want, refused = self._demand.wants.get(ref), ref in self._demand.refused
        return messages.DemandUpdated(
            want, refused, self._state.index.get_refused_pins(ref), self._state.find_held(ref)
        )

    def _plan_versions(self, updates: Mapping[ModelRef, messages.DemandUpdated]) -> tuple[VersionStep, ...]:
        """Return the steps of the versions of `updates`, which their records have handled."""
        versions = {ref: self._versions.get(ref) for ref in updates}
        return planner.plan_versions(
            Demand(_among(updates, self._demand.wants), _among(updates, self._demand.refused)),
            {ref for ref, update in updates.items() if versions[ref].is_met(update.want, update.held)},
            _among(updates, self._versions.fetching),
            {ref: version.failure for ref, version in versions.items() if version.failure is not None},
        )

    def _plan_space(self) -> tuple[SpaceStep, ...]:
        if self._state.catalog is None or not self._is_tight():
            return ()
        situation = Situation(
            demand=self._demand,
            inventory=self._state.list_inventory(),
            fetching=self._versions.fetching,
            space=self._ledger.compute_use(),
            shortages={ref: self._compute_shortage(ref, blocked) for ref, blocked in self._versions.blocked},
            fetch_space={ref: self._fetches.compute_space(ref) for ref in self._versions.fetching},
            high_watermark=self._high,
            low_watermark=self._low,
        )
        return tuple(planner.plan_space(situation))

    def _apply(self, step: VersionStep) -> None:
        match step:
            case StartFetch(want):
                if self._is_running:
                    self._carry_out(self._versions.start(want, self._clock()))
            case planner.Reprioritize(want):
                self._handle(want.ref, step)
            case planner.Cancel(ref) | planner.Refuse(ref, _) | planner.Forget(ref):
                self._handle(ref, step)

    # --- events, and the steps that follow -------------------------------------------------------------------------

    def _handle(self, ref: ModelRef, event: Event) -> None:
        self._carry_out(self._versions.handle(ref, event, self._clock()))

    def _carry_out(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._statuses.show(step)
            self._execute(step)
        self._set_timer()

    def _execute(self, step: Step) -> None:
        match step:
            case messages.StartTry(_, want):
                self._start_try(want)
            case messages.StopTry(ref, preempted):
                self._stop_try(ref, preempted=preempted)
            case messages.SetPriority(ref, want):
                self._downloads.reprioritize(ref, want.priority)
            case messages.Plan(ref):
                self._dirty.add(ref)
                self._work.set()
            case messages.Ended(ref):
                self._fetches.forget(ref)
                self._sweep_is_due = True
                self._dirty.add(ref)
                self._work.set()
            case messages.CountWant(_, result):
                self._metrics.count_request(result)
            case messages.CountWait(_, seconds):
                self._metrics.observe_gate_wait(seconds)

    def _set_timer(self) -> None:
        """Call `_pass_time` when the next version is due."""
        due = self._versions.due
        if not self._is_running or (self._timer is not None and self._timer.when() == due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due == inf else self._loop.call_at(due, self._pass_time)

    def _pass_time(self) -> None:
        self._timer = None
        self._carry_out(self._versions.pass_time(self._clock()))

    # --- tries -----------------------------------------------------------------------------------------------------

    def _start_try(self, want: Want) -> None:
        if not self._is_running:
            return
        task = self._group.create_task(self._fetch(want), name=f"fetch {want.ref}")
        self._tries[want.ref] = task
        task.add_done_callback(partial(self._end_try, want.ref))  # also if it is cancelled before it began to run

    async def _fetch(self, want: Want) -> Published | HoldfastError:
        ref = want.ref
        urgency, got_space = partial(self._get_priority, want), partial(self._record_space, ref)
        outcome = await self._fetches.try_fetch(want, urgency, got_space)
        if isinstance(outcome, Published):
            size, pinned = outcome.manifest.total_bytes, want.pin is not None
            self._status_files.set_ready(ref, outcome.digest, size, pinned=pinned, source=outcome.source)
            _log.info("%s: ready, %d bytes, %s", ref, size, outcome.digest)
        return outcome

    def _end_try(self, ref: ModelRef, task: asyncio.Task[Published | HoldfastError]) -> None:
        del self._tries[ref]
        if task.cancelled() or task.exception() is not None:  # an exception ends the daemon
            self._handle(ref, messages.Stopped())
            return
        outcome = task.result()
        if isinstance(outcome, Published):
            self._handle(ref, messages.Arrived(self._inventory.models.get(ref)))
        else:
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            want = self._demand.wants.get(ref)
            self._handle(ref, messages.TryFailed(outcome, jitter, self._state.find_held(ref), want))

    def _stop_try(self, ref: ModelRef, *, preempted: bool) -> None:
        if preempted:
            _log.info("%s: preempted by a more urgent fetch", ref)
        if ref in self._tries:
            self._tries[ref].cancel()
        elif self._is_running:
            self._loop.call_soon(self._handle, ref, messages.Stopped())

    def _record_space(self, ref: ModelRef, size_bytes: int, files: int) -> None:
        self._handle(ref, messages.SpaceReserved(size_bytes, files))

    def _get_priority(self, want: Want) -> Priority:
        """Return the current priority of a fetch."""
        return self._versions.fetching.get(want.ref, want).priority

    def _resume(self, ref: ModelRef, pin: Digest | None, *, refresh: bool) -> None:
        self._handle(ref, messages.Resumed(_make_pull(ref, pin, refresh=False), refresh))

    # --- space -----------------------------------------------------------------------------------------------------

    def _retry_after_deletion(self) -> None:
        """Retry the blocked fetches whose space is free now, and those that the disk refused, of unknown need."""
        refs = [
            ref
            for ref, blocked in self._versions.blocked
            if not isinstance(blocked.error, NoSpace | NoInodes) or self._fits(ref, blocked)
        ]
        self._carry_out(self._versions.end_pauses(refs, self._clock()))

    def _fits(self, ref: ModelRef, blocked: Blocked) -> bool:
        """Return whether enough space for a blocked fetch is free now; False if the disk fails."""
        try:
            needed, use = self._compute_shortage(ref, blocked), self._ledger.compute_use()
        except Transient:
            return False
        return use.free >= needed.bytes and use.files_free >= needed.files

    def _compute_shortage(self, ref: ModelRef, blocked: Blocked) -> Shortage:
        """Return what must be free for a blocked fetch, and record the bytes that it needs in all."""
        shortage = self._state.compute_shortage(ref, blocked)
        if isinstance(blocked.error, NoSpace):
            self._handle(ref, messages.NeedFound(self._fetches.compute_space(ref).total() + shortage.bytes))
        return shortage


def _make_pull(ref: ModelRef, pin: Digest | None, *, refresh: bool) -> Pull:
    return Pull(secrets.token_hex(8), PullWant(ref, pin), refresh)


def _among(refs: Iterable[ModelRef], all_: Mapping[ModelRef, T]) -> dict[ModelRef, T]:
    return {ref: all_[ref] for ref in refs if ref in all_}
