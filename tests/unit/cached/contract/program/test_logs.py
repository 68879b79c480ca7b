"""The log of a program, as a process of its own writes it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from datetime import datetime, timedelta

import pytest

_PROGRAM = """
import logging
from cached.contract.program.logs import {names}
{setup}
for name in ("cached.store", "library"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)("%s says %s", name, level)
"""


def lines(names: str, setup: str) -> list[str]:
    """What such a program writes to standard error, without the dates; nothing goes to standard output."""
    program = _PROGRAM.format(names=names, setup=setup)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", "", line) for line in done.stderr.splitlines()]


def test_times_are_utc() -> None:
    """A line has the time of UTC with milliseconds, whatever the zone of the machine: logs of two nodes compare."""
    program = _PROGRAM.format(names="log_to_stderr", setup='log_to_stderr("error")')
    environment = {**os.environ, "TZ": "XST-14"}
    began = time.time() - 1
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    written = datetime.fromisoformat(done.stderr.partition(" ")[0])
    assert written.utcoffset() == timedelta(0)
    assert began <= written.timestamp() <= time.time()


def test_everything_from_the_level_on() -> None:
    """Without names of ours, libraries log from the same level."""
    assert lines("log_to_stderr", 'log_to_stderr("warning")') == [
        "WARNING cached.store says warning",
        "ERROR cached.store says error",
        "WARNING library says warning",
        "ERROR library says error",
    ]
    assert "DEBUG library says debug" in lines("log_to_stderr", 'log_to_stderr("DEBUG")')


@pytest.mark.parametrize(
    ("level", "of_ours", "of_libraries"),
    [
        ("debug", ["DEBUG", "INFO", "WARNING", "ERROR"], ["WARNING", "ERROR"]),
        ("info", ["INFO", "WARNING", "ERROR"], ["WARNING", "ERROR"]),
        ("error", ["ERROR"], ["ERROR"]),
    ],
)
def test_libraries_say_what_is_wrong_and_no_more(level: str, of_ours: list[str], of_libraries: list[str]) -> None:
    """Loggers of ours and those below them log from the level on, others never below WARNING."""
    said = lines("log_to_stderr", f'log_to_stderr("{level}", ours=("cached",))')
    assert [line.split()[0] for line in said if "cached" in line] == of_ours
    assert [line.split()[0] for line in said if "library" in line] == of_libraries


def test_a_line_may_name_its_logger() -> None:
    """The server's lines say which part of it speaks."""
    said = lines("LINE_WITH_NAME, log_to_stderr", 'log_to_stderr("error", line=LINE_WITH_NAME)')
    assert said == ["ERROR cached.store: cached.store says error", "ERROR library: library says error"]
