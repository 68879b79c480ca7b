"""The Kubernetes cluster of this node: the pod watch, the node's labels and summary, and the Events, as one.

Law: implements the Protocol of `cached.node.cluster`; the only module that creates the parts of this package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus
from cached.core.demand import PodWant
from cached.kube.client import KubeClient
from cached.kube.cluster import ApiServer
from cached.kube.events import FAILED, EventQueue
from cached.kube.node import NodeReport
from cached.kube.pod_events import PodEvents, refusal, summary
from cached.kube.pods import PodWatch
from cached.node.cluster import AnnotatedPod, PodLife


class KubernetesCluster:
    """A node in a Kubernetes cluster. Methods as in the Protocol."""

    def __init__(self, cluster: ApiServer, node: str) -> None:
        self._client = KubeClient(cluster)
        self._events = EventQueue(self._client, node)
        self._watch = PodWatch(self._client, node, refusal(self._events.add))
        self._report = NodeReport(self._client, node)
        self._pod_events = PodEvents(self._events.add, self._watch.find_name)

    @property
    def synced(self) -> bool:
        return self._watch.synced

    @property
    def labels(self) -> Mapping[str, str] | None:
        return self._report.labels or None  # every node has labels, once they are read

    def pods(self) -> tuple[PodWant, ...]:
        return self._watch.list_wants()

    def users(self) -> tuple[PodWant, ...]:
        return self._watch.list_users()

    def find_pod(self, uid: str) -> PodLife:
        return self._watch.find_life(uid)

    def list_annotated(self) -> tuple[AnnotatedPod, ...]:
        return self._watch.list_annotated()

    def list_unmounted(self) -> frozenset[str]:
        return frozenset()

    async def list_pods_now(self) -> tuple[PodWant, ...]:
        return await self._watch.list_users_now()

    def published(self, digests: frozenset[Digest]) -> None:
        self._report.publish(digests)

    def withdrawn(self, digest: Digest) -> AbstractAsyncContextManager[object]:
        return self._report.withdrawn(digest)

    async def report_csi(self, *, ready: bool) -> None:
        await self._report.report_csi(ready=ready)

    def tell_pods(self, find: Callable[[ModelRef], ModelStatus | None]) -> None:
        self._pod_events.send_new(self._watch.list_wants(), find)

    def summarise(self, statuses: Iterable[ModelStatus], used: int, capacity: int) -> None:
        self._report.summarise(summary(statuses, used, capacity))

    def lost(self, refs: Iterable[ModelRef], reason: str) -> None:
        for ref in refs:
            for pod in self._watch.find_pods(ref):
                self._events.add(pod, FAILED, f"{ref}: {ref.drop_name(reason)}", "Warning")

    def figures(self) -> Mapping[str, float]:
        watch, events = self._watch.statistics, self._events.statistics
        return {
            "kube_connected": float(watch.connected),
            "kube_connection_changed_timestamp_seconds": watch.since,
            "kube_relists": float(max(0, watch.lists - 1)),
            "kube_watch_failures_total": float(watch.failures),
            "kube_events_dropped": float(events.dropped),
            "kube_events_refused_total": float(events.refused),
            "kube_event_failures_total": float(events.failures),
            "kube_node_in_force": float(self._report.in_force),
            "kube_node_failures_total": float(self._report.failures),
        }

    async def run(self, changed: Callable[[], None]) -> None:
        async with self._client, asyncio.TaskGroup() as group:
            group.create_task(self._watch.run(changed), name="pods")
            group.create_task(self._report.run(changed), name="node")
            group.create_task(self._events.run(), name="events")
