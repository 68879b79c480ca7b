"""Show the progress of a copy of bytes on standard error.

Law: updates one line in place on a terminal, else writes a line every 10 s; counts from any thread.
"""

from __future__ import annotations

import threading
import time
from typing import TextIO

from cached.contract.program.units import format_duration, format_size

_TERMINAL_INTERVAL_S = 0.2
_LOG_INTERVAL_S = 10.0


class ByteProgress:
    """Bytes done of `total`, with a `label`; use it with `with` and call `add()`."""

    def __init__(self, stream: TextIO, label: str, total: int) -> None:
        self._stream = stream
        self._label = label
        self._total = total
        self._done = 0
        self._lock = threading.Lock()
        self._start = self._shown = time.monotonic()
        self._on_terminal = stream.isatty()
        self._interval_s = _TERMINAL_INTERVAL_S if self._on_terminal else _LOG_INTERVAL_S

    def add(self, size: int) -> None:
        """Count `size` more bytes."""
        with self._lock:
            self._done += size
            now = time.monotonic()
            if now - self._shown >= self._interval_s:
                self._shown = now
                self._show(now)

    def _show(self, now: float) -> None:
        rate = self._done / max(now - self._start, 1e-9)
        left = f", {format_duration((self._total - self._done) / rate)} left" if 0 < self._done < self._total else ""
        text = f"{self._label}: {format_size(self._done)} of {format_size(self._total)}, {format_size(rate)}/s{left}"
        self._stream.write(f"\r\x1b[2K{text}" if self._on_terminal else f"{text}\n")
        self._stream.flush()

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is not None and not self._done:
            return  # it has not begun: its error is all there is to say
        with self._lock:
            self._show(time.monotonic())
            if self._on_terminal:
                self._stream.write("\n")
                self._stream.flush()
