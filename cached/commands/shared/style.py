"""Colours of a terminal, sparingly: a state's word, a heading.

Law: text without escapes wherever standard output is no terminal, `NO_COLOR` is set (https://no-color.org), or TERM is
`dumb`. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_BY_STATE = {"ready": "green", "failed": "red", "fetching": "cyan", "verifying": "cyan", "publishing": "cyan"}


def is_terminal(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that can be drawn on."""
    return os.environ.get("TERM", "") not in ("", "dumb") and stream.isatty()


def is_styled(stream: TextIO) -> bool:
    """Return whether escapes may be written to `stream`."""
    return not os.environ.get("NO_COLOR") and is_terminal(stream)


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return `text` in a colour or bold, where `stream` (standard output) takes that."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if is_styled(stream or sys.stdout) else text


def paint_state(text: str, state: str) -> str:
    """Return `text` in the colour of a version's state."""
    return paint(text, _BY_STATE[state]) if state in _BY_STATE else text


def wrap(text: str, indent: str = "") -> str:
    """Return `text` in lines that fit the terminal; elsewhere in one line. Words, as URIs, stay whole."""
    if not sys.stdout.isatty():
        return indent + text
    width = max(20, min(100, shutil.get_terminal_size().columns))
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
