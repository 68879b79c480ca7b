"""Run a program and measure it: wall time, CPU time of its whole process tree, peak memory.

Law: counts the client's processes only, never the server's, from the kernel's accounts: wait4(2) for a program that
ends, /proc for one that keeps running. Knows neither Holdfast nor any tool.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cached.contract.errors import Permanent

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SAMPLE_MS = 50
_LOG_TAIL_BYTES = 2000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Usage:
    """A run's cost: `wall_s` and `cpu_s` in seconds, `peak_bytes` of resident memory."""

    wall_s: float
    cpu_s: float
    peak_bytes: int

    def then(self, following: Usage) -> Usage:
        """Return the cost of this run and the following one: the sum of the times, the larger peak."""
        return Usage(
            self.wall_s + following.wall_s,
            self.cpu_s + following.cpu_s,
            max(self.peak_bytes, following.peak_bytes),
        )


def run_program(argv: Sequence[str], environment: Mapping[str, str], log: Path, timeout_s: float) -> Usage:
    """Run `argv` with its output in `log`; raises `Permanent` after a failure or past `timeout_s`."""
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=dict(environment), stdout=output, stderr=subprocess.STDOUT)
    try:
        peak = _watch(process.pid, started + timeout_s)
    except BaseException:
        process.kill()
        process.wait()
        raise
    wall_s = time.monotonic() - started
    _, status, accounts = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise failed(f"{argv[0]} ended with {process.returncode}: {tail(log)}")
    return Usage(wall_s, accounts.ru_utime + accounts.ru_stime, peak)


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a running process and its descendants, in seconds."""
    # After the name in parentheses, which may contain spaces: utime, stime, cutime, cstime are fields 14 to 17.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S
    return own + sum(cpu_seconds(child) for child in _children(pid))


def run_seconds(pid: int) -> float:
    """Return the CPU time of a process's threads, of those that run now: ticks are too coarse for an idle one."""
    times = [path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(map(int, times)) / 1e9


def cpu_seconds_by_name(names: Collection[str]) -> float:
    """Return the user and system time of all processes that the kernel calls so, of their ended children too."""
    total = 0.0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            head, _, rest = (folder / "stat").read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if head.partition("(")[2] in names:
            total += sum(int(ticks) for ticks in rest.split()[11:15]) / _TICKS_PER_S
    return total


def peak_memory(pid: int) -> int:
    """Return the peak resident bytes of a running process and its descendants; 0 after its end."""
    # Not ru_maxrss: exec(2) keeps the peak of the forking process there, which is this one.
    return _memory(pid, "VmHWM")


def resident_memory(pid: int) -> int:
    """Return the resident bytes of a running process and its descendants now; 0 after its end."""
    return _memory(pid, "VmRSS")


def io_count(pid: int, field: str) -> int:
    """Return a field of /proc/PID/io in bytes: `read_bytes` from the disk, `wchar` passed to write(2)."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def wait_until(probe: Callable[[], T | None], what: str, timeout_s: float, every_s: float = 0.005) -> T:
    """Call `probe` until it returns a value; raises `Permanent` that names `what` after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while (found := probe()) is None:
        if time.monotonic() > deadline:
            raise failed(f"no {what} within {timeout_s:.0f} s")
        time.sleep(every_s)
    return found


def stop(process: subprocess.Popen[bytes], timeout_s: float = 15) -> None:
    """End a child process: SIGTERM, then SIGKILL after `timeout_s` seconds."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail(log: Path) -> str:
    """Return the end of a log, for an error message."""
    return log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip() or "it printed nothing"


def failed(message: str, remedy: str = "read the program's own output") -> Permanent:
    """Return the error of a benchmark that cannot continue."""
    return Permanent("bench_failed", message, remedy)


def _watch(pid: int, deadline: float) -> int:
    peak = 0
    descriptor = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        while not poller.poll(_SAMPLE_MS):
            peak = max(peak, peak_memory(pid))
            if time.monotonic() > deadline:
                raise failed("a program ran past its time")
    finally:
        os.close(descriptor)
    return peak


def _memory(pid: int, field: str) -> int:
    """Return a field of /proc/PID/status in bytes, summed over the process and its descendants."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = _children(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:")), 0)
    return own + sum(_memory(child, field) for child in children)


def _children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return []
    found: list[int] = []
    for task in tasks:
        try:
            found.extend(int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # the thread ended, or the kernel has no such list
            continue
    return found
