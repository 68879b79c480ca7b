"""The log of a program: lines on standard error, set up once, at its start.

Law: standard library only; every program that logs calls `log_to_stderr`, and nothing else configures `logging`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

LINE = "%(asctime)s %(levelname)s %(message)s"
LINE_WITH_NAME = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_stderr(level: str, *, ours: Iterable[str] = ("",), line: str = LINE) -> None:
    """Write one line, in the %-style format `line`, for each record to standard error. The loggers named in `ours` (by
    default the root) and below log from `level` on, a name in any case; all others from WARNING on, or from `level`
    where that is higher."""
    lowest = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(lowest, logging.WARNING), stream=sys.stderr, format=line)
    for name in ours:
        logging.getLogger(name).setLevel(lowest)
