"""A warm parent of daemons: it has imported what a daemon imports, and forks one for each request.

Law: a daemon made here is a process of its own (pid, sockets, threads, `kill -9`) that runs the program's own `main`;
all it is spared is the second that importing takes. Before `main` it wraps its system calls as its plan says, and has
an engine of small ranges, so that two megabytes go through what two hundred would.

    python -m tests.support.crashing.warm     one JSON request a line on stdin, one JSON answer a line on stdout
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from tests.support.crashing.points import Plan
from tests.support.daemon import PATIENCE_S, REPOSITORY, DaemonProcess, bare_environment, daemon_command

SEGMENT_BYTES = 256 * 1024
RECORD_FROM_BYTES = 2 * SEGMENT_BYTES
_SCRUB_PAUSE_S = 0.02
_PR_SET_PDEATHSIG = 1
_TELL = signal.SIGUSR1  # a daemon that hangs says where


class WarmParent:
    """The parent process and its requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crashing.warm"],
            cwd=REPOSITORY,
            env=bare_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, arguments: list[str], log: Path, plan: Plan | None) -> int:
        """Start a daemon; returns its pid. `log` takes its output."""
        told = None if plan is None else plan.encode()
        return self._ask({"arguments": arguments, "log": os.fspath(log), "plan": told})

    def reap(self, pid: int) -> int:
        """Wait for the end of a daemon; returns its exit code, or minus the signal that ended it."""
        return self._ask({"reap": pid})

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()


class Died(Exception):
    """The daemon was killed at its point while something was waited for."""


class WarmDaemon(DaemonProcess):
    """A daemon out of a warm parent. `plan` holds for the next launch."""

    def __init__(self, folder: Path, parent: WarmParent, *options: str) -> None:
        super().__init__(folder, *options)
        self._parent = parent
        self._pid = 0
        self._pidfd = -1
        self._code: int | None = None
        self.plan: Plan | None = None

    def launch(self, *more: str) -> None:
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        self._log.touch()
        command = daemon_command(self.layout.root, self.catalog)
        arguments = [*command[command.index("daemon") :], *self._options, *more]
        self._code = None
        self._pid = self._parent.start(arguments, self._log, self.plan)
        self._pidfd = os.pidfd_open(self._pid)

    def stop(self) -> int:
        self._signal(signal.SIGTERM)
        return self._reaped()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._reaped()

    def end(self) -> None:
        if self._pidfd >= 0:
            self.kill()

    @property
    def pid(self) -> int:
        return self._pid

    def code(self) -> int | None:
        if self._pidfd >= 0 and select.select([self._pidfd], [], [], 0)[0]:
            self._reaped()
        return self._code

    def died(self) -> bool:
        """Tell whether it was killed, giving a process that is just going down the time to."""
        deadline = time.monotonic() + 30
        while self.code() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.code() == -signal.SIGKILL

    def wait(self, condition: Any, what: Any) -> None:
        def alive() -> bool:
            if self.code() == -signal.SIGKILL:
                raise Died
            return bool(condition())

        try:
            super().wait(alive, what)
        except AssertionError as never:
            if self.code() is not None:
                raise
            self._signal(_TELL)
            time.sleep(0.5)
            raise AssertionError(f"{never}\n{self.log()[-8000:]}") from never

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, number)

    def _reaped(self) -> int:
        if self._pidfd >= 0:
            self._code = self._parent.reap(self._pid)
            os.close(self._pidfd)
            self._pidfd = -1
        assert self._code is not None
        return self._code


# --- the parent's side ---------------------------------------------------------------------------------------------


def _serve() -> None:
    from cached.daemon import main
    from cached.fetch import attempt
    from cached.node.integrity import scrub
    from cached.sources.http import source
    from tests.support.crashing import wrapping

    assert main and source and wrapping
    attempt.SEGMENT_BYTES = SEGMENT_BYTES  # type: ignore[attr-defined]  # as the attempts see it
    attempt.RECORD_FROM_BYTES = RECORD_FROM_BYTES
    attempt._RECORDED_BYTES = 3 * SEGMENT_BYTES // 2
    scrub._PAUSE_S = _SCRUB_PAUSE_S
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _be_daemon(request)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _be_daemon(request: dict[str, Any]) -> NoReturn:
    from cached.cli import main
    from tests.support.crashing.wrapping import install

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, standard)
    os.close(log)
    os.close(nothing)
    random.seed()
    faulthandler.register(_TELL, all_threads=True)
    code = 1
    try:
        if request["plan"] is not None:
            install(Plan.decode(request["plan"]))
        code = main(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
