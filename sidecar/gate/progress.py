"""Print the progress of the wait in lines for a person.

Law: writes to one stream and keeps only its last output. A terminal gets a line that changes in place; a log gets a
line per relevant change, at most one every two seconds for each model.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from os import get_terminal_size
from typing import TextIO

from cached.contract.program.units import format_duration, format_size
from cached.contract.status import ModelStatus, State

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
    if status.state is State.FAILED and status.error is not None:
        return GateProgress(f"failed, the daemon tries again: {status.error.message}")
    if status.state is State.READY:
        return GateProgress("ready for the daemon, its symlink not seen yet")
    if not status.bytes_total:
        return GateProgress(status.state.value)
    rest = _detail(status.bytes_done, status.bytes_total, status.rate_bytes_per_s, status.eta_s)
    return GateProgress(status.state.value, rest, status.bytes_done * 100 // status.bytes_total)


def of_hashing(done: int, total: int, elapsed_s: float) -> GateProgress:
    """Return the progress of this gate's own hashing; sizes in bytes."""
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    eta_s = (total - done) / rate if rate > 0 else None
    return GateProgress("hashing", _detail(done, total, rate, eta_s), done * 100 // max(1, total))


def _detail(done: int, total: int, rate: float | None, eta_s: float | None) -> str:
    text = f"{format_size(done)} of {format_size(total)} ({done * 100 // max(1, total)} %)"
    if rate:
        text += f", {format_size(rate)}/s"
    if eta_s is not None and done < total:
        text += f", {format_duration(eta_s)} left"
    return text


@dataclass(slots=True)
class _Printed:
    at: float
    progress: GateProgress


class ProgressPrinter:
    """Writes progress and notices to `stream`; may be called from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._lock = threading.Lock()
        self._printed: dict[str, _Printed] = {}
        self._notices: dict[str, str] = {}
        self._open_line: str | None = None  # the model of the terminal's current line

    def progress(self, model: str, progress: GateProgress) -> None:
        """Print the progress of `model`, if it changed enough."""
        with self._lock:
            now = time.monotonic()
            last = self._printed.get(model)
            if last is None or last.progress.stage != progress.stage:
                self._end_line()
                self._write(model, progress)
            elif self._terminal and self._open_line == model:
                if last.progress == progress or now - last.at < _TERMINAL_EVERY_S:
                    return
                self._write(model, progress)
            elif now - last.at >= _REPEAT_S or (
                now - last.at >= _LOG_EVERY_S and last.progress.percent != progress.percent
            ):
                self._end_line()
                self._write(model, progress)
            else:
                return
            self._printed[model] = _Printed(now, progress)

    def line(self, text: str) -> None:
        """Print `text`."""
        with self._lock:
            self._end_line()
            self._stream.write(f"{_PREFIX}{text}\n")
            self._stream.flush()

    def notice(self, topic: str, text: str | None, over: str = "") -> None:
        """Print `text` when it changes for `topic`, and `over`, if any, when it becomes None."""
        before = self._notices.get(topic)
        if text == before:
            return
        if text is None:
            del self._notices[topic]
            if over:
                self.line(over)
        else:
            self._notices[topic] = text
            self.line(text)

    def _write(self, model: str, progress: GateProgress) -> None:
        text = f"{_PREFIX}{model}: {progress}"
        if self._terminal:
            width = get_terminal_size(self._stream.fileno()).columns or 80
            self._stream.write(f"\r\x1b[K{text[: width - 1]}")
            self._open_line = model
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def _end_line(self) -> None:
        if self._open_line is not None:
            self._stream.write("\n")
            self._open_line = None
