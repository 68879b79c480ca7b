"""What tests against hazards share: a daemon, a source, an origin, gates, and scenarios to cut short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crashing.trying import Trials
from tests.support.crashing.warm import WarmParent
from tests.support.daemon import DaemonProcess, daemon_process
from tests.support.gates import Gates
from tests.support.origin import HostileOrigin


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
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    """Every scenario, ready to be cut short."""
    with WarmParent() as parent:
        yield Trials(parent, tmp_path_factory.mktemp("trials"))
