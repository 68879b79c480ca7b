"""The daemon's answers and commands, which both listeners (TCP and the control socket) call.

Law: runs on the event loop; translates between requests and the reconciler, and decides nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError, timestamp
from cached.core.demand import waiting
from cached.core.eviction import reclaimable
from cached.core.space import Ledger, SpaceUse
from cached.core.versions.record import Pull
from cached.daemon.catalog_file import CatalogFile
from cached.daemon.control_api import Check
from cached.daemon.metrics import DaemonGauges, DaemonMetrics, ModelGauges
from cached.daemon.reconciler import Reconciler
from cached.fetch.workers import Workers
from cached.node.cluster import Cluster
from cached.node.inventory import Inventory, write_pins
from cached.node.status_files import StatusFiles
from cached.node.threads import Blocking


class DaemonService:
    """Implements `read_api.Reports` and `control_api.Commands`."""

    def __init__(
        self,
        *,
        layout: Layout,
        inventory: Inventory,
        status_files: StatusFiles,
        ledger: Ledger,
        blocking: Blocking,
        cluster: Cluster,
    ) -> None:
        self._layout = layout
        self._holdings = inventory
        self._board = status_files
        self._ledger = ledger
        self._blocking = blocking
        self._surroundings = cluster
        self._waiting_for: str | None = "starting"
        self._pinning = asyncio.Lock()  # two writes at once could end with the older list
        self._scheduler: Reconciler
        self._workers: Workers
        self._catalog: CatalogFile
        self._metrics = DaemonMetrics(self._figures)

    @property
    def counters(self) -> DaemonMetrics:
        """Return the metrics, which every part increments."""
        return self._metrics

    def connect_parts(self, scheduler: Reconciler, workers: Workers, catalog: CatalogFile) -> None:
        """Set the parts that answer; they need the metrics first, hence this second step."""
        self._catalog = catalog
        self._scheduler = scheduler
        self._workers = workers

    def set_not_ready_reason(self, reason: str | None) -> None:
        """Set the reason why the daemon is not ready; None when it is."""
        self._waiting_for = reason

    # --- reads -----------------------------------------------------------------------------------------------------

    def metrics(self) -> bytes:
        return self._metrics.render()

    def not_ready_reason(self) -> str | None:
        if self._waiting_for is None and not self._surroundings.synced:
            return "waiting for the first list of this node's pods"
        trouble = self._board.trouble_writing
        return self._waiting_for or (None if trouble is None else f"the root cannot be written: {trouble}")

    def status(self) -> dict[str, Any]:
        use, error = self._use()
        return {
            "daemon": self._board.daemon.document(),
            "disk": {
                "capacity": use.capacity,
                "used": use.used + use.dying,
                "reserved": use.reserved,
                "free": use.free,
                "error": None if error is None else asdict(StatusError.of(error)),
            },
            "models": [self._model(status.document(), status.model, status.version) for status in self._board.all()],
        }

    # --- commands --------------------------------------------------------------------------------------------------

    async def pull(self, ref: ModelRef, pin: Digest | None, *, refresh: bool) -> dict[str, Any]:
        await self._catalog.wait_until_current()
        pull = self._scheduler.pull(ref, pin, refresh=refresh)
        await self._board.flushed()
        return self._answer(self._scheduler.pulled(pull.id) or pull)

    def get_pull(self, id_: str) -> dict[str, Any] | None:
        pull = self._scheduler.pulled(id_)
        return None if pull is None else self._answer(pull)

    def _answer(self, pull: Pull) -> dict[str, Any]:
        status = self._board.get(pull.want.ref)
        state = State.QUEUED if pull.error is None else State.FAILED
        return {
            "pull": pull.id,
            "state": str(state if status is None else status.state),
            "digest": None if pull.digest is None else str(pull.digest),
            "error": None if pull.error is None else asdict(StatusError.of(pull.error)),
        }

    async def gc(self, check: Check) -> list[dict[str, Any]]:
        await self._scheduler.look_at_leases()
        check()
        gone = []
        for victim in self._scheduler.evictable():
            if self._scheduler.wanted(victim.ref):
                continue  # wanted again since the list was made
            check()
            freed = await self._scheduler.evict(victim.ref, victim.digest, "gc")
            if freed is not None:
                gone.append(_evicted(victim.ref, victim.digest, freed))
        check()
        await self._scheduler.sweep()
        return gone

    async def plan_gc(self) -> list[dict[str, Any]]:
        await self._scheduler.look_at_leases()
        victims, holdings = self._scheduler.evictable(), self._scheduler.holdings()
        plan, before = [], 0
        for count, victim in enumerate(victims, 1):
            freed = reclaimable(victims[:count], holdings)
            plan.append(_evicted(victim.ref, victim.digest, freed - before))
            before = freed
        return plan

    async def pin(self, ref: ModelRef, check: Check) -> None:
        async with self._pinning:
            check()
            self._scheduler.require_known(ref)
            await self._keep(self._holdings.pins | {ref})

    async def unpin(self, ref: ModelRef, check: Check) -> tuple[bool, bool]:
        async with self._pinning:
            check()
            was_pinned = ref in self._holdings.pins
            if was_pinned:
                await self._keep(self._holdings.pins - {ref})
            return self._scheduler.is_kept(ref), was_pinned

    async def _keep(self, pins: set[ModelRef]) -> None:
        await self._blocking.run(write_pins, self._layout, pins)
        self._holdings.pins = pins

    def _use(self) -> tuple[SpaceUse, HoldfastError | None]:
        """Return the space accounts and the disk's error, if any; the last known account while the disk fails."""
        try:
            return self._ledger.compute_use(), self._board.trouble_writing
        except HoldfastError as error:
            return self._ledger.compute_use_without_disk(), error

    def disk_error(self) -> Transient | None:
        return self._board.hanging

    # --- figures ---------------------------------------------------------------------------------------------------

    def _model(self, document: dict[str, Any], name: str, version: str) -> dict[str, Any]:
        ref = ModelRef(name, version)
        used = self._holdings.last_used_at(ref)
        document["last_used"] = None if used is None else timestamp(used)
        document["leased"] = self._holdings.models.get(ref) in self._holdings.leased
        return document

    def _figures(self) -> DaemonGauges:
        use, _error = self._use()
        held = self._holdings
        return DaemonGauges(
            capacity=use.capacity,
            store_bytes={"committed": use.used, "reserved": use.reserved, "dying": use.dying},
            in_progress=self._workers.in_progress(),
            pods_waiting=waiting(self._surroundings.pods(), held.models),
            cluster=self._surroundings.figures(),
            models=tuple(
                ModelGauges(
                    status.model,
                    status.version,
                    ready=ref in held.models,
                    pinned=status.pinned,
                    stale=status.stale is not None,
                    size=held.size(ref) if ref in held.models else 0,
                    last_used=held.last_used_at(ref),
                )
                for status in self._board.all()
                for ref in (ModelRef(status.model, status.version),)
                if self._scheduler.knows(ref)
            ),
        )


def _evicted(ref: ModelRef, digest: Digest, size: int) -> dict[str, Any]:
    return {
        "model": ref.name,
        "version": ref.version,
        "digest": str(digest),
        "bytes": size,
        "reason": "not wanted",
    }
