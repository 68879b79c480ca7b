"""The metrics of volumes, in the daemon's registry while it mounts them. Law: labels are the gRPC status codes."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class CsiMetrics:
    """Counters and gauges. `count_mounted` returns the number of mounted volumes."""

    def __init__(self, registry: CollectorRegistry, count_mounted: Callable[[], int]) -> None:
        self._publishes = Counter(
            "holdfast_csi_publishes", "Calls to publish a volume, by their result.", ["result"], registry=registry
        )
        self._registered = Gauge(
            "holdfast_csi_registered", "1 while the kubelet has registered the driver.", registry=registry
        )
        volumes = Gauge("holdfast_csi_volumes", "Mounted volumes.", registry=registry)
        volumes.set_function(count_mounted)

    def count_publish(self, result: str) -> None:
        """Count a call; `result` is `ok`, or the name of its gRPC status."""
        self._publishes.labels(result).inc()

    def set_registered(self, *, registered: bool) -> None:
        """Record the kubelet's verdict."""
        self._registered.set(registered)
