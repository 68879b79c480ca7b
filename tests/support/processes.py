"""What /proc tells of a process.

Law: reads only; a process that is gone raises `ProcessLookupError` or `FileNotFoundError`.
"""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path


def wait_until_kept(pid: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Wait until a signal no longer ends the process by itself: the first thing that a long-running program does."""
    deadline = time.monotonic() + 100
    while not _blocked(pid) & (1 << (number - 1)):
        assert time.monotonic() < deadline, f"{pid} never kept {number.name}"
        time.sleep(0.001)


def memory(pid: int) -> dict[str, int]:
    """/proc/PID/smaps_rollup: bytes by name, as `Rss`, `Pss`, `Anonymous`."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(size) * 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}


def _blocked(pid: int) -> int:
    """The signals that the main thread blocks or handles, as a mask."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("SigBlk:")[2].split()[0], 16) | int(text.partition("SigCgt:")[2].split()[0], 16)
