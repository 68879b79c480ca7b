"""What a version fetch tells of its steps. Law: tells intervals that ended; decides nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from cached.contract.errors import HoldfastError
from cached.contract.program.tracing import Attributes, Interval
from cached.contract.reference import ModelRef
from cached.fetch.download import Download


class FetchTrace(Protocol):
    """Takes the steps of version fetches, on the event loop."""

    def record(self, ref: ModelRef, interval: Interval) -> None:
        """Record a step that ended."""


class NoFetchTrace:
    """Records nothing."""

    def record(self, ref: ModelRef, interval: Interval) -> None:
        """Do nothing."""


@contextmanager
def recorded(trace: FetchTrace, ref: ModelRef, name: str, source: str) -> Iterator[None]:
    """Record the block as a step, with the code of the error that ends it."""
    began, failure = time.monotonic(), None
    try:
        yield
    except HoldfastError as error:
        failure = error.code
        raise
    finally:
        trace.record(ref, Interval(name, began, time.monotonic(), {"holdfast.source": source}, failure))


def record_downloads(trace: FetchTrace, ref: ModelRef, downloads: Sequence[Download], failure: str | None) -> None:
    """Record what a version waited for: a step `fetch` for each source, from its first request to its last byte, then
    the step `verify`: hashes that were behind, and the commits."""
    started = [each for each in downloads if each.started_at is not None]
    if not started:
        return
    now = time.monotonic()
    received = max((each.progress.received_at or now for each in started), default=now)
    for origin in sorted({each.spec.origin for each in started}):
        own = [each for each in started if each.spec.origin == origin]
        attributes: Attributes = {
            "holdfast.source": origin,
            "holdfast.blobs": len(own),
            "holdfast.bytes": sum(each.progress.written for each in own),
        }
        began = min(each.started_at or now for each in own)
        ended = max(each.progress.received_at or now for each in own)
        trace.record(ref, Interval("fetch", began, max(began, ended), attributes, failure))
    if failure is None:
        trace.record(ref, Interval("verify", received, now, {"holdfast.blobs": len(started)}))
