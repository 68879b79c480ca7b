"""A node full of pods that all wait for one version."""

from __future__ import annotations

import os
import random
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, prefetched, publish_files
from tests.support.gates import Gates, RunningGate
from tests.support.origin import HostileOrigin
from tests.support.processes import memory

REF = ModelRef("m", "v1")
PODS = 110  # what a kubelet allows on a node
_MIB = 1 << 20
_OPENED = re.compile(r"^holdfast_gate_opened_timestamp_seconds (\S+)$", re.MULTILINE)


pytestmark = pytest.mark.long


@pytest.fixture
def herd(daemon: DaemonProcess, origin: HostileOrigin, gates: Gates, source: Path) -> Iterator[list[RunningGate]]:
    """A version that an origin offers, a daemon that was not told to fetch it, and gates that wait for it."""
    data = random.Random(1).randbytes(8_000_000)
    manifest = publish_files(source, {"shard.bin": data, "config.json": b"{}"})
    origin.put("/m/shard.bin", data, etag='"1"')
    origin.put("/m/config.json", b"{}", etag='"2"')
    origin.put("/m/holdfast.json", manifest.canonical())
    daemon.write_catalog({})
    daemon.start()
    herd = [gates.start_bare("--model", REF.name, "--version", REF.version) for _ in range(PODS)]
    for gate in herd:
        gate.wait_said("no status yet")
    yield herd


def test_a_node_full_of_gates_is_one_download(
    daemon: DaemonProcess, origin: HostileOrigin, herd: list[RunningGate]
) -> None:
    """A hundred and ten gates that wait for one version all open, and the origin sends it once."""
    daemon.write_catalog({REF.name: prefetched(origin.url("/m/"))})
    for gate in herd:
        gate.wait_said("open after")
    shard = [seen for seen in origin.requests if seen.path == "/m/shard.bin" and seen.method == "GET"]
    assert len(shard) == 1
    assert daemon.metric("holdfast_fetch_bytes_total") == 8_000_002
    assert all(gate.process.poll() is None for gate in herd)


@pytest.mark.slow
def test_a_node_full_of_gates_opens_together(
    daemon: DaemonProcess, origin: HostileOrigin, herd: list[RunningGate], capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundred and ten gates wait at little cost, and the last one opens soon after the symlink is there."""
    before_s = _processor_s(herd)
    began = time.monotonic()
    time.sleep(20)
    idle = (_processor_s(herd) - before_s) / (time.monotonic() - began)
    daemon.write_catalog({REF.name: prefetched(origin.url("/m/"))})
    for gate in herd:
        gate.wait_said("open after")
    published = os.lstat(daemon.path(REF)).st_mtime
    opened = sorted(_opened_at(gate) - published for gate in herd)
    sizes = sorted(memory(gate.process.pid)["Pss"] / _MIB for gate in herd)
    resident = max(memory(gate.process.pid)["Rss"] / _MIB for gate in herd)
    with capsys.disabled():
        print(
            f"\n{PODS} gates opened {opened[0] * 1000:.0f} to {opened[-1] * 1000:.0f} ms after publication, half of "
            f"them within {opened[PODS // 2] * 1000:.0f} ms; PSS {sizes[0]:.1f} to {sizes[-1]:.1f} MiB each, "
            f"{sum(sizes):.0f} MiB in all, RSS at most {resident:.1f} MiB; while waiting {100 * idle:.1f} % of a core "
            "in all"
        )
    assert opened[-1] < 10  # within a second on two quiet cores
    assert sizes[-1] < 16
    assert idle < 0.5


def _opened_at(gate: RunningGate) -> float:

    with urllib.request.urlopen(f"{gate.address()}/metrics", timeout=120) as answer:
        found = _OPENED.search(answer.read().decode())
    assert found is not None
    return float(found[1])


def _processor_s(herd: list[RunningGate]) -> float:
    ticks = 0
    for gate in herd:
        fields = Path(f"/proc/{gate.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
