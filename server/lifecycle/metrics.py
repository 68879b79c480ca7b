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

from server.engine.protocol import Load
from server.engine.types import About
from server.lifecycle.snapshot import Snapshot

if TYPE_CHECKING:
    from server.lifecycle.admission import Verdict
    from server.weights.report import LoadReport

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LOAD_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 60, 180, 600)
_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_SPEED_BUCKETS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
_ROWS_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
_PREFIX = "holdfast_server_"


class ModelMetrics:
    """One model's metrics, set from the event loop and from the model's thread."""

    def __init__(self, families: _Families, model: str) -> None:
        self._families = families
        self._model = model
        self.alive_at = 0.0  # when the model last generated a token, on the monotonic clock

    def watch_queue(self, load: Callable[[], Load]) -> None:
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

    def set_golden(self, verdict: Verdict | None) -> None:
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
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(_PREFIX + name, text, ["model"], buckets=buckets, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(_PREFIX + name, text, ["model", *labels], registry=registry)

        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(_PREFIX + name, text, ["model", label], registry=registry)

        self.waiting = gauge("queue_waiting", "Requests that wait for the model")
        self.running = gauge("queue_running", "Requests in the model")
        self.queue_seconds = histogram("queue_seconds", "Seconds a request waited for the model", _LATENCY_BUCKETS_S)
        self.first_token = histogram(
            "first_token_seconds", "Seconds from a request to its first text", _LATENCY_BUCKETS_S
        )
        self.speed = histogram("choice_tokens_per_second", "Tokens a second of one choice", _SPEED_BUCKETS)
        self.step = histogram("step_seconds", "Seconds from token to token of a batch", _TOKEN_BUCKETS_S)
        self.batch = histogram("batch_sequences", "Sequences in one step of the model", _ROWS_BUCKETS)
        self.tokens = counter("tokens", "Tokens read (prompt) and generated (completion)", "kind")
        self.weights = gauge("weights_bytes", "Bytes of the weights' files")
        self.healthy = gauge("model_healthy", "0 while the model does not answer a dummy inference")
        self.golden = gauge("golden_cases", "Golden predictions, by result", "result")
        self.difference = gauge("golden_largest_difference", "The largest difference of a number in them")
        self.swaps = counter("swaps", "Versions that were to take the place of another while serving", "result")
        self.model = Info(_PREFIX + "model", "What is served", ["model"], registry=registry)


class LoadMetrics:
    """The loader's metrics, under the names that any process may export: `holdfast_load_…`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "holdfast_load_seconds",
            "Seconds a load of weights took, in all and in each of its stages",
            ["stage"],
            buckets=_LOAD_BUCKETS_S,
            registry=registry,
        )
        self._bytes = Counter("holdfast_load_bytes", "Bytes of weights loaded", ["method"], registry=registry)
        self._cold = Counter("holdfast_load_cold_bytes", "Of these, not in the page cache", registry=registry)
        self._speed = Gauge("holdfast_load_gigabytes_per_second", "Of the last load, decimal", registry=registry)
        self._bound = Counter("holdfast_load_bound", "Loads by what they waited for most", ["by"], registry=registry)

    def record(self, report: LoadReport) -> None:
        """Record a load of weights; from the thread that loaded."""
        self._seconds.labels("total").observe(report.seconds)
        for stage, seconds in asdict(report.stages).items():
            self._seconds.labels(stage).observe(seconds)
        self._bytes.labels(report.method).inc(report.bytes)
        self._cold.inc(report.cold_bytes)
        self._speed.set(report.gb_per_s)
        self._bound.labels(report.bound.value).inc()


class ServerMetrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._families = _Families(self._registry)
        self._requests = Counter(
            _PREFIX + "requests", "Requests answered", ["endpoint", "model", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            _PREFIX + "request_seconds",
            "Seconds from a request's head to the answer's end",
            ["endpoint", "model"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self.in_flight = Gauge(_PREFIX + "in_flight", "Requests being answered", registry=self._registry)
        self._refused = Counter(
            _PREFIX + "refused",
            "Requests refused because the server was not ready",
            ["reason"],
            registry=self._registry,
        )
        self._connections = Gauge(_PREFIX + "connections", "Open connections", registry=self._registry)
        self._closed = Counter(
            _PREFIX + "connections_closed",
            "Connections closed past a limit: their number, or the time for a head, a body or an answer",
            ["limit"],
            registry=self._registry,
        )
        self._ready = Gauge(_PREFIX + "ready", "1 while /readyz says so", registry=self._registry)
        self._stage_seconds = Gauge(
            _PREFIX + "load_seconds", "Seconds each stage of the start took", ["stage"], registry=self._registry
        )
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
