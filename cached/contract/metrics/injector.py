"""The injector's metrics. Law: constants only."""

from __future__ import annotations

from cached.contract.metrics.metric import Metric, MetricKind

REVIEW_RESULTS = ("injected", "unchanged", "denied", "invalid")

REVIEWS = Metric(
    "holdfast_injector_reviews_total",
    MetricKind.COUNTER,
    "Reviews answered, by result.",
    ("result",),
    len(REVIEW_RESULTS),
)
REVIEW_SECONDS = Metric(
    "holdfast_injector_review_seconds",
    MetricKind.HISTOGRAM,
    "Seconds from a review's last byte to its answer.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
)
CERTIFICATE_EXPIRY = Metric(
    "holdfast_injector_certificate_expiry_timestamp_seconds",
    MetricKind.GAUGE,
    "When the serving certificate ends, since unix epoch in seconds; 0 before there is one.",
)
CATALOG_UNUSABLE = Metric(
    "holdfast_injector_catalog_unusable",
    MetricKind.GAUGE,
    "1 while the injector's catalog cannot be read or is no catalog; the last good one stays in force.",
)
BUILD_INFO = Metric("holdfast_build_info", MetricKind.INFO, "The version that runs.", ("version",))

ALL = (REVIEWS, REVIEW_SECONDS, CERTIFICATE_EXPIRY, CATALOG_UNUSABLE, BUILD_INFO)
