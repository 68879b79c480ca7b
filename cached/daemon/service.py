"""The daemon's answers and commands, which both listeners (TCP and the control socket) call.

Law: runs on the event loop; translates between requests and the reconciler, and decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State, StatusError, timestamp
from cached.core.eviction import InventoryEntry, list_freed
from cached.core.space import SpaceUse
from cached.core.versions.record import Pull
from cached.daemon.catalog.catalog_file import CatalogFile
from cached.daemon.fetching import Fetching
from cached.daemon.metrics import NodeFigures, VersionFigures
from cached.daemon.opening import OpenedNode
from cached.node.integrity.recheck import Recheck
from cached.node.inventory import write_pins

if TYPE_CHECKING:  # loaded at its first request
    from cached.daemon.page.page import NodePage

_SHOWN_FILES = 64  # more than a terminal has lines for

# Raises once the client has disconnected or its deadline has passed: the command then stops.
Check = Callable[[], None]


class DaemonService:
    """The answers of both listeners."""

    def __init__(self, node: OpenedNode, fetching: Fetching, catalog: CatalogFile, recheck: Recheck) -> None:
        self._node = node
        self._inventory = node.inventory
        self._status_files = node.status_files
        self._fetches = fetching.fetches
        self._reconciler = fetching.reconciler
        self._state = fetching.state
        self._catalog = catalog
        self._recheck = recheck
        self._stopping = False
        self._pinning = asyncio.Lock()  # two writes at once could end with the older list
        self._node_figures = NodeFigures(
            fetching.workers,
            fetching.state,
            compute_use=lambda: self._use()[0],
            get_catalog=lambda: (catalog.in_force, catalog.is_unusable),
        )
        self._version_figures = VersionFigures(fetching.state)

    def mark_stopping(self) -> None:
        """Report that the daemon is not ready, because it stops."""
        self._stopping = True

    # --- reads -----------------------------------------------------------------------------------------------------

    def render_metrics(self) -> bytes:
        """Return the page of `GET /metrics`."""
        self._state.mark_used()
        text = self._node_figures.render() + self._version_figures.render()
        return self._node.metrics.render() + text.encode()

    def open_page(self, most_readers: int) -> NodePage:
        """Return the page for people, whose modules are imported here."""
        from cached.daemon.page.facts import NodeFacts
        from cached.daemon.page.page import NodePage

        facts = NodeFacts(
            state=self._state,
            catalog=self._catalog,
            registry=self._node.metrics.registry,
            compute_use=self._use,
            find_not_ready_reason=self.find_not_ready_reason,
        )
        return NodePage(facts, self._status_files.daemon.node, most_readers)

    def find_not_ready_reason(self) -> str | None:
        """Return why the daemon is not ready; None when it is."""
        if self._stopping:
            return "stopping"
        if self._catalog.not_ready_reason is not None:
            return self._catalog.not_ready_reason
        if not self._node.cluster.synced:
            return "waiting for the first list of this node's pods"
        trouble = self._status_files.trouble_writing
        return None if trouble is None else f"the root cannot be written: {trouble}"

    def make_status(self) -> dict[str, Any]:
        """Return the document of `GET /v1/status`."""
        self._state.mark_used()
        return {
            "daemon": self._status_files.daemon.document(),
            "disk": self.describe_disk(),
            "models": [self._describe_model(status) for status in self._status_files.all()],
        }

    def describe_disk(self) -> dict[str, Any]:
        """Return the account of the disk, within the quota, as `/v1/status` has it."""
        use, error = self._use()
        return {
            "capacity": use.capacity,
            "used": use.used + use.dying,
            "reserved": use.reserved,
            "free": use.free,
            "error": None if error is None else asdict(StatusError.of(error)),
        }

    def list_waiting(self) -> list[dict[str, Any]]:
        """Return the pods that wait, the longest first, each with the version that it waits for."""
        epoch = time.time() - asyncio.get_running_loop().time()
        return [
            {
                "pod": each.pod,
                "model": each.ref.name,
                "version": each.ref.version,
                "since": None if each.since is None else timestamp(epoch + each.since),
            }
            for each in self._state.list_waiting()
        ]

    # --- commands --------------------------------------------------------------------------------------------------

    async def pull(self, ref: ModelRef, pin: Digest | None, *, refresh: bool) -> dict[str, Any]:
        """Want a version; `refresh`: resolve its source again. Return `{"pull": id, "state", "digest", "error"}`."""
        await self._catalog.wait_until_current()
        pull = self._reconciler.pull(ref, pin, refresh=refresh)
        return self._describe_pull(self._state.find_pull(pull.id) or pull)

    def get_pull(self, id_: str) -> dict[str, Any] | None:
        """Return the current answer of the pull with this id; None for an unknown id."""
        pull = self._state.find_pull(id_)
        return None if pull is None else self._describe_pull(pull)

    def list_files(self, ref: ModelRef) -> dict[str, Any]:
        """Return the progress of a running fetch, file by file: `{"files", "done", "waiting"}`, of the files only those
        that are being received."""
        files = self._fetches.list_files(ref)
        active = [file for file in files if file.received and not file.is_done]
        done = sum(file.is_done for file in files)
        shown = [{"path": f.path, "bytes_total": f.size, "bytes_done": f.received} for f in active[:_SHOWN_FILES]]
        return {"files": shown, "done": done, "waiting": len(files) - done - len(active)}

    async def write_statuses(self) -> None:
        """Return once every status so far is in its file."""
        await self._status_files.flushed()

    async def gc(self, check: Check) -> list[dict[str, Any]]:
        """Evict the versions without want or lease and return them; `check` is called before each step. Raises
        `Transient` (`pods_unknown`) where the cluster does not say which pods there are."""
        await self._reconciler.update_leases()
        check()
        gone, unlisted = [], None
        for victim in self._reconciler.list_evictable():
            if self._state.is_wanted(victim.ref):
                continue  # wanted again since the list was made
            check()
            used = self._inventory.last_used_at(victim.ref)
            freed = await self._reconciler.evict(victim.ref, victim.digest, "gc")
            unlisted = self._reconciler.unlisted_pods
            if unlisted is not None:
                break
            if freed is not None:
                gone.append(_describe_evicted(victim, freed, used))
        check()
        await self._reconciler.sweep()
        if unlisted is not None:
            raise unlisted
        return gone

    async def plan_gc(self) -> list[dict[str, Any]]:
        """Return what `gc` would evict now."""
        await self._reconciler.update_leases()
        victims, inventory = self._reconciler.list_evictable(), self._state.list_inventory()
        plan = []
        for victim, freed in zip(victims, list_freed(victims, inventory), strict=True):
            plan.append(_describe_evicted(victim, freed, self._inventory.last_used_at(victim.ref)))
        return plan

    def list_staying(self) -> list[dict[str, Any]]:
        """Return the versions that `gc` would leave, each with what keeps it."""
        found = []
        for entry in self._state.list_inventory():
            wanted = self._state.is_wanted(entry.ref)
            if entry.evictable and not wanted:
                continue
            want = self._state.find_want(entry.ref)
            because = list(want.reasons) if want is not None else ["wanted"] if wanted else []
            because += ["lease"] if entry.digest in self._inventory.leased else []
            because += [] if self._node.cluster.synced else ["the pods are not known yet"]
            because += [f"pinned by {each}" for each in self._state.list_keepers(entry.ref)]
            named = {"model": entry.ref.name, "version": entry.ref.version, "digest": str(entry.digest)}
            found.append({**named, "because": because or ["a pod that reads it"]})
        return sorted(found, key=lambda each: (each["model"], each["version"]))

    async def pin(self, ref: ModelRef, check: Check) -> None:
        """Pin a version; raises where neither the inventory nor the catalog has it."""
        async with self._pinning:
            check()
            self._state.require_known(ref)
            await self._write_pins(self._inventory.pins | {ref})

    async def verify(self, ref: ModelRef) -> dict[str, Any]:
        """Hash a held version now, and repair it. Return `{"digest", "outcome", "problem", "was_outdated", "seconds",
        "files", "bytes"}`; raises `Permanent` (`not_here`)."""
        digest = self._inventory.models.get(ref)
        if digest is None:
            here = "`holdfast ls` lists what is here"
            raise Permanent("not_here", f"{ref} is not on this node", f"{here}; `holdfast pull {ref}` fetches it")
        manifest = self._inventory.manifests[digest]
        result = await self._recheck.recheck(digest)
        return {
            "digest": str(digest),
            "outcome": result.outcome,
            "problem": result.problem,
            "was_outdated": result.was_outdated,
            "seconds": result.took_s,
            "files": len(manifest.files),
            "bytes": manifest.total_bytes,
        }

    async def unpin(self, ref: ModelRef, check: Check) -> tuple[bool, bool]:
        """Unpin a version; return whether the catalog still pins it, and whether it was pinned."""
        async with self._pinning:
            check()
            was_pinned = ref in self._inventory.pins
            if was_pinned:
                await self._write_pins(self._inventory.pins - {ref})
            return self._state.is_kept(ref), was_pinned

    async def _write_pins(self, pins: set[ModelRef]) -> None:
        await self._node.blocking.run(write_pins, self._node.layout, pins)
        self._inventory.pins = pins

    def _use(self) -> tuple[SpaceUse, HoldfastError | None]:
        """Return the space accounts and the disk's error, if any; the last known account while the disk fails."""
        try:
            return self._node.ledger.compute_use(), self._status_files.trouble_writing
        except HoldfastError as error:
            return self._node.ledger.compute_use_without_disk(), error

    def find_disk_error(self) -> Transient | None:
        """Return the error while the root's disk does not answer; None while it does."""
        return self._status_files.hanging

    def _describe_pull(self, pull: Pull) -> dict[str, Any]:
        status = self._status_files.get(pull.want.ref)
        state = State.QUEUED if pull.error is None else State.FAILED
        return {
            "pull": pull.id,
            "state": str(state if status is None else status.state),
            "digest": None if pull.digest is None else str(pull.digest),
            "error": None if pull.error is None else asdict(StatusError.of(pull.error)),
        }

    def _describe_model(self, status: ModelStatus) -> dict[str, Any]:
        ref = ModelRef(status.model, status.version)
        used = self._inventory.last_used_at(ref)
        leased = self._inventory.models.get(ref) in self._inventory.leased
        return {
            **status.document(),
            "last_used": None if used is None else timestamp(used),
            "leased": leased,
            "kept_by": self._state.list_keepers(ref),
        }


def _describe_evicted(victim: InventoryEntry, freed: int, used: float | None) -> dict[str, Any]:
    return {
        "model": victim.ref.name,
        "version": victim.ref.version,
        "digest": str(victim.digest),
        "bytes": freed,
        "reason": "not wanted",
        "last_used": None if used is None else timestamp(used),
    }
