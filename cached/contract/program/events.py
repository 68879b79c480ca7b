"""The events of a program's log as lines of JSON, for `--log-format json`.

Law: standard library without `logging`, cheap to import. An event is one line, whatever is in it. With this format all
that a process writes is an event: what is printed, warnings, and what ends a thread or the process.
"""

from __future__ import annotations

import atexit
import io
import json
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from cached.contract.errors import HoldfastError
from cached.contract.program.options import LOG_JSON, find_log_format
from cached.contract.program.process import LossyStream

_MOST_CHARACTERS = 8192  # of a value; a runtime cuts lines at 16 KiB, which its readers put together again
_MOST_OF_A_TRACEBACK = 32768
_MOST_PENDING = 65536  # of a line that is printed without an end
_program: EventWriter | None = None


class EventWriter:
    """Writes events to a stream, from several threads; `constant` fields are in each of them."""

    def __init__(self, stream: TextIO, program: str, **constant: str) -> None:
        self._stream = stream
        self._program = program
        self._constant = constant
        self._lock = threading.Lock()

    def add_constant(self, **fields: str) -> None:
        """Put these fields into every later event; an empty one is left out."""
        self._constant.update((name, value) for name, value in fields.items() if value)

    def write(self, level: str, message: str, **fields: Any) -> None:
        """Write one event of now; a field that is None is left out."""
        self.write_at(time.time(), level, message, fields)

    def write_at(self, at: float, level: str, message: str, fields: Mapping[str, Any]) -> None:
        """Write one event of another time, in seconds of the clock."""
        event = {"time": format_time(at), "level": level, "program": self._program, "message": _shorten(message)}
        event |= self._constant
        event |= {name: _plain(name, value) for name, value in fields.items() if value is not None}
        line = json.dumps(event, separators=(",", ":"))  # ASCII: some readers end a line at U+2028 too
        with self._lock:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def write_error(self, message: str, error: BaseException) -> None:
        """Write an error that nothing handled, with its traceback."""
        self.write("error", message, **describe_error(error), error=format_traceback(error))


def open_events(program: str, arguments: Sequence[str]) -> EventWriter | None:
    """Have all that this process writes be events from now on, where its arguments or the environment ask for that;
    None where they do not. Called once, before the arguments are parsed."""
    global _program
    if find_log_format(arguments) != LOG_JSON:
        return None
    made = EventWriter(sys.stderr, program)
    if isinstance(sys.stderr, LossyStream):
        sys.stderr.describe_loss = lambda lines: _lost_lines(program, lines)
    printed = [_PrintedEvents(made, sys.stdout, "stdout"), _PrintedEvents(made, sys.stderr, "stderr")]
    sys.stdout, sys.stderr = printed
    atexit.register(_end, printed)
    hooks = _Hooks(made)
    sys.excepthook = hooks.report
    threading.excepthook = hooks.report_thread
    sys.unraisablehook = hooks.report_unraisable
    warnings.showwarning = hooks.report_warning
    _program = made
    return made


def report_end(program: str, error: HoldfastError) -> None:
    """Write why the program ends: a line that begins with its name, or an event."""
    if _program is None:
        sys.stderr.write(f"{program}: {error}\n")
    else:
        _program.write("error", error.message, **describe_error(error))


def report_usage(message: str) -> bool:
    """Write a mistake in the options as an event; return False where the log is text."""
    if _program is not None:
        _program.write("error", message, code="usage")
    return _program is not None


def describe_error(error: BaseException | None) -> dict[str, str | None]:
    """Return the fields of an error of ours; none of any other."""
    return {"code": error.code, "remedy": error.remedy or None} if isinstance(error, HoldfastError) else {}


def format_time(at: float) -> str:
    """Return UTC with milliseconds: `2026-11-30T09:15:00.123Z`."""
    milliseconds = int(at * 1000)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{whole}.{milliseconds % 1000:03d}Z"


def format_traceback(error: BaseException) -> str:
    """Return the lines of a traceback, without an end of line; of a long one the last."""
    return "".join(traceback.format_exception(error)).rstrip("\n")[-_MOST_OF_A_TRACEBACK:]


class _PrintedEvents(io.TextIOBase):
    """A stream whose lines become events. What a carriage return overwrites, as a progress bar does, is none."""

    def __init__(self, events: EventWriter, stream: TextIO, name: str) -> None:
        self._events = events
        self._stream = stream
        self._name = name
        self._lock = threading.RLock()
        self._pending = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._pending = (self._pending + text).split("\n")
            self._pending = self._pending[-_MOST_PENDING:]
            for line in lines:
                self._put(line)
        return len(text)

    def flush(self) -> None:
        """Flush what lies below; a line without an end waits for it."""
        self._stream.flush()

    def end(self) -> None:
        """Write a last line that has no end."""
        with self._lock:
            self._put(self._pending)
            self._pending = ""

    def _put(self, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2].strip()
        if shown:
            self._events.write("info", shown, logger=self._name)


class _Hooks:
    """What Python calls for an error or a warning without a handler."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events

    def report(self, kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        self._events.write_error(f"the program ends: {kind.__name__}: {error}", error)

    def report_thread(self, found: threading.ExceptHookArgs) -> None:
        name = "" if found.thread is None else found.thread.name
        if found.exc_value is not None and not isinstance(found.exc_value, SystemExit):
            kind = found.exc_type.__name__
            self._events.write_error(f"thread {name} ends: {kind}: {found.exc_value}", found.exc_value)

    def report_unraisable(self, found: Any) -> None:
        what = found.err_msg or "Exception ignored in"
        if found.exc_value is not None:
            self._events.write_error(f"{what}: {type(found.exc_value).__name__}: {found.exc_value}", found.exc_value)

    def report_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG002 - `warnings` has it
        line: str | None = None,  # noqa: ARG002
    ) -> None:
        self._events.write("warning", f"{filename}:{lineno}: {category.__name__}: {message}", logger="py.warnings")


def _end(printed: Sequence[_PrintedEvents]) -> None:
    for each in printed:
        each.end()


def _lost_lines(program: str, lines: int) -> str:
    event = {"time": format_time(time.time()), "level": "warning", "program": program}
    return json.dumps({**event, "message": f"log lines dropped: {lines}"}, separators=(",", ":")) + "\n"


def _shorten(text: str) -> str:
    return _whole(text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…")


def _whole(text: str) -> str:
    """Return the text without halves of characters, which strict parsers of JSON refuse."""
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, int):
        return value
    return _whole(str(value)) if name == "error" else _shorten(str(value))
