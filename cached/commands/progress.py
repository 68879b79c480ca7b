"""Format the progress of one version: bytes, percent, rate, remaining time.

Law: formats a status; writes only to the stream it is given.
"""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from cached.contract.program.units import format_duration, format_size
from cached.contract.status import ModelStatus, Stale, State

_LINE_EVERY_S = 2.0  # between lines of one state, where the stream is no terminal


def describe(status: ModelStatus) -> str:
    """Return one line, as the gate prints it: `fetching 41.0 MiB of 87.3 MiB (47 %), 120.0 MiB/s, 1s left`."""
    if status.error is not None:
        again = "" if status.error.permanent else ", the daemon tries again"
        return f"{status.state.value}{again}: {status.error.message}"
    return f"{status.state.value} {describe_amounts(status)}".rstrip()


def describe_stale(stale: Stale) -> str:
    """Return why a held version is stale: `source_changed since 2026-11-20T18:00:00Z, sha256:… there now`."""
    now = "" if stale.digest is None else f", {stale.digest} there now"
    return f"{stale.reason} since {stale.since}{now}"


def describe_amounts(status: ModelStatus) -> str:
    """Return the numbers alone; empty while none is known."""
    if status.state in (State.FETCHING, State.VERIFYING) and status.bytes_total:
        share = f"{100 * status.bytes_done // status.bytes_total} %"
        parts = [f"{format_size(status.bytes_done)} of {format_size(status.bytes_total)} ({share})"]
        if status.rate_bytes_per_s:
            parts.append(f"{format_size(status.rate_bytes_per_s)}/s")
        if status.eta_s is not None:
            parts.append(f"{format_duration(status.eta_s)} left")
        return ", ".join(parts)
    return "" if status.bytes_total is None else format_size(status.bytes_total)


class PullProgressLine:
    """Prints one line of progress: refreshed in place on a terminal, elsewhere a new line at times."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._in_place = stream.isatty()
        self._shown = ""
        self._kind = ""
        self._shown_at = 0.0

    def show(self, kind: str, line: str) -> None:
        """Print `line`; off a terminal at once for a new `kind` (a state), else every 2 s at most."""
        if line == self._shown:
            return
        now = time.monotonic()
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be drawn over
            self._stream.write(f"\r\x1b[2K{line[:width]}")
        elif kind != self._kind or now - self._shown_at >= _LINE_EVERY_S:
            self._stream.write(f"{line}\n")
        else:
            return
        self._stream.flush()
        self._shown, self._kind, self._shown_at = line, kind, now

    def end(self) -> None:
        """End the line on a terminal, which keeps it visible."""
        if self._in_place and self._shown:
            self._stream.write("\n")
            self._stream.flush()
