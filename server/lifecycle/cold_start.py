"""The server's part of its pod's trace: from its imports to its readiness.

Law: records steps until the server is ready for the first time, and nothing where tracing is off.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from cached.contract.errors import HoldfastError
from cached.contract.program.tracing import ROOT, Interval, Tracer, root_of


class ColdStart:
    """The start of this server, in the trace of the pod with this `uid`, whose root the daemon of the node sends; None:
    in a trace of its own."""

    def __init__(self, tracer: Tracer | None, uid: str | None) -> None:
        self._tracer = tracer
        self._is_alone = uid is None
        self._uid = uid or str(uuid.uuid4())
        self._began = time.monotonic()

    @contextmanager
    def step(self, name: str, model: str = "") -> Iterator[None]:
        """Record the block, with the code of the error that ends it."""
        began, failure = time.monotonic(), None
        try:
            yield
        except HoldfastError as error:
            failure = error.code
            raise
        finally:
            self._send(Interval(name, began, time.monotonic(), {"holdfast.model": model} if model else {}, failure))

    def end(self) -> None:
        """Record that the server is ready; what it loads later is no part of its start."""
        now = time.monotonic()
        self._send(Interval("ready", now, now))
        if self._tracer is not None and self._is_alone:
            self._tracer.send_root(self._uid, Interval(ROOT, self._began, now))
        self._tracer = None

    def _send(self, interval: Interval) -> None:
        if self._tracer is not None:
            self._tracer.send(root_of(self._uid), interval)
