"""Print the progress of the wait, in lines for a person or as events of the log.

Law: writes to one output and keeps only its last output. A terminal gets a line that changes in place; a log gets a
line per relevant change, at most one every two seconds for each model.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from os import get_terminal_size
from typing import TYPE_CHECKING, Protocol, TextIO

from cached.contract.program.units import format_duration, format_size
from cached.contract.reference import ModelRequest
from cached.contract.status import ModelStatus, State

if TYPE_CHECKING:  # loaded with `--log-format json` only
    from cached.contract.program.events import EventWriter

_LOG_EVERY_S = 2.0
_TERMINAL_EVERY_S = 0.1
_REPEAT_S = 60.0  # without any line a log looks like that of a dead process
_PREFIX = "holdfast gate: "


@dataclass(frozen=True, slots=True)
class GateProgress:
    """How far one version is: its `stage`, a `detail` that changes during it, and `percent` of its bytes."""

    stage: str
    detail: str = ""
    percent: int | None = None

    def __str__(self) -> str:
        return f"{self.stage} {self.detail}".rstrip()


def of_status(status: ModelStatus) -> GateProgress:
    """Return the progress in a status file."""
    if status.state in (State.QUEUED, State.RESOLVING) and status.error is not None:
        return GateProgress(f"the daemon tries again: {status.error.message}")
    if status.state is State.FAILED and status.error is not None:
        return GateProgress(f"failed, the daemon tries again: {status.error.message}")
    if status.state is State.READY:
        return GateProgress("ready for the daemon, its symlink not seen yet")
    if not status.bytes_total:
        return GateProgress(status.state.value)
    return _of_bytes(status.state.value, status.bytes_done, status.bytes_total, status.rate_bytes_per_s, status.eta_s)


def of_refusal(message: str) -> GateProgress:
    """Return the progress of a version that the daemon refuses, until that is corrected."""
    return GateProgress(f"the daemon refuses it, waiting for a correction: {message}")


def of_hashing(done: int, total: int, elapsed_s: float) -> GateProgress:
    """Return the progress of this gate's own hashing; sizes in bytes."""
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    return _of_bytes("hashing", done, total, rate, (total - done) / rate if rate > 0 else None)


def _of_bytes(stage: str, done: int, total: int, rate: float | None, eta_s: float | None) -> GateProgress:
    percent = done * 100 // max(1, total)
    text = f"{format_size(done)} of {format_size(total)} ({percent} %)"
    if rate:
        text += f", {format_size(rate)}/s"
    if eta_s is not None and done < total:
        text += f", {format_duration(eta_s)} left"
    return GateProgress(stage, text, percent)


class ProgressOutput(Protocol):
    """Where progress and notices go; `in_place`: progress may replace the line before."""

    in_place: bool

    def write_progress(self, want: ModelRequest, progress: GateProgress) -> None:
        """Write the progress of `want`."""

    def end_progress(self) -> None:
        """Keep the last progress: what follows stands below it."""

    def write_line(self, text: str, want: ModelRequest | None, /) -> None:
        """Write `text`; it is about `want`, if any."""


class TextOutput:
    """Lines for a person, on `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.in_place = stream.isatty()
        self._is_open = False  # the terminal's current line

    def write_progress(self, want: ModelRequest, progress: GateProgress) -> None:
        text = f"{_PREFIX}{want}: {progress}"
        if self.in_place:
            width = get_terminal_size(self._stream.fileno()).columns or 80
            self._stream.write(f"\r\x1b[K{text[: width - 1]}")
            self._is_open = True
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def end_progress(self) -> None:
        if self._is_open:
            self._stream.write("\n")
            self._is_open = False

    def write_line(self, text: str, _want: ModelRequest | None) -> None:
        self._stream.write(f"{_PREFIX}{text}\n")
        self._stream.flush()


class EventOutput:
    """Events of the log."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events
        self.in_place = False

    def write_progress(self, want: ModelRequest, progress: GateProgress) -> None:
        self._events.write("info", f"{want}: {progress}", **want.log_fields, percent=progress.percent)

    def end_progress(self) -> None:
        """Do nothing: an event is a line."""

    def write_line(self, text: str, want: ModelRequest | None) -> None:
        self._events.write("info", text, **({} if want is None else want.log_fields))


class ProgressPrinter:
    """Writes progress and notices to `output`; may be called from several threads."""

    def __init__(self, output: ProgressOutput) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._printed: dict[ModelRequest, tuple[float, GateProgress]] = {}  # when and what, by version
        self._notices: dict[str, str | None] = {}
        self._last: ModelRequest | None = None  # whose progress was written last

    def print_progress(self, want: ModelRequest, progress: GateProgress) -> None:
        """Print the progress of `want`, if it changed enough."""
        with self._lock:
            now = time.monotonic()
            at, last = self._printed.get(want, (now, None))
            in_place = (
                last is not None and last.stage == progress.stage and self._output.in_place and self._last == want
            )
            if in_place:
                due = last != progress and now - at >= _TERMINAL_EVERY_S
            elif last is None or last.stage != progress.stage:
                due = True
            else:
                due = now - at >= (_LOG_EVERY_S if last.percent != progress.percent else _REPEAT_S)
            if not due:
                return
            if not in_place:
                self._output.end_progress()
            self._write(want, now, progress)

    def print_reminder(self, want: ModelRequest, progress: GateProgress) -> None:
        """Print the progress of `want` if there was no line of it for a minute: a notice says the same when it
        changes."""
        with self._lock:
            now = time.monotonic()
            at, _ = self._printed.setdefault(want, (now, progress))
            if now - at >= _REPEAT_S:
                self._output.end_progress()
                self._write(want, now, progress)
            else:
                self._printed[want] = (at, progress)

    def print_line(self, text: str, want: ModelRequest | None = None) -> None:
        """Print `text`, which is about `want`, if it is about one version."""
        with self._lock:
            self._output.end_progress()
            self._last = None
            self._output.write_line(text, want)

    def print_notice(self, topic: str, text: str | None, over: str = "", want: ModelRequest | None = None) -> None:
        """Print `text` when it changes for `topic`, and `over`, if any, when it becomes None."""
        if text != self._notices.get(topic):
            self._notices[topic] = text
            self.print_line(over if text is None else text, want)

    def _write(self, want: ModelRequest, now: float, progress: GateProgress) -> None:
        self._output.write_progress(want, progress)
        self._last = want
        self._printed[want] = (now, progress)
