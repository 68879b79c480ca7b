"""What a gate accepts as the bytes that were promised, in both modes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.snapshot.verified import VerifiedRecord
from tests.support.gates import FILES, REF, Gates
from tests.support.snapshots import link_model, make_hollow_snapshot, make_snapshot

VICTIM = "model.safetensors"
MODES = ("record", "full")


@pytest.fixture
def snapshot(public: PublicLayout) -> SnapshotLayout:
    """A published snapshot of `FILES`."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    return public.snapshot(digest)


def _flip_byte(path: Path) -> None:
    """Change one byte and put the mtime back, as bit rot would."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def _shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _copy_over(path: Path) -> None:
    """The same bytes and mtime under another inode."""
    before = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy.replace(path)


def _link_over(path: Path) -> None:
    """The same bytes behind a symlink."""
    path.symlink_to(path.rename(path.with_name("moved")))


@pytest.mark.parametrize("mode", MODES)
def test_what_was_promised_is_accepted(snapshot: SnapshotLayout, gates: Gates, mode: str) -> None:
    """An untouched snapshot opens the gate in either mode, and the digest is told."""
    gate = gates.start("--once", "--verify", mode)
    assert gate.wait() == 0
    assert snapshot.path.name in gate.said()


def test_a_flipped_byte_is_found_by_hashing(snapshot: SnapshotLayout, gates: Gates) -> None:
    """Mode `full` refuses a changed byte with 65, naming file and digests, also in the termination log."""
    _flip_byte(snapshot.path / VICTIM)
    gate = gates.start("--once", "--verify", "full", "--threads", "2")
    assert gate.wait() == 65
    expected = Digest.of(FILES[VICTIM]).hex
    for text in (gate.said(), gates.termination_log.read_text()):
        assert VICTIM in text and expected in text and str(REF) in text


def test_a_flipped_byte_that_left_no_trace_passes_the_record(snapshot: SnapshotLayout, gates: Gates) -> None:
    """Mode `record` reads no bytes: with size, mtime and inode as recorded it opens."""
    _flip_byte(snapshot.path / VICTIM)
    assert gates.start("--once", "--verify", "record").wait() == 0


@pytest.mark.parametrize("damage", [_touch, _shorten, _copy_over, _link_over, os.unlink])
def test_what_moved_fails_the_record(snapshot: SnapshotLayout, gates: Gates, damage: Callable[[Path], None]) -> None:
    """Mode `record` refuses another size, mtime or inode, a symlink, and a missing file: 65, naming the file."""
    damage(snapshot.path / VICTIM)
    gate = gates.start("--once")
    assert gate.wait() == 65
    assert VICTIM in gate.said()


@pytest.mark.parametrize("damage", [_shorten, _link_over, os.unlink])
def test_what_is_not_there_fails_hashing(
    snapshot: SnapshotLayout, gates: Gates, damage: Callable[[Path], None]
) -> None:
    """Mode `full` refuses another size, a symlink, and a missing file: 65, naming the file."""
    damage(snapshot.path / VICTIM)
    gate = gates.start("--once", "--verify", "full")
    assert gate.wait() == 65
    assert VICTIM in gate.said()


def test_hashing_needs_no_record(snapshot: SnapshotLayout, gates: Gates) -> None:
    """Mode `full` opens where inode and mtime moved but the bytes are right."""
    _copy_over(snapshot.path / VICTIM)
    snapshot.verified.unlink()
    assert gates.start("--once", "--verify", "full").wait() == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("damage", [_flip_byte, os.unlink])
def test_the_manifest_is_always_hashed(
    snapshot: SnapshotLayout, gates: Gates, mode: str, damage: Callable[[Path], None]
) -> None:
    """A manifest that is missing or does not hash to the snapshot's name is refused with 65 in either mode."""
    damage(snapshot.manifest)
    gate = gates.start("--once", "--verify", mode)
    assert gate.wait() == 65
    assert str(snapshot.manifest) in gate.said()


@pytest.mark.parametrize("data", [b"", b"[]", b'{"files": {"model.safetensors": {}}}', None])
def test_a_record_that_is_none_is_refused(snapshot: SnapshotLayout, gates: Gates, data: bytes | None) -> None:
    """In mode `record` a record that is missing or cannot be read ends the gate with 65."""
    if data is None:
        snapshot.verified.unlink()
    else:
        snapshot.verified.write_bytes(data)
    gate = gates.start("--once")
    assert gate.wait() == 65
    assert "record" in gate.said() or str(snapshot.verified) in gate.said()


def test_a_file_without_an_entry_is_refused(snapshot: SnapshotLayout, gates: Gates) -> None:
    """In mode `record` a file that the record does not speak of ends the gate with 65, naming it."""
    record = VerifiedRecord.parse(snapshot.verified.read_bytes())
    snapshot.verified.write_bytes(VerifiedRecord({k: v for k, v in record.files.items() if k != VICTIM}).encode())
    gate = gates.start("--once")
    assert gate.wait() == 65
    assert VICTIM in gate.said()


def test_a_wrong_pin_is_refused(snapshot: SnapshotLayout, gates: Gates) -> None:
    """A pin that is not the manifest digest ends the gate with 65 and both digests."""
    pin = Digest.of(b"something else")
    gate = gates.start("--once", "--digest", str(pin))
    assert gate.wait() == 65
    assert str(pin) in gate.said() and f"sha256:{snapshot.path.name}" in gate.said()


def test_the_right_pin_is_accepted(snapshot: SnapshotLayout, gates: Gates) -> None:
    """A pin that is the manifest digest opens the gate."""
    assert gates.start("--once", "--digest", f"sha256:{snapshot.path.name}").wait() == 0


def test_large_files_cost_the_record_nothing(public: PublicLayout, gates: Gates) -> None:
    """Mode `record` reads no bytes: 150 GB open within a deadline that reading them would miss."""
    sizes = {f"model-{number:05d}.safetensors": 5 * 10**9 for number in range(30)}
    link_model(public, REF, make_hollow_snapshot(public, sizes))
    assert gates.start("--once", "--timeout", "30").wait() == 0


def test_hashing_keeps_the_deadline(public: PublicLayout, gates: Gates) -> None:
    """Mode `full` on what takes longer than `--timeout` ends with 75 and says how far it came."""
    link_model(public, REF, make_hollow_snapshot(public, {VICTIM: 64 << 30}))
    assert gates.start("--verify", "full", "--threads", "1", "--timeout", "4").wait() == 75
    assert "acme/tiny@v1: hashing " in gates.termination_log.read_text()


def test_hashing_gives_way_to_a_signal(public: PublicLayout, gates: Gates) -> None:
    """SIGTERM while the gate hashes ends it at once, with 128 + 15."""
    link_model(public, REF, make_hollow_snapshot(public, {VICTIM: 4 << 30}))
    gate = gates.start("--verify", "full", "--threads", "1")
    gate.wait_said("hashing")
    gate.process.terminate()
    assert gate.wait() == 128 + signal.SIGTERM
