"""Watch the event loop of the process that finds this module on its path, and write down its longest steps.

Law: imported by Python itself at its start. Measures the processor time of the loop's own thread in each callback, so
that what else a busy machine does counts for nothing; the file that `LOOP_WATCH` names holds the longest so far, as
seconds and the callback.
"""

from __future__ import annotations

import asyncio.events
import os
import time
from pathlib import Path

_FILE = os.environ.get("LOOP_WATCH")
_run = asyncio.events.Handle._run
_longest = 0.0


def _watched(handle: asyncio.events.Handle) -> None:
    global _longest
    began = time.thread_time()
    _run(handle)
    took = time.thread_time() - began
    if took > _longest and _FILE is not None:
        _longest = took
        doing = getattr(handle._callback, "__self__", handle)  # type: ignore[attr-defined]  # a task, by its name
        Path(f"{_FILE}.new").write_text(f"{took:.3f} {doing!r}")
        os.replace(f"{_FILE}.new", _FILE)  # whole at any moment that a test reads it


if _FILE is not None:
    asyncio.events.Handle._run = _watched  # type: ignore[method-assign,assignment]
