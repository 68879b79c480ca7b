"""Fifty versions at once under a bandwidth limit, and a pod that cannot wait for them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cached.contract.manifest import MANIFEST_NAME
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, publish_files
from tests.support.joined import Joined, joined, ref
from tests.support.origin import HostileOrigin

COUNT = 50
SIZE = 300_000
RATE = 2_500_000  # bytes a second: the whole takes some six seconds
AT_ONCE = 4  # prefetches that begin together
PER_ORIGIN = 3


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Joined]:
    with joined(tmp_path) as made:
        yield made


def test_a_waiting_pod_overtakes_fifty_prefetches(node: Joined, origin: HostileOrigin, tmp_path: Path) -> None:
    """A pod's version comes while most prefetches wait; the limits on bandwidth and connections hold; all arrive."""
    daemon, chance = node.daemon, random.Random(1)
    versions: dict[str, Any] = {}
    for number in range(COUNT):
        version = f"v{number}"
        data = chance.randbytes(SIZE)
        manifest = publish_files(tmp_path / "made", {"a.bin": data})
        origin.put(f"/{version}/a.bin", data, etag=f'"{version}"')
        origin.put(f"/{version}/{MANIFEST_NAME}", manifest.canonical())
        versions[version] = {"source": origin.url(f"/{version}/")}
    daemon.write_catalog({"m": {"versions": versions, "prefetch": {"versions": list(versions)}}})
    began = time.monotonic()
    daemon.start("--max-bandwidth", f"{RATE // 1000}kB/s", "--connections", "16", "--connections-per-origin", "3")
    refs = [ref(version) for version in versions]
    daemon.wait(lambda: any(daemon.state(each) == "ready" for each in refs), "the first prefetch")
    last = refs[-1]
    node.pod("urgent", last.version)
    daemon.wait(lambda: _is_known(daemon, last), "the pod to be known")
    before = len(_asked_for(origin))
    daemon.wait_ready(last)
    # In the order that the origin was asked: how much later this test looks at anything does not matter.
    place = _asked_for(origin).index(f"/{last.version}/a.bin")
    assert place <= before + AT_ONCE  # those that began before the pod was known
    daemon.wait_ready(*refs)
    elapsed = time.monotonic() - began
    assert daemon.metric("holdfast_fetch_bytes_total") == COUNT * SIZE
    assert COUNT * SIZE / elapsed < 1.1 * RATE
    assert origin.most_connections <= PER_ORIGIN + AT_ONCE + 1  # those that list are not those that carry
    assert daemon.samples("holdfast_fetch_errors_total") == {}


def _is_known(daemon: DaemonProcess, ref: ModelRef) -> bool:
    return daemon.metric("holdfast_pods_waiting") > 0 or daemon.state(ref) == "ready"


def _asked_for(origin: HostileOrigin) -> list[str]:
    """The versions' files, in the order of the first requests for them."""
    return list(dict.fromkeys(seen.path for seen in origin.requests if seen.path.endswith("/a.bin")))
