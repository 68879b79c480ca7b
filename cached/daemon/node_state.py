"""What this node knows of versions: the catalog in force, the pods, the wants, the record of each version.

Law: reads decide nothing; only the reconciler changes the tables. Runs on the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, Catalog, CatalogVersion
from cached.core.demand import PodWant, Want, find_forbidden, find_used, is_kept, unknown_model
from cached.core.demand_index import DemandIndex
from cached.core.eviction import InventoryEntry
from cached.core.pod_fills import PodFills, WaitingPod
from cached.core.space import Ledger, NoSpace, Shortage
from cached.core.versions.record import Blocked, Held, Pull, Queued, Version
from cached.core.versions.table import VersionTable
from cached.fetch.version import VersionFetches
from cached.node.cluster import Cluster
from cached.node.inventory import Inventory, list_entries
from cached.node.status_files import StatusFiles


class NodeState:
    """`catalog`: the one in force, None before the first. `pods`: those of the last plan. `versions`: the records;
    `index` has the demand; `fills` the pods that wait. The constructor's arguments are the parts that all of this is
    read from. `clock`: in monotonic seconds."""

    def __init__(
        self,
        *,
        inventory: Inventory,
        status_files: StatusFiles,
        ledger: Ledger,
        fetches: VersionFetches,
        cluster: Cluster,
        clock: Callable[[], float],
    ) -> None:
        self.inventory = inventory
        self.status_files = status_files
        self.ledger = ledger
        self.fetches = fetches
        self.cluster = cluster
        self.clock = clock
        self.catalog: Catalog | None = None
        self.pods: Sequence[PodWant] | None = None
        self.versions = VersionTable(self.is_in_trouble)
        self.index = DemandIndex()
        self.fills = PodFills()

    # --- the catalog -----------------------------------------------------------------------------------------------

    def find_entry(self, ref: ModelRef) -> CatalogVersion | None:
        """Return the catalog's entry of a version; None without one. Raises `Transient` (`no_catalog`) before there is
        a catalog."""
        if self.catalog is None:
            raise Transient("no_catalog", "the catalog is not read yet", "import again in a moment")
        return self.catalog.find(ref)

    def list_resolvable(self) -> list[ModelRef]:
        """Return the versions with a catalog entry that `find_resolvable` returns."""
        return [ref for ref in self.inventory.models if self.find_resolvable(ref) is not None]

    def find_resolvable(self, ref: ModelRef) -> CatalogVersion | None:
        """Return the catalog's entry of a version whose source may change: on the node as the catalog asks for it,
        unpinned, not being fetched. Else None."""
        inventory, entry = self.inventory, (self.catalog or EMPTY_CATALOG).find(ref)
        if entry is None or entry.digest is not None or self.is_fetched(ref) or ref not in inventory.models:
            return None
        return entry if inventory.fetched[ref].request == entry.request else None

    def find_forbidden(self, want: PodWant) -> HoldfastError | None:
        """Return why the catalog does not give a version to the pod that wants it, None where it does; `Transient`
        (`no_catalog`) before there is a catalog."""
        if self.catalog is None:
            return Transient("no_catalog", "the catalog is not read yet", "ask again in a moment")
        return find_forbidden(self.catalog, want.ref, want.namespace)

    def is_known(self, ref: ModelRef) -> bool:
        """Return whether the node or the catalog has this version, so that metrics may name it."""
        return ref in self.inventory.models or (self.catalog or EMPTY_CATALOG).find(ref) is not None

    def require_known(self, ref: ModelRef) -> None:
        """Raise `Permanent` (`unknown_model`) unless the node or the catalog has this version; `Transient`
        (`no_catalog`) if the node does not have it and there is no catalog yet."""
        if self.is_known(ref):
            return
        if self.catalog is None:
            message = f"{ref} is not on this node, and the catalog is not read yet"
            raise Transient("no_catalog", message, "ask again in a moment")
        raise unknown_model(self.catalog, ref)

    def is_kept(self, ref: ModelRef) -> bool:
        """Return whether the catalog keeps this version from eviction."""
        return self.catalog is not None and is_kept(self.catalog, ref, self.cluster.labels)

    def list_keepers(self, ref: ModelRef) -> list[str]:
        """Return what keeps a version from eviction although nothing wants it."""
        pinned = ["holdfast pin"] if ref in self.inventory.pins else []
        return pinned + (["catalog"] if self.is_kept(ref) else [])

    # --- wants -----------------------------------------------------------------------------------------------------

    def find_want(self, ref: ModelRef) -> Want | None:
        """Return the want of a version; None where nothing on this node wants it."""
        return self.index.demand.wants.get(ref)

    def is_wanted(self, ref: ModelRef) -> bool:
        """Return whether the demand has this version."""
        return self.index.demand.keeps(ref) or ref in self.index.demand.wants

    def find_pull(self, id_: str) -> Pull | None:
        """Return the pull of this id; None for an unknown or an old one."""
        return self.versions.find_pull(id_)

    def find_refusal(self, ref: ModelRef) -> HoldfastError | None:
        """Return why all that ask for a version are refused, if they are."""
        return self.index.demand.refused.get(ref)

    def find_refused_pins(self, ref: ModelRef) -> Mapping[Digest, HoldfastError]:
        """Return the errors of the pins of a version that cannot be met."""
        return self.index.get_refused_pins(ref)

    def count_refused(self) -> Counter[str]:
        """Return the number of pods that a person must correct something for, by the code of the refusal."""
        found = {(pod.uid, error.code) for pod in self.pods or () if (error := self._find_pod_refusal(pod))}
        return Counter(code for _, code in found)

    def _find_pod_refusal(self, pod: PodWant) -> Permanent | None:
        refused = self.index.get_forbidden(pod.ref).get(pod.namespace) or self.index.demand.refused.get(pod.ref)
        if refused is None and pod.pin is not None:
            return self.index.get_refused_pins(pod.ref).get(pod.pin)
        return refused

    # --- waits -----------------------------------------------------------------------------------------------------

    @property
    def waiting_changes(self) -> int:
        """A number that differs from an earlier one where `list_waiting` may."""
        return self.fills.changes

    def list_waiting(self) -> tuple[WaitingPod, ...]:
        """Return the pods of this node that wait, each with its version, the longest first; times are monotonic."""
        pods = self.cluster.pods()
        records = {pod.ref: self.versions.get(pod.ref).waiting_since for pod in pods}
        since = {ref: began for ref, began in records.items() if began is not None}
        return self.fills.list_waiting(pods, self.inventory.models, since)

    def list_waits(self) -> dict[ModelRef, float]:
        """Return how long a pod has waited for each version for which one waits, in seconds."""
        now = self.clock()
        return {ref: now - since for ref, since in self.versions.waits.items()}

    # --- fetches ---------------------------------------------------------------------------------------------------

    def get_record(self, ref: ModelRef) -> Version:
        """Return the record of a version: who waits for it, and since when on the state's clock."""
        return self.versions.get(ref)

    def is_fetched(self, ref: ModelRef) -> bool:
        """Return whether a fetch of the version has not ended."""
        return ref in self.versions.fetching

    def is_fetching(self) -> bool:
        """Return whether a fetch has not ended."""
        return bool(self.versions.fetching)

    def is_in_trouble(self, ref: ModelRef) -> bool:
        """Return whether the fetch of a version waits for its source after an error."""
        status = self.status_files.get(ref)
        return status is not None and status.error is not None

    def count_fetches(self) -> Counter[str]:
        """Return the number of fetches that have not ended, by state: `queued`, `running`, `paused`, `blocked`,
        `stopping`, or `no_room` while nothing can be evicted for one that is short of space."""
        return Counter(_name_fetch(self.versions.get(ref)) for ref in self.versions.fetching)

    def count_ahead(self, ref: ModelRef) -> int:
        """Return the number of queued fetches that run before that of `ref`."""
        fetch = self.versions.get(ref).fetch
        others = [self.versions.get(other) for other in self.versions.fetching if other != ref]
        queued = [other.state.fetch for other in others if isinstance(other.state, Queued)]
        return 0 if fetch is None else sum(other.urgency < fetch.urgency for other in queued)

    # --- space -----------------------------------------------------------------------------------------------------

    def compute_short_bytes(self, free: int) -> int:
        """Return the bytes that must become free beside those `free` now before the fetches that are short of space
        can go on."""
        held = {each.ref: self.fetches.compute_space(each.ref).total() for each in self.versions.short_of_space}
        needed = sum(max(0, self.versions.get(ref).needs_bytes - size) for ref, size in held.items())
        return max(0, needed - free)

    def compute_shortage(self, ref: ModelRef, blocked: Blocked) -> Shortage:
        """Return what must be free for a blocked fetch: the most that its tries found. Raises `Transient` where the
        disk fails."""
        shortage = self.ledger.compute_shortage(blocked.error)
        if not isinstance(blocked.error, NoSpace):
            return shortage
        found = self.versions.get(ref).needs_bytes - self.fetches.compute_space(ref).total()
        return replace(shortage, bytes=max(shortage.bytes, found))

    def find_need(self, ref: ModelRef) -> tuple[int, int] | None:
        """Return the bytes that must be free for a fetch blocked on space, and those that are; None for another one or
        if the disk fails."""
        state = self.versions.get(ref).state
        if not isinstance(state, Blocked):
            return None
        try:
            return self.compute_shortage(ref, state).bytes, self.ledger.compute_use().free
        except Transient:
            return None

    # --- the inventory ---------------------------------------------------------------------------------------------

    def find_held(self, ref: ModelRef) -> Held | None:
        """Return the content that the node has under a version's name, and the request that it was fetched for."""
        inventory = self.inventory
        return Held(inventory.models[ref], inventory.fetched[ref].request) if ref in inventory.models else None

    def mark_used(self) -> None:
        """Set the last use of the versions that pods want to now."""
        for ref in find_used(self.pods or (), self.inventory.models, self.catalog):
            self.inventory.mark_used(ref)

    def list_inventory(self) -> list[InventoryEntry]:
        """Return the versions on this node, for the planner."""
        self.mark_used()
        return list_entries(self.inventory, self.inventory.models, self.cluster, self.catalog)


def _name_fetch(version: Version) -> str:
    is_skipped = version.fetch is not None and version.fetch.skipped
    return "no_room" if is_skipped else type(version.state).__name__.lower()
