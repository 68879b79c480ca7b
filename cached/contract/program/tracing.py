"""Spans of a pod's cold start, for daemon and server: `--tracing otlp`.

Law: nothing of OpenTelemetry is imported, and no thread started, unless tracing is on. A trace's id is its pod's uid,
and the id of its root follows from that, so that two processes that know the pod make one trace and tell each other
nothing.
The SDK reads its own `OTEL_…` variables.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cached.contract.errors import Permanent
from cached.contract.release import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

OFF, OTLP = "off", "otlp"
ROOT = "cold start"
_UID = re.compile(r"[0-9a-f]{32}")
_END_S = 3.0  # to deliver what is left, where the receiver does not answer
_PROTOCOL = "http/protobuf"

Attributes = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Interval:
    """What one span tells. `began`, `ended`: seconds of the monotonic clock. `failure`: an error's code, None where it
    went well."""

    name: str
    began: float
    ended: float
    attributes: Attributes = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class SpanId:
    """A span that others may be below: numbers of 128 and 64 bits."""

    trace: int
    span: int


def trace_id_of(uid: str) -> int:
    """Return the id of a pod's trace: its uid without dashes, of another kind of uid (a static pod's) a hash of it."""
    plain = uid.replace("-", "")
    return int(plain, 16) if _UID.fullmatch(plain) and int(plain, 16) else _hash(uid, 16)


def root_of(uid: str) -> SpanId:
    """Return the root of a pod's trace."""
    trace = trace_id_of(uid)
    return SpanId(trace, _hash(f"{ROOT} {trace:032x}", 8))


class Tracer:
    """Sends spans over OTLP/HTTP, in batches, from a thread of the SDK."""

    def __init__(self, provider: TracerProvider, ids: Any) -> None:
        self._provider = provider
        self._ids = ids
        self._tracer = provider.get_tracer("holdfast", VERSION)
        self._lock = threading.Lock()
        self._zero_ns = time.time_ns() - time.monotonic_ns()

    def send_root(self, uid: str, interval: Interval) -> None:
        """Send the root of a pod's trace, after which nothing of the pod is to come from this process."""
        with self._lock, self._ids.forced(root_of(uid)):
            self._send(interval, None)

    def send(self, below: SpanId | None, interval: Interval) -> SpanId:
        """Send a span below another one; None: of a trace of its own."""
        with self._lock:
            return self._send(interval, below)

    def close(self) -> None:
        """Deliver what is left, for some seconds at most."""
        ending = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        ending.start()
        ending.join(_END_S)

    def _send(self, interval: Interval, below: SpanId | None) -> SpanId:
        from opentelemetry.context import Context
        from opentelemetry.trace import Status, StatusCode

        context = Context() if below is None else self._context(below)
        attributes = dict(interval.attributes)
        if interval.failure is not None:
            attributes["error.type"] = interval.failure
        span = self._tracer.start_span(
            interval.name, context, attributes=attributes, start_time=self._clock_ns(interval.began)
        )
        if interval.failure is not None:
            span.set_status(Status(StatusCode.ERROR, interval.failure))
        span.end(self._clock_ns(interval.ended))
        found = span.get_span_context()
        return SpanId(found.trace_id, found.span_id)

    def _context(self, below: SpanId) -> Any:
        """Return the context of a span of this or another process; the sampler decides for all of a trace alike."""
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

        decision = self._provider.sampler.should_sample(None, below.trace, ROOT).decision
        flags = TraceFlags(TraceFlags.SAMPLED if decision is not Decision.DROP else TraceFlags.DEFAULT)
        return set_span_in_context(NonRecordingSpan(SpanContext(below.trace, below.span, True, flags)))

    def _clock_ns(self, at: float) -> int:
        return int(at * 1e9) + self._zero_ns


def open_tracer(program: str, mode: str, attributes: Attributes) -> Tracer | None:
    """Return the tracer of a program (`daemon`, `server`); None where tracing is off. `attributes`: of all its spans.
    Raises `Permanent` (`no_tracing`) where it cannot be as asked."""
    if mode == OFF or os.environ.get("OTEL_TRACES_EXPORTER", OTLP) == "none":
        return None
    _check_environment()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise Permanent(
            "no_tracing",
            f"--tracing otlp needs packages that are missing: {error}",
            "install holdfast[tracing], or leave --tracing out",
        ) from error
    try:
        ids = _make_ids()
        provider = TracerProvider(
            resource=Resource.create(_named(program, attributes)), id_generator=ids, shutdown_on_exit=False
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except (ValueError, OSError) as error:
        raise Permanent("no_tracing", f"OpenTelemetry's variables: {error}", "correct the OTEL_… variables") from error
    return Tracer(provider, ids)


def _check_environment() -> None:
    """Raise `Permanent` where a variable asks for what this exporter does not do."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", OTLP)
    if exporter != OTLP:
        raise Permanent(
            "no_tracing", f"OTEL_TRACES_EXPORTER: expected otlp or none, found {exporter!r}", "leave it out"
        )
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        found = os.environ.get(name)
        if found:
            if found != _PROTOCOL:
                remedy = "leave it out, and name the receiver's port for HTTP (4318) in OTEL_EXPORTER_OTLP_ENDPOINT"
                raise Permanent("no_tracing", f"{name}: expected {_PROTOCOL}, found {found!r}", remedy)
            return


def _named(program: str, attributes: Attributes) -> dict[str, str | int | bool]:
    """Return the resource's attributes; the variables' own name of the service goes first."""
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    own: dict[str, str | int | bool] = {} if named else {"service.name": f"holdfast-{program}"}
    return {**own, "service.version": VERSION, **attributes}


def _make_ids() -> Any:
    """Return a generator of ids that may be told the next span's."""
    from collections.abc import Iterator
    from contextlib import contextmanager

    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        _next: SpanId | None = None

        @contextmanager
        def forced(self, ids: SpanId) -> Iterator[None]:
            self._next = ids
            try:
                yield
            finally:
                self._next = None

        def generate_trace_id(self) -> int:
            return super().generate_trace_id() if self._next is None else self._next.trace

        def generate_span_id(self) -> int:
            return super().generate_span_id() if self._next is None else self._next.span

    return Ids()


def _hash(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "big") or 1
