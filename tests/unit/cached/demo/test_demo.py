"""The demo as a person runs it: the whole path, with real processes and the real model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the demo may work; afterwards no process may be left that names it."""
    folder = tmp_path / "demo"
    yield folder
    assert processes_naming(folder) == []


def processes_naming(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            continue
        if str(folder) in arguments:
            found.append(arguments.replace("\0", " "))
    return found


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cached", "demo", "--root", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "120"},
    )


@pytest.mark.timeout(600)
def test_the_demo_goes_from_publish_to_embeddings(folder: Path) -> None:
    """`holdfast demo --exit` shows the gate waiting, embeds, fetches nothing when warm, and leaves nothing behind."""
    with start(folder, "--exit") as demo:
        said, _ = demo.communicate(timeout=280)
    assert demo.returncode == 0, said
    assert re.search(r"gate │ minilm@1: fetching [\d.]+ MiB of 87.4 MiB \(\d+ %\), [\d.]+ MiB/s", said), said
    counted = re.search(r"holdfast_fetch_bytes_total: (\d+) before, (\d+) after", said)
    assert counted is not None, said
    before, after = map(int, counted.groups())
    assert before == after > 80_000_000
    cosines = [float(number) for number in re.findall(r"-?\d\.\d\d(?=\s|$)", said.split("cosine similarity")[1])[:25]]
    assert cosines[0] == 1.0
    assert cosines[1] > cosines[4], "the two sentences about the sea are closer than kelp and coffee"
    assert not folder.exists()


def test_stopping_in_the_middle_leaves_nothing_behind(folder: Path) -> None:
    """SIGTERM while a pod is starting ends every process and removes the folder."""
    with start(folder) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "gate │" in line:
                break
        assert processes_naming(folder / "node") != []
        demo.send_signal(signal.SIGTERM)
        said, _ = demo.communicate(timeout=120)
    assert demo.returncode == 1, said
    assert "stopped before the end" in said
    assert not folder.exists()


def test_a_failing_process_shows_its_last_lines(folder: Path, tmp_path: Path) -> None:
    """When a process of the demo fails, its last words are shown, the exit code is 1, and nothing is left behind."""
    broken = tmp_path / "rclone"
    broken.write_text("#!/bin/sh\necho 'no bucket today' >&2\nexit 7\n")
    broken.chmod(0o755)
    script = (
        "import sys\n"
        "from cached.demo import processes\n"
        f"processes.rclone = lambda: {str(broken)!r}\n"
        "from cached.demo.app import main\n"
        f"sys.exit(main(['--exit', '--root', {str(folder)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no bucket today" in done.stdout
    assert "s3 ended with exit code 7" in done.stderr
    assert not folder.exists()
