"""Clocks of a test: one set by hand, for code that is passed a clock; a wall clock that jumps, for processes."""

from __future__ import annotations

import shutil
import struct
import subprocess
import threading
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("clock.c")


class ManualClock:
    """A clock that stands still until a test sets `now_s`, or until the tested code sleeps by it."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let that time pass at once; threads that sleep together sleep one after the other."""
        assert seconds > 0
        with self._lock:
            self.now_s += seconds


class WallClock:
    """How far the wall clock of processes started with `environment` is from the machine's, in seconds; their monotonic
    clocks go on as ever. A library that is loaded before all others (LD_PRELOAD) does it, made from `clock.c` by the
    machine's C compiler; a test is skipped where there is none."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler to make a wall clock with (Debian: apt-get install gcc libc6-dev)")
        library = folder / "clock.so"
        self._offset = folder / "clock-offset"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE], check=True)
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "TEST_CLOCK": str(self._offset)}

    def set(self, seconds: int) -> None:
        """Let it be so far ahead of (or, negative, behind) the machine's from now on."""
        with self._offset.open("r+b" if self._offset.exists() else "wb") as file:
            file.write(struct.pack("l", seconds))
