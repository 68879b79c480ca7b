"""The facts about one version or pod, for `holdfast why`: who asks, what the catalog says, what the daemon does, what
stands in its way.

Law: runs on the event loop; reads the tables and decides nothing. What the facts mean for a person is said by
`cached/commands/reasons.py`. No credentials: a source is named only as the status shows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.reference import ModelRef
from cached.contract.status import StatusError, timestamp
from cached.core.catalog import Catalog
from cached.core.demand import Want, find_forbidden, prefetched_versions, unknown_model
from cached.core.versions.record import Blocked, Failed, Paused, Queued, Version
from cached.daemon.fetching import Fetching
from cached.node.cluster import AnnotatedPod, Cluster

_SHOWN = 10
_OPENING_S = 5.0  # an import takes half a second; a plugin may block for ever


class Explanations:
    """Answers `POST /v1/explain` on the node `name`. `find_not_ready_reason`: why the daemon is not ready, None when it
    is."""

    def __init__(self, name: str, fetching: Fetching, find_not_ready_reason: Callable[[], str | None]) -> None:
        self._name = name
        self._state = state = fetching.state
        self._inventory = state.inventory
        self._status_files = state.status_files
        self._cluster = state.cluster
        self._reconciler = fetching.reconciler
        self._open_source = fetching.open_source
        self._find_not_ready_reason = find_not_ready_reason

    async def explain_pod(self, name: str) -> dict[str, Any]:
        """Return the facts about a pod, `namespace/name` or a name that only one pod has, and about its versions.
        Raises `Permanent` (`unknown_pod`)."""
        pod = self._find_pod(name)
        return {
            "node": self._name,
            "pod": {
                "pod": pod.pod,
                "uid": pod.uid,
                "ending": pod.is_ending,
                "error": None if pod.error is None else asdict(StatusError.of(pod.error)),
            },
            "versions": [await self.explain(want.ref) for want in pod.wants],
        }

    def _find_pod(self, name: str) -> AnnotatedPod:
        known = {pod.uid: pod for pod in self._cluster.list_annotated()}
        for want in self._cluster.users():  # volumes want versions without annotations
            if want.uid not in known:
                wants = tuple(each for each in self._cluster.users() if each.uid == want.uid)
                known[want.uid] = AnnotatedPod(want.uid, want.pod, wants, is_ending=False)
        found = [pod for pod in known.values() if name in (pod.pod, pod.pod.partition("/")[2])]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(sorted(pod.pod for pod in found))
            raise Permanent("unknown_pod", f"{name} is the name of several pods: {names}", "name it as namespace/name")
        listed = sorted(pod.pod for pod in known.values())
        others = ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
        unlisted = "" if self._cluster.synced else " (the list of its pods has not come yet)"
        raise Permanent(
            "unknown_pod",
            f"no pod {name} that asks for weights is bound to this node, {self._name}{unlisted}; these are: "
            f"{others or 'none'}",
            "`kubectl get pod NAME -o wide` tells its node (none: it is not scheduled yet), `-o yaml` its annotations "
            "holdfast.dev/…; ask the daemon of that node",
        )

    async def explain_version(self, ref: ModelRef) -> dict[str, Any]:
        """Return the facts about a version, in the shape of those about a pod."""
        return {"node": self._name, "pod": None, "versions": [await self.explain(ref)]}

    async def explain(self, ref: ModelRef) -> dict[str, Any]:
        """Return the facts about a version."""
        catalog = self._state.catalog
        entry = None if catalog is None else catalog.find(ref)
        source = None if entry is None else await self._describe_source(entry.source)
        self._reconciler.refresh()
        record = self._state.get_record(ref)
        want, status = self._state.find_want(ref), self._status_files.get(ref)
        held = self._inventory.models.get(ref)
        refusal = self._state.find_refusal(ref)
        used = self._inventory.last_used_at(ref)
        return {
            "model": ref.name,
            "version": ref.version,
            "daemon": {"running": True, "node": self._name, "not_ready": self._find_not_ready_reason()},
            "status": None if status is None else status.document(),
            "digest": None if held is None else str(held),
            "bytes": None if held is None else self._inventory.size(ref),
            "last_used": None if used is None else timestamp(used),
            "leased": held is not None and held in self._inventory.leased,
            "kept_by": self._state.list_keepers(ref),
            "pods": self._describe_pods(ref, record, catalog),
            "asked_by": [] if want is None else list(want.reasons),
            "pulls": len(record.pulls),
            "refusal": None if refusal is None else asdict(StatusError.of(refusal)),
            "catalog": _describe_entry(ref, catalog, self._cluster, source),
            "fetch": self._describe_fetch(ref, record, want),
        }

    async def _describe_source(self, uri: str) -> str | None:
        """Return a source as it is shown; None for one that cannot be opened in time, which its status tells."""
        try:
            async with asyncio.timeout(_OPENING_S):
                source = await self._open_source(uri)
        except (HoldfastError, TimeoutError):
            return None
        try:
            return source.display
        finally:
            await source.aclose()

    def _describe_pods(self, ref: ModelRef, record: Version, catalog: Catalog | None) -> list[dict[str, Any]]:
        held, refused = self._inventory.models.get(ref), self._state.find_refused_pins(ref)
        now = asyncio.get_running_loop().time()
        waits = {each.pod: each.since for each in self._state.list_waiting() if each.ref == ref}
        found = []
        for pod in record.pods:
            error: HoldfastError | None = refused.get(pod.pin) if pod.pin is not None else None
            if error is None and catalog is not None:
                error = find_forbidden(catalog, ref, pod.namespace)
            since = waits.get(pod.pod)
            found.append(
                {
                    "pod": pod.pod,
                    "digest": None if pod.pin is None else str(pod.pin),
                    "waiting": held is None or pod.pin not in (None, held),
                    "waiting_s": None if since is None else now - since,
                    "error": None if error is None else asdict(StatusError.of(error)),
                }
            )
        return found

    def _describe_fetch(self, ref: ModelRef, record: Version, want: Want | None) -> dict[str, Any]:
        state, now = record.state, asyncio.get_running_loop().time()
        until = {Paused: "until", Blocked: "until", Failed: "retry_at"}.get(type(state))
        needed, free = self._state.find_need(ref) or (None, None)
        return {
            "state": type(state).__name__.lower(),
            "priority": None if want is None else want.priority.name.lower(),
            "failures": record.failures if record.fetch is None else record.fetch.failures,
            "next_try_s": None if until is None else max(0.0, getattr(state, until) - now),
            "ahead": self._state.count_ahead(ref) if isinstance(state, Queued) else None,
            "waiting_s": None if record.waiting_since is None else now - record.waiting_since,
            "needed_bytes": needed,
            "free_bytes": free,
        }


def _describe_entry(
    ref: ModelRef, catalog: Catalog | None, cluster: Cluster, source: str | None
) -> dict[str, Any] | None:
    """Return what the catalog says about a version, whose `source` is shown so; None before there is a catalog."""
    if catalog is None:
        return None
    model, entry = catalog.models.get(ref.name), catalog.find(ref)
    prefetches = model is not None and ref.version in model.prefetch
    return {
        "found": entry is not None,
        "error": None if entry is not None else asdict(StatusError.of(unknown_model(catalog, ref))),
        "source": source,
        "digest": None if entry is None or entry.digest is None else str(entry.digest),
        "prefetch": prefetches,
        "node_selector": dict(model.node_selector) if model is not None and prefetches else {},
        "selects_node": prefetches and ref in prefetched_versions(catalog, cluster.labels or {}),
        "namespaces": None if model is None or model.namespaces is None else sorted(model.namespaces),
    }
