"""A daemon for each test of load, an origin that can misbehave, and gates over the daemon's public folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import DaemonProcess, daemon_process
from tests.support.gates import Gates
from tests.wire.origin import HostileOrigin


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that has not been started, without a scrub unless a test asks for one."""
    with daemon_process(tmp_path, "--scrub-rate", "0") as process:
        yield process


@pytest.fixture
def origin() -> Iterator[HostileOrigin]:
    """An HTTP server that can misbehave."""
    with HostileOrigin(host="127.0.0.1") as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder for what is to be fetched."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def gates(daemon: DaemonProcess, tmp_path: Path) -> Iterator[Gates]:
    """Starts gates over the daemon's public folder."""
    gates = Gates(daemon.layout.public, tmp_path)
    yield gates
    gates.end()
