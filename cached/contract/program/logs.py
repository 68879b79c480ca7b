"""The log of a program: lines on standard error, set up once, at its start.

Law: standard library only; every program that logs calls `log_to_stderr`, and nothing else configures `logging`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

LINE = "%(asctime)s %(levelname)s %(message)s"
LINE_WITH_NAME = "%(asctime)s %(levelname)s %(name)s: %(message)s"

EVERYTHING = ("",)  # the root logger's name


def log_to_stderr(level: str, *, ours: Iterable[str] = EVERYTHING, line: str = LINE) -> None:
    """Write one line for each record to standard error.

    `level` is a name of `logging`'s levels, in any case. The loggers named in `ours`, and those below them, log from
    it on; all others (libraries') from WARNING on, or from `level` where that is higher. `line` is a %-style format.
    """
    lowest = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(lowest, logging.WARNING), stream=sys.stderr, format=line)
    for name in ours:
        logging.getLogger(name).setLevel(lowest)
