"""Whether one version may be evicted now.

Law: the planner has chosen the version; here is asked once more, before its deletion, because the plan may be outdated
by then. Changes nothing but the time until which the API server is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.reference import ModelRef
from cached.core import planner
from cached.core.catalog import EMPTY_CATALOG
from cached.core.demand import Priority, find_forbidden
from cached.core.eviction import count_excess
from cached.daemon.node_state import NodeState
from cached.node.inventory import list_entries

_UNLISTED_PAUSE_S = 10.0  # without evictions: each tries to hold a lock while it asks, and gates wait for that


class EvictionGuard:
    """Protects versions that a plan would evict and that are in use, wanted, or not in the way. `low_watermark`: share
    of the capacity. `refresh` brings the demand of `state` up to date."""

    def __init__(self, state: NodeState, low_watermark: float, refresh: Callable[[], None]) -> None:
        self._state = state
        self._low = low_watermark
        self._refresh = refresh
        self._resumes_at = -inf
        self.unlisted_pods: Transient | None = None  # why the last eviction could not ask for the pods

    def is_paused(self) -> bool:
        """Return whether nothing is evicted for a while, since the pods could not be asked for."""
        return self._state.clock() < self._resumes_at

    def must_stay(self, ref: ModelRef, digest: Digest, reason: str) -> bool:
        """Return whether a version need not or must not be evicted now."""
        self._refresh()
        state, blocked = self._state, self._state.versions.blocked
        if reason == "space" and not blocked:
            return True
        if reason == "watermark" and count_excess(state.ledger.compute_use(), self._low, self._low) == 0:
            return True
        for_pod = reason == "space" and blocked[0][1].fetch.want.priority is Priority.WAITING
        found = list_entries(state.inventory, [ref], state.cluster, state.catalog)
        if not found or found[0].digest != digest:
            return True
        entry = planner.mark_protected(found[0], state.index.demand, {each for each, _ in blocked})
        return not (entry.evictable or (for_pod and entry.evictable_for_pod))

    async def is_wanted_now(self, ref: ModelRef, digest: Digest, reason: str) -> bool:
        """Return whether a version need not or must not be evicted, also by the pods that the watch has not seen: the
        gate of one may have opened and ended, and its lease not be taken yet. Raises `HoldfastError` where the API
        server does not say; then nothing is evicted for a while."""
        cluster = self._state.cluster
        try:
            pods = await cluster.list_pods_now()
        except HoldfastError as error:
            self.unlisted_pods = Transient(
                "pods_unknown",
                f"nothing is evicted while the pods of this node are unknown: {error.message}",
                error.remedy or "check that the API server answers",
            )
            self._resumes_at = self._state.clock() + _UNLISTED_PAUSE_S
            raise self.unlisted_pods from error
        self.unlisted_pods = None
        if self.must_stay(ref, digest, reason):
            return True
        known, catalog = {pod.uid for pod in cluster.users()}, self._state.catalog or EMPTY_CATALOG
        return any(
            pod.ref == ref and pod.pin in (None, digest) and find_forbidden(catalog, ref, pod.namespace) is None
            for pod in pods
            if pod.uid not in known
        )
