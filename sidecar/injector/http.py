"""The injector's plain port: health, readiness and metrics.

Law: read only; every label has a handful of values.
"""

from __future__ import annotations

from collections.abc import Callable

import prometheus_client as prometheus
from aiohttp import web

from cached.contract.metrics import injector as table


class InjectorMetrics:
    """The injector's metrics. `expires` returns the certificate's end, in seconds since the epoch."""

    def __init__(self, version: str, expires: Callable[[], float]) -> None:
        # Else each counter has one more series, which is of no use.
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it bare
        registry = self._registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        reviews = table.REVIEWS
        self._reviews = prometheus.Counter(reviews.base, reviews.help, reviews.labels, registry=registry)
        for result in table.REVIEW_RESULTS:  # so that a rate includes the first of each
            self._reviews.labels(result)
        took = table.REVIEW_SECONDS
        self._seconds = prometheus.Histogram(took.name, took.help, buckets=took.buckets, registry=registry)
        expiry, build = table.CERTIFICATE_EXPIRY, table.BUILD_INFO
        prometheus.Gauge(expiry.name, expiry.help, registry=registry).set_function(expires)
        unusable = table.CATALOG_UNUSABLE
        self._catalog_unusable = prometheus.Gauge(unusable.name, unusable.help, registry=registry)
        prometheus.Info(build.base, build.help, registry=registry).info({"version": version})

    def count_review(self, result: str, seconds: float) -> None:
        """Count one review."""
        self._reviews.labels(result).inc()
        self._seconds.observe(seconds)

    def set_catalog_usable(self, *, usable: bool) -> None:
        """Set whether the catalog's file could be read at the last change."""
        self._catalog_unusable.set(not usable)

    def expose(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return prometheus.generate_latest(self._registry)


def probe_application(metrics: InjectorMetrics, why_not_ready: Callable[[], str | None]) -> web.Application:
    """Return the application of the plain port; `why_not_ready` returns why reviews should go elsewhere, or None."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reason = why_not_ready()
        return web.Response(text="ready\n" if reason is None else f"{reason}\n", status=200 if reason is None else 503)

    async def scrape(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.expose(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    return app
