"""HTML of texts, sizes and times. Law: pure; every text of others passes `text` or `message`.

A time is an element without text: the page's script fills in the age and keeps it current, and `fill_ages` does for a
reader without a script. So HTML is the same while nothing but time passes, and is not sent again.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html import escape

from cached.contract.status import parse_timestamp

_MOST_CHARACTERS = 1000  # of one text: an error may quote what a server said
# Control characters, marks that turn the direction of a line, tags, and halves of surrogate pairs: they would hide or
# reorder what stands beside them.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@]*@")
_QUERY = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?#\"'<>]+)[?#][^\s\"'<>)\]}]*")
_CODE = re.compile(r"`([^`]+)`")
_TIME = re.compile(r'<time datetime="([0-9T:Z-]+)"></time>')
_STEPS = ((60, 1, "s"), (3600, 60, "m"), (86400, 3600, "h"), (float("inf"), 86400, "d"))


def plain(value: str) -> str:
    """Return a text as it is shown: shortened, unseen characters as `\\u202e`. No text that comes here has
    credentials; should a URI have some, its user information, query and fragment are left out."""
    open_ = _QUERY.sub(r"\1", _USER.sub(r"\1", value)) if "://" in value else value
    short = open_ if len(open_) <= _MOST_CHARACTERS else f"{open_[: _MOST_CHARACTERS - 1]}…"
    if short.isprintable():  # so it is nearly always, and has none of them
        return short
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", short)


def text(value: str) -> str:
    """Return the HTML of a text, `plain` and escaped for content and attributes."""
    return escape(plain(value))


def message(value: str) -> str:
    """Return the HTML of a message, with what stands between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", text(value))


def age(since: str) -> str:
    """Return the element of the time since a UTC time as `contract.status.timestamp` writes it."""
    return f'<time datetime="{text(since)}"></time>'


def fill_ages(page: str, now: float) -> str:
    """Return the HTML with a text in each time element; `now` in seconds since the epoch."""
    return _TIME.sub(lambda found: f"{found[0][:-7]}{format_age(now - _parse(found[1], now))}</time>", page)


def format_age(seconds: float) -> str:
    """Return an age as the page's script writes it: `12s`, `3m`, `5h`, `2d`."""
    whole = max(0, int(seconds))
    _, unit_s, unit = next(step for step in _STEPS if whole < step[0])
    return f"{whole // unit_s}{unit}"


def format_clock(now: float) -> str:
    """Return a UTC time for a person; `now` in seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _parse(since: str, now: float) -> float:
    try:
        return parse_timestamp(since)
    except ValueError:
        return now
