"""The daemon's Prometheus metrics: what is counted as it happens, and the figures of the node at each scrape.

Law: names, labels and bounds are those of `cached.contract.metrics.daemon`. Labels are bounded: source kinds, error
codes, and the versions that are on this node or in its catalog. Nothing is created at a scrape but text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache, partial

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

from cached.contract.held_bytes import HeldBytes, split_held
from cached.contract.metrics import daemon as table
from cached.contract.metrics.metric import Metric
from cached.contract.reference import ModelRef
from cached.contract.release import VERSION
from cached.contract.status import ModelStatus, State
from cached.core.demand import count_waiting, count_waiting_by_version
from cached.core.space import SpaceUse
from cached.daemon.catalog.catalog_file import CatalogInForce
from cached.daemon.node_state import NodeState
from cached.fetch.pool.peer_states import PeerState
from cached.fetch.workers import Workers

FETCH_STATES = ("queued", "running", "paused", "blocked", "no_room", "stopping")
_DIGEST_DIGITS = 12  # of a digest in a label
_MOVING = frozenset({State.FETCHING, State.VERIFYING, State.PUBLISHING})


class PeerMetrics:
    """The counters of a node of a pool."""

    def __init__(self, sent: Counter, refusals: Counter, manifests: Counter) -> None:
        self._sent = sent
        self._refusals = refusals
        self._manifests = manifests

    def sent(self, size: int) -> None:
        """Count bytes of blobs that were sent."""
        self._sent.inc(size)

    def refused(self, status: int) -> None:
        """Count a request that got an error status."""
        self._refusals.labels(str(status)).inc()

    def resolved(self) -> None:
        """Count a manifest that another node sent."""
        self._manifests.inc()


class DaemonMetrics:
    """The daemon's registry and counters, which may be incremented from any thread."""

    def __init__(self) -> None:
        # It would add a `_created` series to each counter.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it bare
        self.registry = CollectorRegistry()
        for make in (ProcessCollector, PlatformCollector, GCCollector):
            make(registry=self.registry)
        self._fetch_bytes = self._counter(table.FETCH_BYTES)
        self._fetch_bytes_of_kind = cache(self._fetch_bytes.labels)  # asked for each piece that comes
        self._fetch_errors = self._counter(table.FETCH_ERRORS)
        self._requests = self._counter(table.REQUESTS)
        self._verify_failures = self._counter(table.VERIFY_FAILURES)
        self._evictions = self._counter(table.EVICTIONS)
        self._rechecks = self._counter(table.RECHECKS)
        self._scrub_bytes = self._counter(table.SCRUB_BYTES)
        self._resolved = self._gauge(table.SOURCE_RESOLVED)
        self._fetch_seconds = self._histogram(table.FETCH_SECONDS)
        self._gate_wait = self._histogram(table.GATE_WAIT)
        self._pod_fill = self._histogram(table.POD_FILL)
        build = table.BUILD_INFO
        Info(build.base, build.help, registry=self.registry).info({"version": VERSION})
        self._requests_by_result = {result: self._requests.labels(result) for result in ("hit", "miss", "joined")}
        for where in ("fetch", "import", "scrub", "recheck"):  # so that a rate includes the first of each
            self._verify_failures.labels(where)
        for reason in ("space", "watermark", "gc", "import"):
            self._evictions.labels(reason)
        for outcome in ("right", "restored", "withdrawn", "failed"):
            self._rechecks.labels(outcome)

    def received(self, kind: str, size: int) -> None:
        self._fetch_bytes_of_kind(kind).inc(size)

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

    def observe_pod_fill(self, seconds: float) -> None:
        self._pod_fill.observe(seconds)

    def resolved(self, kind: str) -> None:
        self._resolved.labels(kind).set_to_current_time()

    def count_recheck(self, outcome: str) -> None:
        self._rechecks.labels(outcome).inc()

    def add_scrub(self, compute_oldest_age_s: Callable[[], float], period_s: float) -> None:
        """Add the gauges of the scrub, which are not there without one."""
        self._gauge(table.SCRUB_AGE).set_function(compute_oldest_age_s)
        self._gauge(table.SCRUB_PERIOD).set(period_s)

    def add_peers(self, count_peers: Callable[[PeerState], int]) -> PeerMetrics:
        """Add the metrics of a node of a pool, which are not there without one. `count_peers` returns the number of
        other nodes in a state; each member is in one."""
        peers = self._gauge(table.PEERS)
        for state in PeerState:
            peers.labels(state.value).set_function(partial(count_peers, state))
        counters = (table.PEER_SENT, table.PEER_REFUSALS, table.PEER_MANIFESTS)
        return PeerMetrics(*map(self._counter, counters))

    def render(self) -> bytes:
        """Return the exposition in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.base, metric.help, metric.labels, registry=self.registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry)


class NodeFigures:
    """The figures of the node, as text. `get_catalog` returns the catalog in force, and whether its file is
    unusable."""

    def __init__(
        self,
        workers: Workers,
        state: NodeState,
        *,
        compute_use: Callable[[], SpaceUse],
        get_catalog: Callable[[], tuple[CatalogInForce | None, bool]],
    ) -> None:
        self._inventory = state.inventory
        self._cluster = state.cluster
        self._workers = workers
        self._state = state
        self._compute_use = compute_use
        self._get_catalog = get_catalog
        self._cluster_metrics = {metric.name.removeprefix("holdfast_"): metric for metric in table.CLUSTER}

    def render(self) -> str:
        """Return the exposition."""
        return "".join(self._render())

    def _render(self) -> Iterator[str]:
        use = self._compute_use()
        yield table.STORE_BYTES.head()
        for state, size in (("committed", use.used), ("reserved", use.reserved), ("dying", use.dying)):
            yield table.STORE_BYTES.sample(size, state)
        yield from _gauge(table.STORE_CAPACITY, use.capacity)
        yield from _gauge(table.STORE_FREE, use.free)
        yield from _gauge(table.SPACE_SHORT, self._state.compute_short_bytes(use.free))
        yield from _gauge(table.FETCH_IN_PROGRESS, self._workers.in_progress())
        counts = self._state.count_fetches()
        yield table.FETCHES.head()
        for state in FETCH_STATES:
            yield table.FETCHES.sample(counts.get(state, 0), state)
        yield from _gauge(table.PODS_WAITING, count_waiting(self._cluster.pods(), self._inventory.models))
        yield table.PODS_REFUSED.head()
        for code, pods in sorted(self._state.count_refused().items()):
            yield table.PODS_REFUSED.sample(pods, code)
        yield from self._render_catalog()
        for name, value in self._cluster.figures().items():
            yield from _gauge(self._cluster_metrics[name], value)

    def _render_catalog(self) -> Iterator[str]:
        catalog, is_unusable = self._get_catalog()
        yield from _gauge(table.CATALOG_UNUSABLE, is_unusable)
        yield from _gauge(table.CATALOG_GENERATION, 0 if catalog is None else catalog.generation)
        if catalog is not None:
            yield table.CATALOG_INFO.head()
            yield table.CATALOG_INFO.sample(1, catalog.sha256[:_DIGEST_DIGITS])
            yield from _gauge(table.CATALOG_LOADED, catalog.since)
            yield from _gauge(table.CATALOG_MODELS, catalog.models)
            yield from _gauge(table.CATALOG_REJECTED, catalog.rejected)


class VersionFigures:
    """The figures of each version, as text: thousands of series, which objects of prometheus_client would make in
    twice the time."""

    def __init__(self, state: NodeState) -> None:
        self._inventory = state.inventory
        self._status_files = state.status_files
        self._cluster = state.cluster
        self._state = state
        self._split: dict[ModelRef, HeldBytes] = {}
        self._split_at = -1  # the number of changes of the inventory then
        self._heads = {metric.name: metric.head() for metric in table.VERSIONS}

    def render(self) -> str:
        """Return the exposition."""
        lines = {name: [head] for name, head in self._heads.items()}
        self._update_split()
        pods = count_waiting_by_version(self._cluster.pods(), self._inventory.models)
        waits, now = self._state.list_waits(), time.time()
        for status in self._status_files.all():
            ref = ModelRef(status.model, status.version)
            if not self._state.is_known(ref):
                continue
            labels = f'{{model="{ref.name}",version="{ref.version}"'  # safe characters only: none needs an escape
            self._add_status(lines, labels, ref, status)
            self._add_held(lines, labels, ref)
            if ref in pods:
                _add(lines, table.MODEL_PODS_WAITING, labels, pods[ref])
            if ref in waits:
                _add(lines, table.MODEL_WAITING_SINCE, labels, now - waits[ref])
        return "".join(line for of_metric in lines.values() if len(of_metric) > 1 for line in of_metric)

    def _add_status(self, lines: Lines, labels: str, ref: ModelRef, status: ModelStatus) -> None:
        reason = status.error.code if status.error is not None else status.stale.reason if status.stale else ""
        state = f'{labels},state="{status.listed_state.value}"' + (f',reason="{reason}"' if reason else "")
        _add(lines, table.MODEL_STATE, state, 1)
        _add(lines, table.MODEL_READY, labels, int(ref in self._inventory.models))
        _add(lines, table.MODEL_PINNED, labels, int(status.pinned))
        _add(lines, table.MODEL_STALE, labels, int(status.stale is not None))
        if status.state in _MOVING:
            _add(lines, table.MODEL_FETCHED, labels, status.bytes_done)
            if status.bytes_total is not None:
                _add(lines, table.MODEL_EXPECTED, labels, status.bytes_total)

    def _add_held(self, lines: Lines, labels: str, ref: ModelRef) -> None:
        inventory = self._inventory
        digest = inventory.models.get(ref)
        if digest is None:
            return
        _add(lines, table.MODEL_INFO, f'{labels},digest="{digest.hex[:_DIGEST_DIGITS]}"', 1)
        _add(lines, table.MODEL_BYTES, labels, inventory.size(ref))
        split = self._split[ref]
        _add(lines, table.MODEL_EXCLUSIVE, labels, split.exclusive)
        _add(lines, table.MODEL_SHARED, labels, split.shared)
        record = inventory.fetched.get(ref)
        if record is not None and record.verdict.trust is not None:
            _add(lines, table.MODEL_TRUST, f'{labels},trust="{record.verdict.trust.value}"', 1)
        if (last_used := inventory.last_used_at(ref)) is not None:
            _add(lines, table.MODEL_LAST_USED, labels, int(last_used))  # not in the future

    def _update_split(self) -> None:
        inventory = self._inventory
        if inventory.changes != self._split_at:
            self._split_at = inventory.changes
            self._split = split_held(inventory.named(), inventory.blobs, inventory.shared)


Lines = dict[str, list[str]]  # by the metric's name


def _add(lines: Lines, metric: Metric, labels: str, value: float) -> None:
    lines[metric.name].append(f"{metric.name}{labels}}} {value}\n")


def _gauge(metric: Metric, value: float) -> Iterator[str]:
    yield metric.head()
    yield metric.sample(value)
