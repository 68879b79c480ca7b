"""Start the demo's processes, each in a process group of its own, and end all of them on every way out.

Law: a process started here ends here, its children too. A wait ends when its process dies or on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired
from threading import Event, Thread

from cached.contract.errors import Permanent


class Stopped(Exception):
    """A signal asked the demo to end: Ctrl-C, SIGTERM, or a closed terminal."""


class ProcessFailed(Permanent):
    """A process of the demo ended or did not become ready; `tail` has its last lines."""

    def __init__(self, message: str, tail: Sequence[str]) -> None:
        super().__init__("demo_process", message, "its last lines are above; mend what they name, run again")
        self.tail = tuple(tail)


class Process:
    """One running command; each line of its output goes to the file `log` and to `show`."""

    def __init__(self, running: Popen[str], log: Path, show: Callable[[str], None]) -> None:
        self._running, self._log, self._show = running, log, show
        self._tail: deque[str] = deque(maxlen=15)
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def lines(self) -> tuple[str, ...]:
        """Return its last lines, oldest first."""
        return tuple(self._tail)

    def code(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._running.poll()

    def failed(self, message: str) -> ProcessFailed:
        """Return the error with `message` and its last lines."""
        self._reader.join(timeout=1.0)
        return ProcessFailed(f"{self._log.stem} {message}", self.lines())

    def end(self, grace_s: float) -> None:
        """End it and its children: SIGTERM, after `grace_s` seconds SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, number)
            with contextlib.suppress(TimeoutExpired):
                self._running.wait(grace_s)
                self._reader.join(timeout=1.0)

    def _read(self) -> None:
        assert self._running.stdout is not None
        with self._running.stdout as lines, open(self._log, "a", encoding="utf-8", buffering=1) as kept:
            for line in lines:
                self._tail.append(line.rstrip("\n"))
                kept.write(line)
                self._show(line.rstrip("\n"))


class Processes:
    """All processes of one demo; leaving the `with` block ends them, the last started first.

    `logs` is a folder; `grace_s` are the seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, logs: Path, grace_s: float) -> None:
        self._logs, self._grace_s = logs, grace_s
        self._running: list[Process] = []
        self._stop = Event()

    def __enter__(self) -> Processes:
        # A flag, not an exception from the handler: that could strike between fork and the list of what to end.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: self._stop.set())
        return self

    def __exit__(self, *_error: object) -> None:
        for process in reversed(self._running):
            process.end(self._grace_s)

    def start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], show: Callable[[str], None] = lambda _line: None
    ) -> Process:
        """Start `argv` with exactly `env`; `show` gets each line of its output."""
        running = Popen(  # noqa: S603 - our own commands, no shell
            argv, 0, None, DEVNULL, PIPE, STDOUT, env=env, encoding="utf-8", errors="replace", start_new_session=True
        )
        self._running.append(Process(running, self._logs / f"{name}.log", show))
        return self._running[-1]

    def until(self, condition: Callable[[], bool], process: Process, what: str, timeout_s: float = 120.0) -> float:
        """Wait until `condition` holds; return the seconds. Raises `ProcessFailed` at its end or at the timeout."""
        began = time.monotonic()
        while not condition():
            if process.code() is not None:
                raise process.failed(f"ended with exit code {process.code()} before {what}")
            if time.monotonic() - began > timeout_s:
                raise process.failed(f"is not there yet after {timeout_s:g} s: expected {what}")
            if self._stop.wait(0.005):
                raise Stopped
        return time.monotonic() - began

    def finish(self, process: Process) -> None:
        """Wait for a command that ends by itself, 600 s at most; raises `ProcessFailed` unless its exit code is 0."""
        self.until(lambda: process.code() is not None, process, "its end", timeout_s=600.0)
        self.end(process)
        if process.code() != 0:
            raise process.failed(f"ended with exit code {process.code()}")

    def stay(self) -> None:
        """Wait for a signal; raises `ProcessFailed` as soon as a process ends."""
        while not self._stop.wait(0.5):
            for process in self._running:
                if process.code() is not None:
                    raise process.failed(f"ended with exit code {process.code()}")

    def end(self, *processes: Process) -> None:
        """End processes in this order."""
        for process in processes:
            self._running.remove(process)
            process.end(self._grace_s)
