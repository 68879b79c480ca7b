"""The metrics of a gate that is a sidecar. Law: constants only."""

from __future__ import annotations

from cached.contract.metrics.metric import Metric, MetricKind

READY = Metric(
    "holdfast_gate_ready", MetricKind.GAUGE, "Whether every version this pod wants is present, verified and leased."
)
OPENED = Metric(
    "holdfast_gate_opened_timestamp_seconds",
    MetricKind.GAUGE,
    "When the gate opened, since unix epoch in seconds; absent before.",
)
PROCESS_START = Metric(
    "process_start_time_seconds", MetricKind.GAUGE, "Start time of the process since unix epoch in seconds."
)
BUILD_INFO = Metric("holdfast_build_info", MetricKind.INFO, "The version that runs.", ("version",))

ALL = (READY, OPENED, BUILD_INFO, PROCESS_START)
