"""The scrub: bytes that went bad on the disk are found, taken out of use, and fetched again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from cached.contract.snapshot.verified import VerifiedRecord
from tests.support.bitrot import flip
from tests.support.daemon import DaemonProcess, daemon_process, model, prefetched, publish_files, write_files

V1, OTHER = ModelRef("tiny", "v1"), ModelRef("other", "v1")
BAD = random.Random(4).randbytes(300_001)  # no multiple of a disk's block
GOOD = random.Random(5).randbytes(5_000_000)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that scrubs as fast as it can."""
    with daemon_process(tmp_path, "--scrub-rate", "1GiB/s", "--scrub-period", "1s") as process:
        yield process


def _found(daemon: DaemonProcess) -> bool:
    return daemon.metric("holdfast_verify_failures_total", where="scrub") > 0


def test_a_flipped_bit_is_found_and_mended(daemon: DaemonProcess, source: Path) -> None:
    """A blob with a flipped bit is quarantined and only it is fetched again; name and content are right afterwards,
    for every version that shares it."""
    manifest = publish_files(source / "a", {"bad.bin": BAD, "good.bin": GOOD})
    publish_files(source / "b", {"also-bad.bin": BAD})
    daemon.write_catalog({"tiny": model(f"file://{source}/a"), "other": prefetched(f"file://{source}/b")})
    daemon.start()
    daemon.pull("tiny@v1")
    daemon.wait_ready(V1, OTHER)
    before = daemon.metric("holdfast_fetch_bytes_total")
    old = daemon.path(V1) / "bad.bin"
    inode = old.stat().st_ino
    flip(old)
    daemon.wait(lambda: _found(daemon), "the flipped bit")
    mended = (daemon.path(V1) / "bad.bin", daemon.path(OTHER) / "also-bad.bin")
    daemon.wait(lambda: all(_holds(path, BAD) for path in mended), "the right bytes under both names")
    assert daemon.digest(V1) == manifest.digest
    assert daemon.files(V1) == {"bad.bin": BAD, "good.bin": GOOD}
    assert daemon.files(OTHER) == {"also-bad.bin": BAD}
    assert (daemon.path(V1) / "bad.bin").stat().st_ino != inode
    daemon.wait_state(V1, "ready")
    assert daemon.metric("holdfast_fetch_bytes_total") - before == len(BAD)
    assert [path.stat().st_ino for path in daemon.layout.quarantine.iterdir()] == [inode]


def test_a_lost_file_is_found_and_mended(daemon: DaemonProcess, source: Path) -> None:
    """A blob, or a file of a snapshot, that a person removed or replaced is fetched again."""
    publish_files(source, {"gone.bin": BAD, "good.bin": GOOD})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    victim = daemon.path(V1) / "gone.bin"
    victim.unlink()
    victim.write_bytes(BAD[::-1])
    # Not the folder's inode: the file system gives a new one the number that the old one had.
    daemon.wait(lambda: "gone.bin" in daemon.log() and _holds(victim, BAD), "the right bytes in gone.bin")
    daemon.wait_state(V1, "ready")
    assert daemon.files(V1) == {"gone.bin": BAD, "good.bin": GOOD}


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except FileNotFoundError:  # between the old snapshot and the new one
        return False


def test_a_scrub_renews_the_record(daemon: DaemonProcess, source: Path) -> None:
    """What was hashed again is written down with its inode, size, mtime and time, and counted."""
    write_files(source, {"a.bin": BAD})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    path = daemon.path(V1) / ".holdfast" / "verified.json"
    first = path.stat().st_ino
    daemon.wait(lambda: path.stat().st_ino != first, "another record")
    entry = VerifiedRecord.parse(path.read_bytes()).files["a.bin"]
    found = (daemon.path(V1) / "a.bin").stat()
    assert (entry.ino, entry.size, entry.mtime_ns) == (found.st_ino, found.st_size, found.st_mtime_ns)
    assert daemon.metric("holdfast_scrub_bytes_total") >= len(BAD)
    assert path.stat().st_mode & 0o777 == 0o444


def test_one_unreadable_snapshot_does_not_stop_the_others(daemon: DaemonProcess, source: Path) -> None:
    """A snapshot whose record cannot be written is no reason never to look at another."""
    write_files(source / "a", {"a.bin": BAD})
    write_files(source / "b", {"b.bin": GOOD})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/a"), "other": prefetched(f"file://{source}/b")})
    daemon.start()
    daemon.wait_ready(V1, OTHER)
    record = daemon.path(V1) / ".holdfast" / "verified.json"
    record.unlink()
    record.mkdir()
    flip(daemon.path(OTHER) / "b.bin")
    daemon.wait(lambda: _found(daemon), "the flipped bit in the other")


def test_bad_bytes_go_although_somebody_uses_them(daemon: DaemonProcess, source: Path) -> None:
    """A lease keeps a version from eviction, not its bad bytes in use: the name gets good ones."""
    write_files(source, {"a.bin": BAD})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    held = lease.take_shared(daemon.path(V1) / ".holdfast" / "lease")
    assert held is not None
    with held:
        flip(daemon.path(V1) / "a.bin")
        daemon.wait(lambda: _found(daemon), "the flipped bit")
        daemon.wait(lambda: _holds(daemon.path(V1) / "a.bin", BAD), "the name again, and the right bytes")
        assert daemon.files(V1) == {"a.bin": BAD}


def test_a_slow_scrub_ends_at_once(tmp_path: Path, source: Path) -> None:
    """However slow the scrub was told to be, SIGTERM ends the daemon at once."""
    write_files(source, {"a.bin": GOOD})
    with daemon_process(tmp_path / "daemon", "--scrub-rate", "10KiB/s", "--scrub-period", "1s") as daemon:
        daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
        daemon.start()
        daemon.wait_ready(V1)
        daemon.wait(lambda: daemon.metric("holdfast_scrub_bytes_total") > 0, "a scrub under way")
        assert daemon.stop() == 0


def test_no_rate_is_no_scrub(tmp_path: Path, source: Path) -> None:
    """With --scrub-rate 0 nothing is hashed again."""
    write_files(source, {"a.bin": BAD})
    with daemon_process(tmp_path / "daemon", "--scrub-rate", "0") as daemon:
        daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
        daemon.start()
        daemon.wait_ready(V1)
        heartbeat = daemon.document()["daemon"]["updated"]
        daemon.wait(lambda: daemon.document()["daemon"]["updated"] > heartbeat, "the next heartbeat")
        assert daemon.metric("holdfast_scrub_bytes_total") == 0
