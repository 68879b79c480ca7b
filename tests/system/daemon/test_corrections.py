"""Gates that wait while a person corrects what the daemon refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, publish_files
from tests.support.gates import Gates

V1 = ModelRef("tiny", "v1")
FILES = {"a.bin": b"a" * 70_000}
GATE = ("--model", "tiny", "--version", "v1", "--once", "--wait-for-correction")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that is not started yet."""
    with daemon_process(tmp_path / "daemon") as process:
        yield process


def _no_model(_source: Path) -> dict[str, Any]:
    return {}


def _wrong_source(source: Path) -> dict[str, Any]:
    return {"tiny": prefetched(f"file://{source}/nowhere")}


def _wrong_digest(source: Path) -> dict[str, Any]:
    return {"tiny": prefetched(f"file://{source}", digest=Digest.of(b"other"))}


@pytest.mark.parametrize("mistake", [_no_model, _wrong_source, _wrong_digest])
def test_a_corrected_catalog_opens_a_gate_that_waits(
    daemon: DaemonProcess, source: Path, gates: Gates, mistake: Callable[[Path], dict[str, Any]]
) -> None:
    """A model that the catalog lacks, a wrong source and a wrong digest are told by the gate, which waits; it opens as
    soon as the catalog is corrected, by the same process."""
    publish_files(source, FILES)
    daemon.write_catalog(mistake(source))
    daemon.start()
    daemon.pull("tiny@v1")
    daemon.wait_state(V1, "failed")
    gate = gates.start_bare(*GATE)
    gate.wait_said("waiting for a correction")
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    assert gate.wait() == 0, gate.said()
    assert "tiny@v1: tiny@v1" not in gate.said()
