"""The server's metrics, under `holdfast_server_`, and the standard `process_*`.

Law: labels are bounded: routes of the application, status codes, model names. No content of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from cached.contract.metrics import server as table
from cached.contract.metrics.metric import Metric
from cached.contract.release import VERSION
from server.engine.protocol import EngineLoad
from server.engine.types import About
from server.lifecycle.snapshot import Snapshot

if TYPE_CHECKING:
    from server.lifecycle.admission import GoldenComparison
    from server.weights.report import LoadReport


class ModelMetrics:
    """One model's metrics, set from the event loop and from the model's thread."""

    def __init__(self, families: _Families, model: str) -> None:
        self._families = families
        self._model = model
        self.alive_at = 0.0  # when the model last generated a token, on the monotonic clock

    def watch_queue(self, load: Callable[[], EngineLoad]) -> None:
        """Read `load` at each scrape."""
        self._families.waiting.labels(self._model).set_function(lambda: load().waiting)
        self._families.running.labels(self._model).set_function(lambda: load().running)

    def count_prompt(self, tokens: int) -> None:
        self._families.tokens.labels(self._model, "prompt").inc(tokens)

    def record_wait(self, seconds: float) -> None:
        """Record how long a request waited for the model."""
        self._families.queue_seconds.labels(self._model).observe(seconds)

    def record_first_token(self, seconds: float) -> None:
        """Record the time from the request to its first token."""
        self._families.first_token.labels(self._model).observe(seconds)

    def record_choice(self, tokens: int, seconds: float) -> None:
        """Record a complete choice of `tokens`, `seconds` after its request's first token."""
        if tokens > 1 and seconds > 0:
            self._families.speed.labels(self._model).observe((tokens - 1) / seconds)

    def record_step(self, rows: int, seconds: float) -> None:
        """Record a step that gave `rows` sequences a token each."""
        self.alive_at = monotonic()
        self._families.tokens.labels(self._model, "completion").inc(rows)
        self._families.batch.labels(self._model).observe(rows)
        self._families.step.labels(self._model).observe(seconds)

    def describe(self, snapshot: Snapshot, about: About | None) -> None:
        """Describe the served model; `about` is None for user code."""
        self._families.model.labels(self._model).info(
            {
                "version": snapshot.version or "",
                "digest": str(snapshot.digest or ""),
                "kind": about.kind if about else "app",
                "device": about.device if about else "",
                "dtype": about.dtype if about else "",
            }
        )
        if about is not None:
            self._families.weights.labels(self._model).set(about.weight_bytes)

    def count_swap(self, result: str) -> None:
        """Count a swap: `done`, or `failed`."""
        self._families.swaps.labels(self._model, result).inc()

    def set_healthy(self, healthy: bool) -> None:
        """Set whether the model answered its last health check."""
        self._families.healthy.labels(self._model).set(healthy)

    def set_golden(self, verdict: GoldenComparison | None) -> None:
        """Set how the answers agree with the golden predictions; None removes the series."""
        families = self._families
        if verdict is None:
            for result in ("agreed", "differed"):
                families.golden.remove(self._model, result)
            families.difference.remove(self._model)
            return
        families.golden.labels(self._model, "agreed").set(verdict.cases - len(verdict.failures))
        families.golden.labels(self._model, "differed").set(len(verdict.failures))
        families.difference.labels(self._model).set(verdict.largest)

    def forget(self) -> None:
        """Remove the gauges of a model out of service. Its counters stay."""
        families = self._families
        for family in (families.waiting, families.running, families.weights, families.healthy, families.model):
            family.remove(self._model)
        self.set_golden(None)


class _Families:
    """The metrics that have a `model` label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.waiting = _gauge(table.WAITING, registry)
        self.running = _gauge(table.RUNNING, registry)
        self.queue_seconds = _histogram(table.QUEUE_SECONDS, registry)
        self.first_token = _histogram(table.FIRST_TOKEN, registry)
        self.speed = _histogram(table.SPEED, registry)
        self.step = _histogram(table.STEP, registry)
        self.batch = _histogram(table.BATCH, registry)
        self.tokens = _counter(table.TOKENS, registry)
        self.weights = _gauge(table.WEIGHTS, registry)
        self.healthy = _gauge(table.HEALTHY, registry)
        self.golden = _gauge(table.GOLDEN, registry)
        self.difference = _gauge(table.DIFFERENCE, registry)
        self.swaps = _counter(table.SWAPS, registry)
        # `info` adds the labels that say something to those that name the model.
        self.model = Info(table.MODEL.base, table.MODEL.help, ["model"], registry=registry)


class LoadMetrics:
    """The loader's metrics, under the names that any process may export: `holdfast_load_…`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = _histogram(table.LOAD_SECONDS, registry)
        self._bytes = _counter(table.LOAD_BYTES, registry)
        self._cold = _counter(table.LOAD_COLD, registry)
        self._rate = _gauge(table.LOAD_RATE, registry)
        self._bound = _counter(table.LOAD_BOUND, registry)

    def record(self, report: LoadReport) -> None:
        """Record a load of weights; from the thread that loaded."""
        self._seconds.labels("total").observe(report.seconds)
        for stage, seconds in asdict(report.stages).items():
            self._seconds.labels(stage).observe(seconds)
        self._bytes.labels(report.method).inc(report.bytes)
        self._cold.inc(report.cold_bytes)
        self._rate.set(report.gb_per_s * 1e9)
        self._bound.labels(report.bound.value).inc()


class ServerMetrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._families = _Families(registry)
        self._requests = _counter(table.REQUESTS, registry)
        self._seconds = _histogram(table.REQUEST_SECONDS, registry)
        self.in_flight = _gauge(table.IN_FLIGHT, registry)
        self._refused = _counter(table.REFUSED, registry)
        self._connections = _gauge(table.CONNECTIONS, registry)
        self._closed = _counter(table.CLOSED, registry)
        self._ready = _gauge(table.READY, registry)
        self._stage_seconds = _gauge(table.STAGE_SECONDS, registry)
        Info(table.BUILD_INFO.base, table.BUILD_INFO.help, registry=registry).info({"version": VERSION})
        self.load = LoadMetrics(self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def model(self, name: str) -> ModelMetrics:
        """Return the metrics of the model whose name for clients is `name`."""
        return ModelMetrics(self._families, name)

    def count_request(self, endpoint: str, model: str, status: int, seconds: float) -> None:
        """Count an answered request; `model` is empty where none was selected."""
        self._requests.labels(endpoint, model, str(status)).inc()
        self._seconds.labels(endpoint, model).observe(seconds)

    def count_refused(self, reason: str) -> None:
        """Count a request that was refused: `loading`, `waiting`, `rejected`, `draining`, `unhealthy`."""
        self._refused.labels(reason).inc()

    def watch_connections(self, number: Callable[[], int]) -> None:
        """Read `number` of open connections at each scrape."""
        self._connections.set_function(number)

    def count_closed(self, limit: str) -> None:
        """Count a connection closed past a limit: `number`, `head`, `body` or `answer`."""
        self._closed.labels(limit).inc()

    def set_ready(self, ready: bool) -> None:
        self._ready.set(1 if ready else 0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the start."""
        started = perf_counter()
        yield
        self._stage_seconds.labels(name).set(perf_counter() - started)


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.base, metric.help, metric.labels, registry=registry)


def _gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    return Gauge(metric.name, metric.help, metric.labels, registry=registry)


def _histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
