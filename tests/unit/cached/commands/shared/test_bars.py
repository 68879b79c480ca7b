"""Bars on a terminal, a real one (a pseudo-terminal), and their absence elsewhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cached.commands.shared import bars
from cached.commands.shared.control_client import FetchFiles
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from tests.support.control import ControlServer, model_status, write_heartbeat, write_status
from tests.unit.cached.commands.conftest import publish

REF = ModelRef("acme/llama", "v1")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9;]*m")
FILES = {
    "files": [{"path": "model-00001-of-00002.safetensors", "bytes_total": 4096, "bytes_done": 1024}],
    "done": 1,
    "waiting": 2,
}


class Terminal:
    """A command on a pseudo-terminal of `columns`, and what it wrote."""

    def __init__(self, *arguments: object, columns: int = 100, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cached.cli", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**kept, "TERM": "xterm-256color", "PYTHONPATH": os.getcwd(), **environment},
            start_new_session=True,
        )
        os.close(slave)
        self.raw = ""

    def wait_for(self, condition: Callable[[str], bool]) -> str:
        """Read until `condition` holds of all text without escapes, or the command ends; returns that text."""
        deadline = time.monotonic() + 100
        while not condition(self.text) and time.monotonic() < deadline:
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.raw += os.read(self._master, 65536).decode()
                except OSError:  # the other side is closed: EIO, pty(7)
                    break
        assert condition(self.text), self.text
        return self.text

    @property
    def text(self) -> str:
        return ESCAPE.sub("", self.raw)

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, read the rest, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        while True:
            try:
                if not (data := os.read(self._master, 65536)):
                    break
            except OSError:
                break
            self.raw += data.decode()
        os.close(self._master)
        return self.process.wait(120)


@pytest.fixture
def fetching(layout: Layout) -> Layout:
    """A root with a version that is a quarter there, a failed one, and a daemon's heartbeat."""
    write_heartbeat(layout, time.time())
    write_status(layout, model_status(REF, State.FETCHING, bytes_total=8192, bytes_done=2048, eta_s=9.0))
    error = StatusError("unknown_model", "the catalog has no minilm", "add minilm to the catalog", permanent=True)
    write_status(layout, model_status(ModelRef("minilm", "1"), State.FAILED, error=error))
    return layout


def test_a_pull_has_a_bar_for_itself_and_for_each_file(
    fetching: Layout, control: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a pull waits it shows how far the version and its files are; once it is ready, only folder and digest stay,
    and the cursor is back."""
    control.answers["POST /v1/pull"] = 200, {"pull": "", "state": "fetching", "digest": None, "error": None}
    control.answers["POST /v1/files"] = 200, FILES
    monkeypatch.chdir(Path(__file__).parents[5])
    terminal = Terminal("pull", REF, "--root", fetching.root)
    shown = terminal.wait_for(lambda text: "1 file fetched" in text)
    assert "fetching  25 % of 8.0 KiB, 9s left" in shown
    assert "model-00001-of-00002.safetensors" in shown
    assert "1.0 KiB of 4.0 KiB" in shown
    assert "1 file fetched, 2 to come" in shown
    digest = publish(fetching, REF, {"w": b"w"})
    write_status(fetching, model_status(REF, State.READY, bytes_total=1, bytes_done=1))
    assert terminal.end() == 0
    assert str(digest) in terminal.text
    assert terminal.raw.rfind("\x1b[?25h") > terminal.raw.rfind("\x1b[?25l") >= 0


def test_a_pull_counts_only_files_that_it_fetches() -> None:
    """The only file of a pull that has begun is neither fetched nor to come; no zero is told of files that the node had
    before."""
    written = io.StringIO()
    console = Console(file=written, width=100)
    status = model_status(REF, State.FETCHING, bytes_total=8192, bytes_done=2048)
    console.print(bars.draw_pull("m@1", status, FetchFiles((("a.bin", 4096, 1024),), 0, 0)))
    shown = written.getvalue()
    assert "a.bin" in shown and "fetched" not in shown and "to come" not in shown


def test_a_pull_that_is_interrupted_gives_the_cursor_back(
    fetching: Layout, control: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the bars, says that the daemon goes on, and leaves the terminal as it was."""
    control.answers["POST /v1/pull"] = 200, {"pull": "", "state": "fetching", "digest": None, "error": None}
    control.answers["POST /v1/files"] = 404, {"error": {"code": "x", "message": "an older daemon"}}
    monkeypatch.chdir(Path(__file__).parents[5])
    terminal = Terminal("pull", REF, "--root", fetching.root)
    terminal.wait_for(lambda text: "25 %" in text)
    assert terminal.end(signal.SIGINT) == 1
    assert "the daemon goes on fetching" in terminal.text
    assert terminal.raw.rfind("\x1b[?25h") > terminal.raw.rfind("\x1b[?25l") >= 0


@pytest.mark.parametrize("columns", [80, 140])
def test_status_watch_fits_the_terminal(fetching: Layout, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live view has a bar for what moves and errors with their remedies, in lines that fit; what is shown last
    stays after Ctrl-C, which is its end."""
    monkeypatch.chdir(Path(__file__).parents[5])
    terminal = Terminal("status", "--watch", "--root", fetching.root, columns=columns)
    shown = terminal.wait_for(lambda text: "what to do: add minilm" in text)
    assert "━" in shown
    assert max(len(line) for line in shown.splitlines()) <= columns
    assert COLOUR.search(terminal.raw)
    assert terminal.end(signal.SIGINT) == 0
    assert "VERSION        STATE" in terminal.text.rpartition("━")[2]


def test_no_color_means_none(fetching: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR no command writes a colour, on a terminal too."""
    monkeypatch.chdir(Path(__file__).parents[5])
    publish(fetching, ModelRef("here", "1"), {"w": b"w"})
    for arguments in (("status", "--watch"), ("ls",), ("why", "minilm@1")):
        terminal = Terminal(*arguments, "--root", fetching.root, NO_COLOR="1")
        if "--watch" in arguments:
            terminal.wait_for(lambda text: "what to do: add minilm" in text)
            terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0, terminal.text
        assert not COLOUR.search(terminal.raw), arguments


def test_without_a_terminal_or_rich_there_are_lines(
    fetching: Layout, control: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rich is not installed, a pull shows the line that it always had; off a terminal nothing is drawn, and rich
    is not imported."""
    control.answers["POST /v1/pull"] = 200, {"pull": "", "state": "fetching", "digest": None, "error": None}
    (fetching.root / "hidden" / "rich").mkdir(parents=True)
    (fetching.root / "hidden" / "rich" / "__init__.py").write_text("raise ModuleNotFoundError(name='rich')\n")
    monkeypatch.chdir(Path(__file__).parents[5])
    hidden = os.pathsep.join([str(fetching.root / "hidden"), os.getcwd()])
    terminal = Terminal("pull", REF, "--root", fetching.root, PYTHONPATH=hidden)
    terminal.wait_for(lambda text: "fetching 2.0 KiB of 8.0 KiB (25 %)" in text)
    assert terminal.end(signal.SIGINT) == 1
    command = [sys.executable, "-X", "importtime", "-m", "cached.cli", "pull", str(REF), "--root", str(fetching.root)]
    done = subprocess.run([*command, "--timeout", "0.5"], capture_output=True, text=True, timeout=120)
    assert "fetching 2.0 KiB of 8.0 KiB (25 %)" in done.stderr
    assert "rich" not in done.stderr.replace("cached.commands", "")
