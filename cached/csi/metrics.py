"""The metrics of volumes, in the daemon's registry while it mounts them. Law: labels are the gRPC status codes."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from cached.contract.metrics import daemon as table


class CsiMetrics:
    """Counters and gauges. `count_mounted` returns the number of mounted volumes."""

    def __init__(self, registry: CollectorRegistry, count_mounted: Callable[[], int]) -> None:
        publishes, registered, mounted = table.CSI_PUBLISHES, table.CSI_REGISTERED, table.CSI_VOLUMES
        self._publishes = Counter(publishes.base, publishes.help, publishes.labels, registry=registry)
        self._registered = Gauge(registered.name, registered.help, registry=registry)
        volumes = Gauge(mounted.name, mounted.help, registry=registry)
        volumes.set_function(count_mounted)

    def count_publish(self, result: str) -> None:
        """Count a call; `result` is `ok`, or the name of its gRPC status."""
        self._publishes.labels(result).inc()

    def set_registered(self, *, registered: bool) -> None:
        """Record the kubelet's verdict."""
        self._registered.set(registered)
