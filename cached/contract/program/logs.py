"""The log of a program: lines on standard error, set up once, at its start.

Law: standard library only; every program that logs calls `log_to_stderr`, and nothing else configures `logging`. With
events (`--log-format json`) a record is one of them.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from cached.contract.errors import HoldfastError
from cached.contract.program.events import EventWriter, describe_error, format_time, format_traceback

LINE = "%(asctime)s %(levelname)s %(message)s"
LINE_WITH_NAME = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_REPEATS, _REPEATS_S = 10, 60.0
_MOST_MESSAGES = 512  # that are remembered, the newest
_FIELDS = "fields"  # of a record: what `about` has put there


def log_to_stderr(
    level: str, *, ours: Iterable[str] = ("",), line: str = LINE, events: EventWriter | None = None
) -> None:
    """Write each record to standard error: one line, in the %-style format `line` with its time in UTC, or one event.
    The loggers named in `ours` (by default the root) and below log from `level` on, a name in any case; all others from
    WARNING on, or from `level` where that is higher. The same message is written ten times a minute at most."""
    lowest = logging.getLevelNamesMapping()[level.upper()]
    handler = _lines(line) if events is None else _EventHandler(events)
    handler.addFilter(RepeatLimit())
    logging.basicConfig(level=max(lowest, logging.WARNING), handlers=[handler])
    for name in ours:
        logging.getLogger(name).setLevel(lowest)


class Described(Protocol):
    """An argument of a message that says which fields it is in an event: a `ModelRef`, a `Digest`, a pod's name."""

    @property
    def log_fields(self) -> Mapping[str, str]: ...


def about(*subjects: Described, **fields: str | None) -> dict[str, dict[str, str | None]]:
    """Return the `extra` of a log call whose event has these fields. None are needed for what is `Described` and among
    the arguments of the message."""
    return {_FIELDS: {**{name: text for each in subjects for name, text in each.log_fields.items()}, **fields}}


def take_over(library: str) -> None:
    """Have the records of a library that writes them itself, with a handler of its own, be events as all others; with
    text they stay as they are."""
    if any(isinstance(handler, _EventHandler) for handler in logging.getLogger().handlers):
        logger = logging.getLogger(library)
        logger.handlers.clear()
        logger.propagate = True


class RepeatLimit(logging.Filter):
    """Lets a message through ten times in a minute; the first one of a later minute says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}  # since when, and how often

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.levelno, record.getMessage())
        now = time.monotonic()
        with self._lock:
            since, count = self._seen.pop(key, (now, 0))
            left_out = 0
            if now - since >= _REPEATS_S:
                left_out = max(0, count - _REPEATS)
                since, count = now, 0
            self._seen[key] = since, count + 1
            if len(self._seen) > _MOST_MESSAGES:
                del self._seen[next(iter(self._seen))]
        record.left_out = left_out
        return count < _REPEATS


def _lines(line: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter(line))
    return handler


class _LineFormatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002 - of the base
        return format_time(record.created)

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        left_out = getattr(record, "left_out", 0)
        return f"{text} (and {left_out} more like it)" if left_out else text


class _EventHandler(logging.Handler):
    def __init__(self, events: EventWriter) -> None:
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {"logger": record.name, **dict(_fields(record))}
            self._events.write_at(record.created, record.levelname.lower(), record.getMessage(), fields)
        except Exception:  # noqa: BLE001 - as every handler: a record that cannot be written ends no program
            self.handleError(record)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a record's event; a later one counts."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    for argument in reversed(arguments):  # of two digests the first
        if isinstance(argument, HoldfastError):
            yield from describe_error(argument).items()
        else:
            yield from getattr(argument, "log_fields", {}).items()
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        yield from describe_error(error).items()
        yield "error", format_traceback(error)
    yield from getattr(record, _FIELDS, {}).items()
    yield "repeated", getattr(record, "left_out", 0) or None
