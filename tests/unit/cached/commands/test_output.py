"""Standard output and standard error that are closed, full, or that nothing reads; and Ctrl-C."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cached.cli import COMMANDS
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from tests.unit.cached.commands.conftest import publish

HOLDFAST = shlex.join([sys.executable, "-m", "cached"])
REF = ModelRef("minilm", "1")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", ["", *sorted(COMMANDS)])
@pytest.mark.parametrize("where", [">/dev/full", ">&-", "2>&- >&-", "2>/dev/full >/dev/full"])
def test_help_that_cannot_be_written_is_no_traceback(command: str, where: str) -> None:
    """Help whose output is full or closed ends with 1 and at most a sentence."""
    done = shell(f"{HOLDFAST} {command} --help {where}")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if not where.startswith("2"):
        assert "cannot write to standard output" in done.stderr


@pytest.mark.parametrize(
    "command", ["ls", "ls --json", "status", "status --json", "verify", "inspect minilm@1", "status --watch"]
)
@pytest.mark.parametrize("where", [">/dev/full", ">&-", "| head -c 0", "2>&1 >/dev/full | head -c 0"])
def test_reading_commands_end_without_a_traceback(layout: Layout, command: str, where: str) -> None:
    """A reading command whose output is full, closed or unread ends by itself with 1 and no traceback."""
    publish(layout, REF, {"a": b"a"})
    done = shell(f"set -o pipefail; {HOLDFAST} {command} --root {layout.root} {where}")
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_a_publish_whose_digest_is_lost_does_not_report_success(tmp_path: Path, where: str) -> None:
    """A publish that cannot write its digest line ends with 1 and says why; the version is published."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = shell(f"{HOLDFAST} publish {tmp_path}/model {tmp_path}/there {where}")
    assert done.returncode == 1
    assert "cannot write to standard output" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "there" / "holdfast.json").exists()


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "2> >(head -c 0)"])
def test_a_publish_whose_progress_is_lost_succeeds(tmp_path: Path, where: str) -> None:
    """Standard error that takes nothing loses progress lines and nothing else."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = shell(f"{HOLDFAST} publish {tmp_path}/model {tmp_path}/there {where}")
    assert done.returncode == 0
    assert done.stdout.startswith("sha256:")


def test_a_closed_output_is_not_given_to_another_file(layout: Layout) -> None:
    """With standard output closed no file that a command opens gets its text."""
    publish(layout, REF, {"a": b"a"})
    shell(f"{HOLDFAST} verify --root {layout.root} >&- 2>&-")
    snapshot = layout.public.model_link(REF)
    assert (snapshot / "a").read_bytes() == b"a"
    assert (snapshot / ".holdfast" / "lease").read_bytes() == b""


@pytest.mark.parametrize("command", ["status --watch", "golden record http://127.0.0.1:{port} --output x --input y"])
def test_ctrl_c_is_no_traceback(layout: Layout, tmp_path: Path, command: str) -> None:
    """Ctrl-C ends a command that waits with a sentence or nothing, never with a traceback."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = shlex.split(command.format(port=silent.getsockname()[1]))
        root = ["--root", str(layout.root)] if words[0] == "status" else []
        with subprocess.Popen(
            [sys.executable, "-m", "cached", *words, *root],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        ) as waiting:
            if root:
                assert waiting.stdout is not None
                waiting.stdout.readline()
            else:
                silent.accept()[0].detach()
            waiting.send_signal(signal.SIGINT)
            _, errors = waiting.communicate(timeout=120)
    assert waiting.returncode in (0, 130)
    assert "Traceback" not in errors


def test_a_command_without_threads_says_so(tmp_path: Path) -> None:
    """A command that may not start a thread ends with 1 and the limit to raise."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\n"
        "def refuse(*arguments):\n"
        '    raise RuntimeError("can\'t start new thread")\n'
        "threading._start_new_thread = refuse\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = shell(f"PYTHONPATH={tmp_path} {HOLDFAST} publish {tmp_path}/model {tmp_path}/there")
    assert done.returncode == 1
    assert "podPidsLimit" in done.stderr
    assert "Traceback" not in done.stderr
