"""What tests against hazards share: a daemon, a source, an origin, gates, and scenarios to cut short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crashing.trying import Trials
from tests.support.crashing.warm import WarmParent
from tests.support.daemon import DaemonProcess, daemon_process
from tests.support.gates import Gates
from tests.support.in_memory import folder_in_memory
from tests.support.origin import HostileOrigin


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the disk, or in memory for a test that is marked so."""
    if request.node.get_closest_marker("in_memory") is None:
        yield tmp_path
        return
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that has not been started, without a scrub: what it hashes would come and go with time."""
    with daemon_process(tmp_path, "--scrub-rate", "0") as process:
        yield process


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder for what is to be fetched."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def origin() -> Iterator[HostileOrigin]:
    """An HTTP server that can misbehave."""
    with HostileOrigin(host="127.0.0.1") as server:
        yield server


@pytest.fixture
def gates(daemon: DaemonProcess, tmp_path: Path) -> Iterator[Gates]:
    """Starts gates over the daemon's public folder."""
    gates = Gates(daemon.layout.public, tmp_path)
    yield gates
    gates.end()


@pytest.fixture(scope="session")
def trials() -> Iterator[Trials]:
    """Every scenario, ready to be cut short. In memory: `kill -9` takes nothing that the kernel has."""
    with WarmParent() as parent, folder_in_memory() as folder:
        yield Trials(parent, folder)
