"""What a person reads while a gate waits."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

from cached.contract.layout import PublicLayout
from cached.contract.status import State
from tests.support.gates import FILES, PATIENCE_S, REF, REPOSITORY, Gates
from tests.support.snapshots import link_model, make_snapshot, write_heartbeat, write_status


def test_states_are_told_as_they_come(public: PublicLayout, gates: Gates) -> None:
    """Each state of the daemon's status is a line, with bytes, total and percent where there are any."""
    gate = gates.start()
    gate.wait_said("acme/tiny@v1: waiting")
    for state in (State.QUEUED, State.RESOLVING, State.VERIFYING, State.PUBLISHING):
        write_status(public, REF, state)
        gate.wait_said(f"acme/tiny@v1: {state.value}\n")
    write_status(public, REF, State.FETCHING, done=(3 << 30, 4 << 30))
    gate.wait_said("acme/tiny@v1: fetching 3.0 GiB of 4.0 GiB (75 %)")


def test_a_log_gets_few_lines(public: PublicLayout, gates: Gates) -> None:
    """Progress that moves within one state is at most a line every two seconds in a log."""
    began, done = time.monotonic(), 0
    gate = gates.start("--timeout", "1.5")
    while gate.process.poll() is None and time.monotonic() < began + PATIENCE_S:
        write_status(public, REF, State.FETCHING, done=(done := done + 1, 1 << 20))
        time.sleep(0.01)
    assert gate.wait() == 75
    # The first, the reason, and one for each two seconds: a busy machine keeps a gate longer than it was told.
    assert gate.said().count(": fetching") <= 2 + (time.monotonic() - began) / 2


def test_silence_is_explained_after_ten_seconds(public: PublicLayout, gates: Gates) -> None:
    """Where no status speaks of the model, the gate says after ten seconds what to check, once, and goes on waiting."""
    gate = gates.start("--once")
    gate.wait_said("nothing heard of it for 10s")
    for hint in ("daemon runs on this node", "the catalog has 'acme/tiny' with version 'v1'", "the mount at"):
        assert hint in gate.said()
    write_status(public, REF, State.QUEUED)
    gate.wait_said("the daemon speaks of it now")
    assert gate.said().count("nothing heard") == 1
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


def test_a_daemon_that_died_is_told_once(public: PublicLayout, gates: Gates) -> None:
    """A heartbeat older than half a minute is told once, and so is its return."""
    write_heartbeat(public, age_s=60)
    gate = gates.start()
    gate.wait_said("seems down")
    write_status(public, REF, State.QUEUED)
    gate.wait_said("queued")
    write_heartbeat(public)
    gate.wait_said("is back")
    assert gate.said().count("seems down") == 1


def test_a_status_that_cannot_be_read_is_no_failure(public: PublicLayout, gates: Gates) -> None:
    """Garbage in status files is passed over: the gate waits and opens."""
    for path in (public.model_status(REF), public.daemon_status):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xff{")
    gate = gates.start("--once")
    gate.wait_said("no status yet")
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


def test_a_terminal_gets_one_line_that_changes(public: PublicLayout) -> None:
    """On a terminal progress within a state is written over, not under."""
    write_status(public, REF, State.FETCHING, done=(1, 100))
    ours, theirs = pty.openpty()
    options = ["--root", str(public.path), "--model", REF.name, "--version", REF.version, "--once"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "gate", *options], cwd=REPOSITORY, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    try:
        while b"fetching 1 B" not in said:
            said += os.read(ours, 4096)
        write_status(public, REF, State.FETCHING, done=(50, 100))
        while b"fetching 50 B" not in said:
            said += os.read(ours, 4096)
        assert b"\n" not in said
        assert b"\r\x1b[K" in said.partition(b"fetching 1 B")[2]
    finally:
        process.kill()
        process.wait()
        os.close(ours)
