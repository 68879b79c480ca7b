"""`holdfast verify` beside a daemon that never scrubs: what it finds is put right, and told."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.bitrot import flip
from tests.support.daemon import DaemonProcess, bare_environment, daemon_process, prefetched, publish_files
from tests.support.gates import Gates

V1 = ModelRef("tiny", "v1")
FILES = {"a.bin": random.Random(51).randbytes(400_001), "b.bin": b"b" * 5000}


@pytest.fixture
def daemon(tmp_path: Path, source: Path) -> Iterator[DaemonProcess]:
    """A daemon with one version."""
    with daemon_process(tmp_path / "daemon", "--scrub-rate", "0") as process:
        publish_files(source, FILES)
        process.write_catalog({"tiny": prefetched(f"file://{source}")})
        process.start()
        process.wait_ready(V1)
        yield process


def _verify(daemon: DaemonProcess, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cached.cli", "verify", "--root", str(daemon.layout.root), *options]
    return subprocess.run(command, capture_output=True, text=True, env=bare_environment(), timeout=120)


def test_a_record_out_of_date_is_renewed(daemon: DaemonProcess, gates: Gates) -> None:
    """Right bytes under another mtime are ok, exit 0, and the record is renewed: the next gate opens by itself."""
    os.utime(daemon.path(V1) / "a.bin", ns=(1, 1))
    done = _verify(daemon)
    assert done.returncode == 0, done
    assert done.stdout.startswith("tiny@v1  ok  2 files") and "is renewed" in done.stdout
    assert "is renewed" not in _verify(daemon).stdout
    daemon.kill()
    assert gates.start_bare("--model", "tiny", "--version", "v1", "--once").wait() == 0


def test_wrong_bytes_are_withdrawn_and_fetched_again(daemon: DaemonProcess) -> None:
    """Wrong bytes are a mismatch that names the file, exit 1; they are in quarantine, and the right ones are here."""
    flip(daemon.path(V1) / "a.bin")
    done = _verify(daemon, "tiny@v1")
    assert done.returncode == 1
    assert "tiny@v1  MISMATCH  a.bin: expected sha256" in done.stdout and "fetched again" in done.stdout
    daemon.wait(lambda: daemon.path(V1).exists() and daemon.files(V1) == FILES, "the right bytes")
    assert len(list(daemon.layout.quarantine.iterdir())) == 1
    assert daemon.metric("holdfast_verify_failures_total", where="recheck") == 1
    daemon.wait_state(V1, "ready")
    assert _verify(daemon, "tiny@v1").returncode == 0


def test_a_missing_file_is_put_back(daemon: DaemonProcess, source: Path) -> None:
    """A file that a person deleted is told, exit 1, and back at once, though the source is gone. Where the daemon
    noticed it by itself a moment before, the command finds less to tell, or nothing."""
    source.rename(source.with_name("away"))
    (daemon.path(V1) / "a.bin").unlink()
    done = _verify(daemon)
    if done.returncode:
        assert done.returncode == 1
        assert done.stdout.startswith("tiny@v1  REPAIRED  ") and ": it was deleted or replaced" in done.stdout
    assert daemon.files(V1) == FILES


def test_without_a_daemon_nothing_is_repaired_and_that_is_said(daemon: DaemonProcess) -> None:
    """With the daemon dead the command reads by itself, and says that it repaired nothing; the mismatch stays."""
    daemon.kill()
    flip(daemon.path(V1) / "a.bin")
    done = _verify(daemon)
    assert done.returncode == 1
    assert "MISMATCH" in done.stdout and "nothing was repaired" in done.stderr
    assert daemon.files(V1) != FILES


def test_what_is_not_here_is_said(daemon: DaemonProcess) -> None:
    """A version that the node lacks exits 1 and says how to get it."""
    done = _verify(daemon, "other@v1")
    assert done.returncode == 1
    assert "other@v1  FAILED  other@v1 is not on this node" in done.stdout and "holdfast pull other@v1" in done.stderr
