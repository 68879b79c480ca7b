"""What the page tells: collected from the daemon's parts, without texts for people.

Law: on the event loop, without a file. `fingerprint` tells cheaply whether `collect` may give something else, so that a
page that stands open costs nearly nothing while nothing happens.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

from cached.contract.errors import HoldfastError
from cached.contract.held_bytes import HeldBytes
from cached.contract.reference import ModelRef
from cached.contract.status import DaemonStatus, ModelStatus, timestamp
from cached.core.demand import PodWant
from cached.core.space import SpaceUse
from cached.daemon.catalog.catalog_file import CatalogFile
from cached.daemon.node_state import NodeState
from cached.daemon.page.sizes import SnapshotSizes
from cached.node.status_files import RecentError
from cached.sources.registry import find_kind

_RECEIVED, _FAILED = "holdfast_fetch_bytes_total", "holdfast_fetch_errors_total"
_SPACE_STEPS = 1000  # of the capacity: less of a change of the free space is no news
_CLOCK_JUMP_S = 2.0


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """One version. `size`: of its snapshot, where it is here; `names`: how many versions have that snapshot. `users`:
    pods that may read it. `waiting`: pods whose version is not here, each with the time since when it waits, the
    longest first; `pulls` that are open. `kept`: pinned against eviction. Times in UTC."""

    status: ModelStatus
    size: HeldBytes | None
    names: int
    leased: bool
    users: tuple[str, ...]
    waiting: tuple[tuple[str, str | None], ...]
    pulls: int
    kept: bool
    last_used: str | None

    @property
    def waiting_since(self) -> str | None:
        """When the pod that waits longest began to; None where that is not known."""
        return self.waiting[0][1] if self.waiting else None


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """One kind of source: the versions here that came from it and their bytes; what was received since the start, and
    the attempts that failed."""

    kind: str
    versions: int
    held_bytes: int
    received_bytes: int
    failures: int


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The account in bytes. `by_snapshot`: the names of each snapshot, and the bytes that no other one shares; the
    largest first. `shared`: of blobs that several have. `unlinked`: committed blobs that none has."""

    use: SpaceUse
    by_snapshot: tuple[tuple[tuple[ModelRef, ...], int], ...]
    shared: int
    unlinked: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the page tells. `catalog_error`: why the catalog's file as it is now is not in force; `has_catalog`:
    whether an earlier one is."""

    daemon: DaemonStatus
    not_ready: str | None
    disk_error: HoldfastError | None
    catalog_error: HoldfastError | None
    has_catalog: bool
    rejected: tuple[tuple[str, int, str], ...]
    disconnected_since: str | None
    versions: tuple[VersionFacts, ...]
    disk: DiskFacts
    sources: tuple[SourceFacts, ...]
    recent_errors: tuple[RecentError, ...]


class FactsSource(Protocol):
    """Where the page has its facts from."""

    async def measure(self) -> None:
        """Bring up to date what takes more than a moment; call it before the others."""

    def fingerprint(self) -> tuple[object, ...]:
        """Return a value that differs from an earlier one where `collect` may; it costs microseconds."""

    def collect(self) -> Facts:
        """Return the facts; its cost grows with the number of versions."""


class NodeFacts:
    """Collects the facts of one daemon. `compute_use` returns the account, and the disk's error if any."""

    def __init__(
        self,
        *,
        state: NodeState,
        catalog: CatalogFile,
        registry: CollectorRegistry,
        compute_use: Callable[[], tuple[SpaceUse, HoldfastError | None]],
        find_not_ready_reason: Callable[[], str | None],
    ) -> None:
        self._inventory = state.inventory
        self._status_files = state.status_files
        self._ledger = state.ledger
        self._cluster = state.cluster
        self._state = state
        self._catalog = catalog
        self._registry = registry.restricted_registry([_RECEIVED, _FAILED])
        self._compute_use = compute_use
        self._find_not_ready_reason = find_not_ready_reason
        self._sizes = SnapshotSizes(state.inventory)
        self._epoch = time.time() - time.monotonic()  # of the monotonic clock, in seconds since the epoch

    async def measure(self) -> None:
        """Bring the sizes of the snapshots up to date, in steps."""
        await self._sizes.update()

    def fingerprint(self) -> tuple[object, ...]:
        """Return a value that differs from an earlier one where `collect` may; it costs microseconds."""
        use, error = self._compute_use()
        step = max(1, use.capacity // _SPACE_STEPS)
        return (
            self._status_files.changes,
            self._inventory.changes,
            self._sizes.changes,
            self._inventory.leased,
            self._inventory.pins,
            self._cluster.users(),
            self._state.waiting_changes,
            self._cluster.figures().get("kube_connected"),
            (use.capacity, use.used, use.reserved, use.dying, use.free // step),
            None if error is None else error.code,
            self._find_not_ready_reason(),
            self._catalog.trouble,
            self._catalog.rejected,
        )

    def collect(self) -> Facts:
        """Return the facts; its cost grows with the number of versions."""
        self._state.mark_used()
        epoch = time.time() - time.monotonic()
        if abs(epoch - self._epoch) > _CLOCK_JUMP_S:  # else times of the same moment would differ by a second
            self._epoch = epoch
        use, error = self._compute_use()
        figures = self._cluster.figures()
        is_cut_off = figures.get("kube_connected") == 0.0
        since = figures.get("kube_connection_changed_timestamp_seconds", 0.0)
        statuses = self._status_files.all()
        return Facts(
            daemon=self._status_files.daemon,
            not_ready=self._find_not_ready_reason(),
            disk_error=error,
            catalog_error=self._catalog.trouble,
            has_catalog=self._catalog.not_ready_reason is None,
            rejected=tuple((each.where, each.line, each.reason) for each in self._catalog.rejected),
            disconnected_since=timestamp(since) if is_cut_off else None,
            versions=self._describe_versions(statuses),
            disk=self._describe_disk(use),
            sources=self._describe_sources(statuses),
            recent_errors=self._status_files.recent_errors,
        )

    def _describe_versions(self, statuses: tuple[ModelStatus, ...]) -> tuple[VersionFacts, ...]:
        models = self._inventory.models
        users = _names_by_version(self._cluster.users())
        waiting: defaultdict[ModelRef, list[tuple[str, str | None]]] = defaultdict(list)
        for each in self._state.list_waiting():
            waiting[each.ref].append((each.pod, None if each.since is None else timestamp(self._epoch + each.since)))
        named = self._inventory.named()
        found = []
        for status in statuses:
            ref = ModelRef(status.model, status.version)
            record, digest = self._state.get_record(ref), models.get(ref)
            still = {name for name, _ in waiting[ref]}
            own_users = tuple(name for name in users.get(ref, ()) if name not in still)
            leased = digest in self._inventory.leased
            found.append(
                VersionFacts(
                    status=status,
                    size=None if digest is None else self._sizes.get(digest),
                    names=0 if digest is None else len(named[digest]),
                    leased=leased,
                    users=own_users,
                    waiting=tuple(waiting[ref]),
                    pulls=sum(pull.error is None and pull.digest is None for pull in record.pulls),
                    kept=ref in self._inventory.pins or self._state.is_kept(ref),
                    last_used=None if leased or own_users else self._find_last_use(ref),
                )
            )
        return tuple(found)

    def _find_last_use(self, ref: ModelRef) -> str | None:
        used = self._inventory.last_used.get(ref)
        return None if used is None else timestamp(self._epoch + used)

    def _describe_disk(self, use: SpaceUse) -> DiskFacts:
        sizes = [(tuple(sorted(refs)), self._sizes.get(digest)) for digest, refs in self._inventory.named().items()]
        own = [(refs, size.exclusive) for refs, size in sizes if size is not None and size.exclusive]
        return DiskFacts(
            use=use,
            by_snapshot=tuple(sorted(own, key=lambda each: (-each[1], each[0]))),
            shared=self._sizes.shared,
            unlinked=max(0, use.used - self._sizes.total),
            quarantined=self._ledger.quarantined_bytes,
        )

    def _describe_sources(self, statuses: tuple[ModelStatus, ...]) -> tuple[SourceFacts, ...]:
        held: defaultdict[str, list[int]] = defaultdict(list)
        for status in statuses:
            ref = ModelRef(status.model, status.version)
            if ref in self._inventory.models:
                record = self._inventory.fetched.get(ref)
                held[find_kind("" if record is None else record.source)].append(self._inventory.size(ref))
        counted: dict[str, defaultdict[str, int]] = {_RECEIVED: defaultdict(int), _FAILED: defaultdict(int)}
        for metric in self._registry.collect():
            for sample in metric.samples:
                if sample.name in counted:
                    counted[sample.name][sample.labels["source"]] += int(sample.value)
        kinds = sorted({*held, *counted[_RECEIVED], *counted[_FAILED]})
        return tuple(
            SourceFacts(kind, len(held[kind]), sum(held[kind]), counted[_RECEIVED][kind], counted[_FAILED][kind])
            for kind in kinds
        )


def _names_by_version(pods: tuple[PodWant, ...]) -> dict[ModelRef, tuple[str, ...]]:
    names: defaultdict[ModelRef, set[str]] = defaultdict(set)
    for pod in pods:
        names[pod.ref].add(pod.pod)
    return {ref: tuple(sorted(each)) for ref, each in names.items()}
