"""The gate's postStart hook, as the process that the kubelet runs."""

from __future__ import annotations

import socket
import subprocess
import sys

from cached.contract.layout import PublicLayout
from tests.support.gates import FILES, REF, REPOSITORY, Gates
from tests.support.snapshots import link_model, make_snapshot


def start(port: int, seconds: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "sidecar.poststart", str(port), seconds], cwd=REPOSITORY)


def test_it_ends_when_the_gate_opens(public: PublicLayout, gates: Gates) -> None:
    """The hook waits while the gate does, and ends with 0 once it is open."""
    gate = gates.start()
    hook = start(int(gate.address().rpartition(":")[2]), "60")
    gate.wait_said("no status yet")
    assert hook.poll() is None
    link_model(public, REF, make_snapshot(public, FILES))
    assert hook.wait(120) == 0
    assert "open after" in gate.said()


def test_it_gives_up_with_success() -> None:
    """Where nothing listens, or something never answers, the hook ends in time and with 0: failing kills the gate."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        hook = start(port, "0.3")
        assert hook.wait(120) == 0
    assert start(port, "0.3").wait(120) == 0
