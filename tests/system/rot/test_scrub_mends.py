"""What happens to a version that rotted, and to the pods that want it then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.bitrot import flip, flip_on_disk
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, publish_files, write_files
from tests.support.gates import Gates
from tests.support.mounts import mounted_image
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Hangup

V1 = ModelRef("tiny", "v1")
BAD = random.Random(21).randbytes(300_001)
GATE = ("--model", "tiny", "--version", "v1", "--once")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that scrubs as fast as it can."""
    with daemon_process(tmp_path / "daemon", "--scrub-rate", "1GiB/s", "--scrub-period", "1s") as process:
        yield process


@pytest.fixture
def gates(daemon: DaemonProcess, tmp_path: Path) -> Iterator[Gates]:
    """Gates over what the daemon publishes."""
    gates = Gates(daemon.layout.public, tmp_path)
    yield gates
    gates.end()


def _found(daemon: DaemonProcess, times: int) -> bool:
    return daemon.metric("holdfast_verify_failures_total", where="scrub") == times


def _is_whole(daemon: DaemonProcess) -> bool:
    try:
        return daemon.files(V1) == {"a.bin": BAD}
    except FileNotFoundError:  # between the old snapshot and the new one
        return False


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except FileNotFoundError:  # between the old snapshot and the new one
        return False


def test_rot_under_the_page_cache_is_found(tmp_path: Path, source: Path) -> None:
    """A bit that flipped on the disk, while the kernel's copy in memory is right, is found and mended."""
    write_files(source, {"a.bin": BAD})
    with (
        mounted_image(tmp_path / "disk", "ext4", 64 << 20, "-b", "4096") as disk,
        daemon_process(disk / "daemon", "--scrub-rate", "1GiB/s", "--scrub-period", "1s") as daemon,
    ):
        daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
        daemon.start()
        daemon.wait_ready(V1)
        victim = daemon.path(V1) / "a.bin"
        inode = victim.stat().st_ino
        assert victim.read_bytes() == BAD  # in memory from now on
        flip_on_disk(tmp_path / "disk.image", victim, 70_000)
        assert victim.read_bytes() == BAD
        daemon.wait(partial(_found, daemon, 1), "the flipped bit")
        daemon.wait(lambda: victim.exists() and victim.stat().st_ino != inode, "another file")
        assert daemon.files(V1) == {"a.bin": BAD}
        assert daemon.stop() == 0


def test_without_its_source_rot_stays_withdrawn_and_is_tried_again(
    daemon: DaemonProcess, origin: HostileOrigin, gates: Gates
) -> None:
    """While the source is away a rotten version has no name, its status tells the trouble, a gate waits; once the
    source is back the version is, and the gate opens."""
    origin.put("/a.bin", BAD)
    daemon.write_catalog({"tiny": prefetched(origin.url("/a.bin"))})
    daemon.start()
    daemon.wait_ready(V1)
    origin.always("/a.bin", Hangup())
    flip(daemon.path(V1) / "a.bin")
    daemon.wait(partial(_found, daemon, 1), "the flipped bit")
    assert daemon.wait_error(V1)["permanent"] is False
    assert not daemon.path(V1).exists()
    origin.heal("/a.bin")
    gate = gates.start_bare(*GATE)
    assert gate.wait() == 0, gate.said()
    assert daemon.files(V1) == {"a.bin": BAD}


def test_the_same_blob_may_rot_again(daemon: DaemonProcess, source: Path) -> None:
    """A blob that rots twice is mended twice; of its remains one copy is kept, and counted once, until `gc`."""
    write_files(source, {"a.bin": BAD})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    for times in (1, 2):
        flip(daemon.path(V1) / "a.bin")
        daemon.wait(partial(_found, daemon, times), f"flipped bit number {times}")
        daemon.wait(partial(_is_whole, daemon), "the right bytes")
        daemon.wait_state(V1, "ready")
    assert [path.stat().st_size for path in daemon.layout.quarantine.iterdir()] == [len(BAD)]
    assert daemon.metric("holdfast_store_bytes", state="dying") == len(BAD)
    assert daemon.metric("holdfast_store_bytes", state="committed") == len(BAD)
    daemon.control.gc(dry_run=False)
    assert list(daemon.layout.quarantine.iterdir()) == []
    assert daemon.metric("holdfast_store_bytes", state="dying") == 0
    assert daemon.files(V1) == {"a.bin": BAD}


def test_a_damaged_manifest_is_found_and_mended(daemon: DaemonProcess, source: Path) -> None:
    """A snapshot whose own manifest rotted is published again from its blobs: no byte is fetched."""
    manifest = publish_files(source, {"a.bin": BAD})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    fetched = daemon.metric("holdfast_fetch_bytes_total")
    path = daemon.path(V1) / ".holdfast" / "manifest.json"
    flip(path, 5)
    daemon.wait(partial(_found, daemon, 1), "the flipped bit")
    daemon.wait(lambda: _holds(path, manifest.canonical()), "the right manifest")
    assert daemon.files(V1) == {"a.bin": BAD}
    assert daemon.metric("holdfast_fetch_bytes_total") == fetched
