"""The server's metrics, and those of the loader, which any process may expose. Law: constants only."""

from __future__ import annotations

from cached.contract.metrics.metric import Metric, MetricKind, Per

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LOAD_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 60, 180, 600)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_SPEED = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
_ENDPOINTS, _STATUSES = 16, 16  # routes of the application and `other`; status codes that it answers with
_MODEL = ("model",)


def _of_model(name: str, kind: MetricKind, text: str, *labels: str, combinations: int = 1) -> Metric:
    return Metric(name, kind, text, (*_MODEL, *labels), combinations, Per.MODEL)


def _histogram(name: str, text: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, text, _MODEL, 1, Per.MODEL, buckets)


# --- models --------------------------------------------------------------------------------------------------------

WAITING = _of_model("holdfast_server_queue_waiting", MetricKind.GAUGE, "Requests that wait for the model")
RUNNING = _of_model("holdfast_server_queue_running", MetricKind.GAUGE, "Requests in the model")
QUEUE_SECONDS = _histogram("holdfast_server_queue_seconds", "Seconds a request waited for the model", _LATENCY_S)
FIRST_TOKEN = _histogram("holdfast_server_first_token_seconds", "Seconds from a request to its first text", _LATENCY_S)
SPEED = _histogram("holdfast_server_choice_tokens_per_second", "Tokens a second of one choice", _SPEED)
STEP = _histogram("holdfast_server_step_seconds", "Seconds from token to token of a batch", _TOKEN_S)
BATCH = _histogram("holdfast_server_batch_sequences", "Sequences in one step of the model", _ROWS)
TOKENS = _of_model(
    "holdfast_server_tokens_total",
    MetricKind.COUNTER,
    "Tokens read (prompt) and generated (completion)",
    "kind",
    combinations=2,
)
WEIGHTS = _of_model("holdfast_server_weights_bytes", MetricKind.GAUGE, "Bytes of the weights' files")
HEALTHY = _of_model(
    "holdfast_server_model_healthy", MetricKind.GAUGE, "0 while the model does not answer a dummy inference"
)
GOLDEN = _of_model(
    "holdfast_server_golden_cases", MetricKind.GAUGE, "Golden predictions, by result", "result", combinations=2
)
DIFFERENCE = _of_model(
    "holdfast_server_golden_largest_difference", MetricKind.GAUGE, "The largest difference of a number in them"
)
SWAPS = _of_model(
    "holdfast_server_swaps_total",
    MetricKind.COUNTER,
    "Versions that were to take the place of another while serving",
    "result",
    combinations=2,
)
MODEL = _of_model(
    "holdfast_server_model_info", MetricKind.INFO, "What is served", "version", "digest", "kind", "device", "dtype"
)

# --- loads ---------------------------------------------------------------------------------------------------------

LOAD_SECONDS = Metric(
    "holdfast_load_seconds",
    MetricKind.HISTOGRAM,
    "Seconds a load of weights took, in all and in each of its stages",
    ("stage",),
    8,
    buckets=_LOAD_S,
)
LOAD_BYTES = Metric("holdfast_load_bytes_total", MetricKind.COUNTER, "Bytes of weights loaded", ("method",), 4)
LOAD_COLD = Metric("holdfast_load_cold_bytes_total", MetricKind.COUNTER, "Of these, not in the page cache")
LOAD_RATE = Metric("holdfast_load_bytes_per_second", MetricKind.GAUGE, "Bytes a second of the last load")
LOAD_BOUND = Metric("holdfast_load_bound_total", MetricKind.COUNTER, "Loads by what they waited for most", ("by",), 4)

# --- requests ------------------------------------------------------------------------------------------------------

REQUESTS = Metric(
    "holdfast_server_requests_total",
    MetricKind.COUNTER,
    "Requests answered",
    ("endpoint", "model", "status"),
    _ENDPOINTS * _STATUSES,
    Per.MODEL,
)
REQUEST_SECONDS = Metric(
    "holdfast_server_request_seconds",
    MetricKind.HISTOGRAM,
    "Seconds from a request's head to the answer's end",
    ("endpoint", "model"),
    _ENDPOINTS,
    Per.MODEL,
    _LATENCY_S,
)
IN_FLIGHT = Metric("holdfast_server_in_flight", MetricKind.GAUGE, "Requests being answered")
REFUSED = Metric(
    "holdfast_server_refused_total",
    MetricKind.COUNTER,
    "Requests refused because the server was not ready",
    ("reason",),
    8,
)
CONNECTIONS = Metric("holdfast_server_connections", MetricKind.GAUGE, "Open connections")
CLOSED = Metric(
    "holdfast_server_connections_closed_total",
    MetricKind.COUNTER,
    "Connections closed past a limit: their number, or the time for a head, a body or an answer",
    ("limit",),
    4,
)
READY = Metric("holdfast_server_ready", MetricKind.GAUGE, "1 while /readyz says so")
STAGE_SECONDS = Metric(
    "holdfast_server_load_seconds", MetricKind.GAUGE, "Seconds each stage of the start took", ("stage",), 8
)
BUILD_INFO = Metric("holdfast_build_info", MetricKind.INFO, "The version that runs.", ("version",))

MODELS = (
    WAITING,
    RUNNING,
    QUEUE_SECONDS,
    FIRST_TOKEN,
    SPEED,
    STEP,
    BATCH,
    TOKENS,
    WEIGHTS,
    HEALTHY,
    GOLDEN,
    DIFFERENCE,
    SWAPS,
    MODEL,
)
LOADS = (LOAD_SECONDS, LOAD_BYTES, LOAD_COLD, LOAD_RATE, LOAD_BOUND)
SERVER = (REQUESTS, REQUEST_SECONDS, IN_FLIGHT, REFUSED, CONNECTIONS, CLOSED, READY, STAGE_SECONDS, BUILD_INFO)
ALL = (*SERVER, *MODELS, *LOADS)
