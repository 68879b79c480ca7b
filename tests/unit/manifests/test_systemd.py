"""The systemd units, as systemd reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.manifests import MANIFESTS

UNITS = MANIFESTS / "systemd"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """No unit has a directive that systemd does not know, or a dependency that is not there."""
    for unit in UNITS.glob("*.service"):
        # Where there is no such program, only that would be complained of.
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/holdfast/bin/holdfast", "/bin/true"))
    names = [unit.name for unit in UNITS.glob("*.service")]
    told = subprocess.run(
        ["systemd-analyze", "verify", *(f"./{name}" for name in names)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in told.stderr.splitlines() if "holdfast" in line] == []
    assert told.returncode == 0


def test_the_server_waits_for_the_gate() -> None:
    """The server's unit starts after the gate ended well, and not without it."""
    server = (UNITS / "holdfast-server.service").read_text()
    assert "Requires=holdfast-gate@minilm:1.service" in server
    assert "After=holdfast-gate@minilm:1.service" in server
    gate = (UNITS / "holdfast-gate@.service").read_text()
    assert "Type=oneshot" in gate
    assert "--once" in gate


def test_the_daemon_sees_its_own_folder_only() -> None:
    """The daemon's unit mounts the system read-only and keeps no capability."""
    daemon = (UNITS / "holdfast-daemon.service").read_text()
    for line in ("ProtectSystem=strict", "StateDirectory=holdfast", "CapabilityBoundingSet=", "NoNewPrivileges=yes"):
        assert line in daemon.splitlines()
