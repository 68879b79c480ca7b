"""What `--log-format json` promises of each line."""

from __future__ import annotations

import json
import re
from typing import Any

# docs/design.md, "The log".
ALWAYS = {"time", "level", "program", "message"}
SOMETIMES = {"logger", "model", "version", "digest", "pod", "node", "code", "remedy", "percent", "repeated", "error"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_LEVELS = {"debug", "info", "warning", "error", "critical"}

Event = dict[str, Any]


def read_events(text: str) -> list[Event]:
    """The events of a log; fails where a line is none, or has a key or a value that the design does not name."""
    found: list[Event] = [json.loads(line) for line in text.splitlines()]
    for event in found:
        assert ALWAYS <= event.keys() <= ALWAYS | SOMETIMES, event
        assert _TIME.fullmatch(event["time"]) and event["level"] in _LEVELS, event
        assert all(isinstance(event[key], str) for key in event.keys() - {"percent", "repeated"}), event
    return found


def one_with(events: list[Event], words: str) -> Event:
    """The one event whose message has these words."""
    (only,) = [event for event in events if words in event["message"]]
    return only
