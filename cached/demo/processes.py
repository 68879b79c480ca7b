"""Start the demo's processes, each in a process group of its own, and end all of them whatever happens.

Law: what is started here is ended here, its children too. Waiting never outlives a process that died, nor a person who
pressed Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from cached.contract.errors import Permanent

_POLL_S = 0.005
_TAIL_LINES = 15


class Stopped(Exception):
    """Somebody asked the demo to end: Ctrl-C, SIGTERM, or a closed terminal."""


class ProcessFailed(Permanent):
    """A process of the demo ended, or never got ready; `tail` is the last it said."""

    def __init__(self, name: str, message: str, tail: Sequence[str]) -> None:
        super().__init__(
            "demo_process", f"{name} {message}", "its last lines are above; mend what they name, run again"
        )
        self.tail = tuple(tail)


class Process:
    """One running command. Its output goes to a log file; `show` is told each line as it comes."""

    def __init__(self, name: str, running: subprocess.Popen[str], log: Path, show: Callable[[str], None]) -> None:
        self.name = name
        self._running = running
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._reader = threading.Thread(target=self._read, args=(log, show), name=f"read {name}", daemon=True)
        self._reader.start()

    def lines(self) -> tuple[str, ...]:
        """The last lines it wrote, oldest first."""
        return tuple(self._tail)

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._running.poll()

    def failed(self, message: str) -> ProcessFailed:
        """The error that says so, with what it said last."""
        self._reader.join(timeout=1.0)
        return ProcessFailed(self.name, message, self.lines())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, number)

    def wait(self, timeout_s: float) -> None:
        """Wait for its end and its last line, at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running.wait(timeout_s)
            self._reader.join(timeout=1.0)

    def _read(self, log: Path, show: Callable[[str], None]) -> None:
        assert self._running.stdout is not None
        with self._running.stdout as lines, open(log, "a", encoding="utf-8") as kept:
            for line in lines:
                self._tail.append(line.rstrip("\n"))
                kept.write(line)
                kept.flush()
                show(line.rstrip("\n"))


class Processes:
    """All processes of one demo; leaving the `with` block ends them, the last started first.

    `logs` is a folder; `grace_s` are the seconds a process has to end in after SIGTERM.
    """

    def __init__(self, logs: Path, grace_s: float) -> None:
        self._logs, self._grace_s = logs, grace_s
        self._running: list[Process] = []
        self._stop = threading.Event()

    def __enter__(self) -> Processes:
        # A flag, not an exception out of the handler: that could strike between fork and the list of what to end.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._asked_to_stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in reversed(self._running):
            self._end(process)

    def start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], show: Callable[[str], None] = lambda _line: None
    ) -> Process:
        """Start `argv` with exactly `env`."""
        running = subprocess.Popen(  # noqa: S603 - our own commands, no shell
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        process = Process(name, running, self._logs / f"{name}.log", show)
        self._running.append(process)
        return process

    def until(self, condition: Callable[[], bool], process: Process, what: str, timeout_s: float = 120.0) -> float:
        """Wait until `condition` holds; returns the seconds that took. Raises as `process` dies or the time is up."""
        began = time.monotonic()
        while not condition():
            code = process.code()
            if code is not None:
                raise process.failed(f"ended with exit code {code} before {what}")
            if time.monotonic() - began > timeout_s:
                raise process.failed(f"is not there yet after {timeout_s:g} s: expected {what}")
            self.pause(_POLL_S)
        return time.monotonic() - began

    def finish(self, process: Process, timeout_s: float = 600.0) -> None:
        """Wait for the end of a command that ends by itself; raises unless its exit code is 0."""
        deadline = time.monotonic() + timeout_s
        while process.code() is None and time.monotonic() < deadline:
            self.pause(_POLL_S)
        if process.code() is None:
            raise process.failed(f"still runs after {timeout_s:g} s")
        process.wait(0)
        self._running.remove(process)
        if process.code() != 0:
            raise process.failed(f"ended with exit code {process.code()}")

    def stay(self) -> None:
        """Stay until somebody asks to end; raises as soon as a process dies."""
        while not self._stop.wait(0.5):
            for process in self._running:
                if process.code() is not None:
                    raise process.failed(f"ended with exit code {process.code()}")

    def end(self, process: Process) -> float:
        """End a process; returns the seconds it took."""
        self._running.remove(process)
        return self._end(process)

    def pause(self, seconds: float) -> None:
        """Sleep; raises `Stopped` when somebody asks to end."""
        if self._stop.wait(seconds):
            raise Stopped

    def _asked_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _end(self, process: Process) -> float:
        """Politely, then not; children that outlived it go too."""
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        process.wait(self._grace_s)
        process.signal(signal.SIGKILL)
        process.wait(self._grace_s)
        return time.monotonic() - began
