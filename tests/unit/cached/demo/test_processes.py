"""The demo's processes: each process that starts ends, and each early end is reported."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from cached.demo.processes import DemoProcess, Processes

ENV = dict(os.environ)
GRACE_S = 10.0
PARENT = (
    "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
)
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """`Processes` takes the signal handlers: give them back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def succeed(processes: Processes, process: DemoProcess) -> None:
    processes.wait(lambda: process.poll() == 0, process, "its end")


def gone(pid: int) -> bool:
    """Whether the process ends soon; a zombie has ended."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_leaving_ends_children_of_children(tmp_path: Path) -> None:
    """Leaving the block ends a process and what that process started."""
    with Processes(tmp_path, GRACE_S) as processes:
        parent = processes.start("parent", python(PARENT), ENV)
        processes.wait(lambda: bool(parent.lines), parent, "a line")
        child = int(parent.lines[0])
    assert parent.poll() is not None
    assert gone(child)


def test_an_error_ends_everything_too(tmp_path: Path) -> None:
    """An exception in the block ends all processes before it goes on."""
    with pytest.raises(KeyError), Processes(tmp_path, GRACE_S) as processes:
        sleeping = processes.start("sleeping", ["sleep", "600"], ENV)
        raise KeyError
    assert sleeping.poll() == -signal.SIGTERM


def test_a_process_that_will_not_end_is_killed(tmp_path: Path) -> None:
    """A process that ignores SIGTERM is killed once its grace is over."""
    with Processes(tmp_path, 0.1) as processes:
        stubborn = processes.start("stubborn", python(STUBBORN), ENV)
        processes.wait(lambda: bool(stubborn.lines), stubborn, "a line")
    assert stubborn.poll() == -signal.SIGKILL


def test_waiting_for_a_process_that_dies_prints_its_last_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`wait` ends at once when the process dies, and prints its last lines."""
    with Processes(tmp_path, GRACE_S) as processes:
        dying = processes.start("dying", python("print('no disk'); raise SystemExit(3)"), ENV)
        with pytest.raises(Permanent, match="dying ended with exit code 3"):
            processes.wait(lambda: False, dying, "ready")
    assert capsys.readouterr().out == "\n   no disk\n"


def test_waiting_has_an_end(tmp_path: Path) -> None:
    """`wait` gives up after its timeout and says what it waited for."""
    with Processes(tmp_path, GRACE_S) as processes:
        sleeping = processes.start("sleeping", ["sleep", "600"], ENV)
        with pytest.raises(Permanent, match="expected a miracle"):
            processes.wait(lambda: False, sleeping, "a miracle", timeout_s=0.01)


def test_a_command_that_fails_raises(tmp_path: Path) -> None:
    """`wait` raises for a process that ends with another exit code than 0."""
    with Processes(tmp_path, GRACE_S) as processes:
        succeed(processes, processes.start("good", ["true"], ENV))
        with pytest.raises(Permanent, match="exit code 1"):
            succeed(processes, processes.start("bad", ["false"], ENV))


def test_output_is_shown_and_kept(tmp_path: Path) -> None:
    """Each line goes to `show` and to the log file."""
    shown: list[str] = []
    with Processes(tmp_path, GRACE_S) as processes:
        succeed(processes, processes.start("talking", python("print('a'); print('b')"), ENV, shown.append))
    assert shown == ["a", "b"]
    assert (tmp_path / "talking.log").read_text() == "a\nb\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_every_wait(tmp_path: Path, number: signal.Signals) -> None:
    """SIGINT, SIGTERM and SIGHUP turn the next wait into `KeyboardInterrupt`, and processes end."""
    with pytest.raises(KeyboardInterrupt), Processes(tmp_path, GRACE_S) as processes:
        sleeping = processes.start("sleeping", ["sleep", "600"], ENV)
        os.kill(os.getpid(), number)
        processes.wait(lambda: False, sleeping, "nothing")
    assert sleeping.poll() is not None


def test_staying_ends_with_a_signal(tmp_path: Path) -> None:
    """`wait_for_signal` returns after a signal."""
    with Processes(tmp_path, GRACE_S) as processes:
        processes.start("sleeping", ["sleep", "600"], ENV)
        os.kill(os.getpid(), signal.SIGINT)
        processes.wait_for_signal()


def test_staying_notices_a_process_that_dies(tmp_path: Path) -> None:
    """`wait_for_signal` raises when a process that should run on ends, even with exit code 0."""
    with Processes(tmp_path, GRACE_S) as processes:
        processes.start("short", ["true"], ENV)
        with pytest.raises(Permanent, match="short ended"):
            processes.wait_for_signal()


def test_the_processes_do_not_hear_the_terminals_ctrl_c(tmp_path: Path) -> None:
    """Each process has a process group of its own, so that only the demo hears Ctrl-C and ends them in order."""
    with Processes(tmp_path, GRACE_S) as processes:
        own = processes.start("own", python("import os; print(os.getpgid(0), flush=True)"), ENV)
        succeed(processes, own)
    assert list(own.lines) != [str(os.getpgid(0))]


def test_children_go_also_when_their_parent_died(tmp_path: Path) -> None:
    """A child whose parent was killed is ended with the rest."""
    with Processes(tmp_path, GRACE_S) as processes:
        parent = processes.start("parent", python(PARENT), ENV)
        processes.wait(lambda: bool(parent.lines), parent, "a line")
        child = int(parent.lines[0])
        os.kill(_pid_of_parent(child), signal.SIGKILL)
    assert gone(child)


def _pid_of_parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
