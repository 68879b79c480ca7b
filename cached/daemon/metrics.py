"""The daemon's Prometheus metrics, under the names of section 7 of the design.

Law: labels are bounded: source kinds, error codes, and the versions that are on this node or wanted by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cached.contract.reference import ModelRef
from cached.contract.release import VERSION
from cached.core.demand import count_waiting
from cached.core.space import SpaceUse
from cached.fetch.workers import Workers
from cached.node.cluster import Cluster
from cached.node.inventory import Inventory
from cached.node.status_files import StatusFiles

_CLUSTER_GAUGES = {  # `Cluster.figures`
    "kube_connected": "1 while the watch of this node's pods stands.",
    "kube_connection_changed_timestamp_seconds": "When that last changed.",
    "kube_relists": "Lists of the pods after the first one.",
    "kube_events_dropped": "Events that were too many to be written.",
    "kube_node_in_force": "1 where the node's labels are as they should be.",
}
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class DaemonMetrics:
    """The daemon's registry and counters, which may be incremented from any thread."""

    def __init__(self) -> None:
        # It would add a `_created` series to each counter.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it bare
        self.registry = CollectorRegistry()
        for make in (ProcessCollector, PlatformCollector, GCCollector):
            make(registry=self.registry)
        self._fetch_bytes = self._counter("fetch_bytes", "Bytes received from sources.", ["source"])
        self._fetch_errors = self._counter("fetch_errors", "Failed attempts at a source.", ["source", "reason"])
        self._requests = self._counter("requests", "New wants, by what was there: hit, miss, joined.", ["result"])
        self._verify_failures = self._counter("verify_failures", "Bytes with a wrong digest.", ["where"])
        self._evictions = self._counter("evictions", "Versions evicted.", ["reason"])
        self._scrub_bytes = self._counter("scrub_bytes", "Bytes hashed again by the scrub.", [])
        self._fetch_seconds = Histogram(
            "holdfast_fetch_seconds",
            "From a blob's first request to its commit.",
            ["source"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._gate_wait = Histogram(
            "holdfast_gate_wait_seconds",
            "From the first pod's want to publication.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        Info("holdfast_build", "The daemon's version.", registry=self.registry).info({"version": VERSION})
        self._requests_by_result = {result: self._requests.labels(result) for result in ("hit", "miss", "joined")}

    def received(self, kind: str, size: int) -> None:
        self._fetch_bytes.labels(kind).inc(size)

    def fetch_failed(self, kind: str, code: str) -> None:
        self._fetch_errors.labels(kind, code).inc()

    def fetched(self, kind: str, seconds: float) -> None:
        self._fetch_seconds.labels(kind).observe(seconds)

    def verify_failed(self, where: str) -> None:
        self._verify_failures.labels(where).inc()

    def count_request(self, result: str) -> None:
        self._requests_by_result[result].inc()

    def count_eviction(self, reason: str) -> None:
        self._evictions.labels(reason).inc()

    def count_scrubbed_bytes(self, size: int) -> None:
        self._scrub_bytes.inc(size)

    def observe_gate_wait(self, seconds: float) -> None:
        self._gate_wait.observe(seconds)

    def add_scrub_age(self, compute_oldest_age_s: Callable[[], float]) -> None:
        """Add the gauge of the scrub, which is not there without one."""
        text = "Since the file was hashed whose last hash is the oldest."
        Gauge("holdfast_scrub_oldest_age_seconds", text, registry=self.registry).set_function(compute_oldest_age_s)

    def render(self) -> bytes:
        """Return the exposition in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"holdfast_{name}", text, labels, registry=self.registry)


class GaugeCollector(Collector):
    """The gauges, computed at each scrape. `compute_use` returns the space accounts, `is_known` whether metrics may
    name a version."""

    def __init__(
        self,
        inventory: Inventory,
        status_files: StatusFiles,
        cluster: Cluster,
        workers: Workers,
        *,
        compute_use: Callable[[], SpaceUse],
        is_known: Callable[[ModelRef], bool],
    ) -> None:
        self._inventory = inventory
        self._status_files = status_files
        self._cluster = cluster
        self._workers = workers
        self._compute_use = compute_use
        self._is_known = is_known

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        use, blobs = self._compute_use(), self._workers.in_progress()
        waiting = count_waiting(self._cluster.pods(), self._inventory.models)
        store = GaugeMetricFamily("holdfast_store_bytes", "Bytes of the store by state.", labels=["state"])
        for state, size in (("committed", use.used), ("reserved", use.reserved), ("dying", use.dying)):
            store.add_metric([state], size)
        yield store
        yield GaugeMetricFamily("holdfast_store_capacity_bytes", "What the store may fill.", value=use.capacity)
        yield GaugeMetricFamily("holdfast_fetch_in_progress", "Blobs under way.", value=blobs)
        yield GaugeMetricFamily("holdfast_pods_waiting", "Pods whose weights are not here yet.", value=waiting)
        for name, value in self._cluster.figures().items():
            yield GaugeMetricFamily(f"holdfast_{name}", _CLUSTER_GAUGES[name], value=value)
        yield from self._collect_models()

    def _collect_models(self) -> Iterable[Metric]:
        labels = ["model", "version"]
        ready = GaugeMetricFamily("holdfast_model_ready", "1 where the version is published.", labels=labels)
        size = GaugeMetricFamily("holdfast_model_bytes", "The version's size in bytes.", labels=labels)
        pinned = GaugeMetricFamily("holdfast_model_pinned", "1 where a digest was promised.", labels=labels)
        trust = GaugeMetricFamily(
            "holdfast_model_trust", "1, with what the version's source vouched for.", labels=[*labels, "trust"]
        )
        stale = GaugeMetricFamily("holdfast_model_stale", "1 where it is not what it should be.", labels=labels)
        used = GaugeMetricFamily("holdfast_model_last_used_timestamp_seconds", "When it was last used.", labels=labels)
        for status in self._status_files.all():
            ref, key = ModelRef(status.model, status.version), [status.model, status.version]
            if not self._is_known(ref):
                continue
            held = ref in self._inventory.models
            ready.add_metric(key, int(held))
            pinned.add_metric(key, int(status.pinned))
            stale.add_metric(key, int(status.stale is not None))
            if held:
                size.add_metric(key, self._inventory.size(ref))
                record = self._inventory.fetched.get(ref)
                if record is not None and record.verdict.trust is not None:
                    trust.add_metric([*key, record.verdict.trust], 1)
            if (last_used := self._inventory.last_used_at(ref)) is not None:
                used.add_metric(key, last_used)
        yield from (ready, size, pinned, stale, trust, used)
