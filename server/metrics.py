"""The server's numbers, under `holdfast_server_`, and the standard `process_*`.

Law: labels are bounded: routes of the application, status codes, one model. Nothing of a request's content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from server.events import About
from server.jobs import Load
from server.snapshot import Snapshot

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "holdfast_server_requests", "Requests answered", ["endpoint", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "holdfast_server_request_seconds",
            "Seconds from a request's head to the answer's end",
            ["endpoint"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._in_flight = Gauge("holdfast_server_in_flight", "Requests being answered", registry=self._registry)
        self._waiting = Gauge(
            "holdfast_server_queue_waiting", "Requests that wait for the model", registry=self._registry
        )
        self._running = Gauge("holdfast_server_queue_running", "Requests in the model", registry=self._registry)
        self._tokens = Counter(
            "holdfast_server_tokens",
            "Tokens read (prompt) and generated (completion)",
            ["kind"],
            registry=self._registry,
        )
        self._ready = Gauge("holdfast_server_ready", "1 while /readyz says so", registry=self._registry)
        self._load = Gauge(
            "holdfast_server_load_seconds", "Seconds each stage of the start took", ["stage"], registry=self._registry
        )
        self._weights = Gauge("holdfast_server_weights_bytes", "Bytes of the weights' files", registry=self._registry)
        self._model = Info("holdfast_server_model", "What is served", registry=self._registry)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def watch_queue(self, load: Callable[[], Load]) -> None:
        """Ask `load` at each scrape."""
        self._waiting.set_function(lambda: load().waiting)
        self._running.set_function(lambda: load().running)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def set_in_flight(self, count: int) -> None:
        self._in_flight.set(count)

    def count_tokens(self, kind: str, count: int) -> None:
        self._tokens.labels(kind).inc(count)

    def set_ready(self, ready: bool) -> None:
        self._ready.set(1 if ready else 0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the start."""
        started = perf_counter()
        yield
        self._load.labels(name).set(perf_counter() - started)

    def describe(self, snapshot: Snapshot, about: About | None) -> None:
        """Say what is served; `about` is None for user code."""
        self._model.info(
            {
                "model": snapshot.name,
                "version": snapshot.version or "",
                "digest": str(snapshot.digest or ""),
                "kind": about.kind if about else "app",
                "device": about.device if about else "",
                "dtype": about.dtype if about else "",
            }
        )
        if about is not None:
            self._weights.set(about.weight_bytes)
