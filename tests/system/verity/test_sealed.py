"""Blobs under fs-verity, on a real ext4: sealed, measured, refused once they change, and mended."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.errors import DigestMismatch
from cached.contract.layout import Layout, PublicLayout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedRecord
from cached.contract.snapshot.verify import check_full, check_record
from cached.fetch.workers import WorkerSettings
from cached.store.blob import blobs
from cached.store.blob.ingest import Ingest, IngestKey
from cached.store.disk import verity
from cached.store.disk.verity import Sealing
from cached.store.start import recovery
from cached.store.version import snapshots
from cached.transport.connection.settings import HttpSettings
from tests.support.bitrot import flip_on_disk
from tests.support.daemon import REPOSITORY, DaemonProcess, daemon_process, prefetched, write_files
from tests.support.fetching import MIB, Engine, Paused, check_committed, local, spec_of
from tests.support.filling import VERIFIED_AT, aligned, manifest_of
from tests.support.gates import REF, Gates, wait_for
from tests.support.page_cache import drop_pages
from tests.system.verity.conftest import image_of
from tests.system.verity.sealing import merkle_digest

V1 = ModelRef("tiny", "v1")
DATA = random.Random(7).randbytes(3 * MIB + 5)


@pytest.fixture
def layout(ground: Path) -> Layout:
    """An empty root on a file system that seals."""
    layout = Layout(ground / "root")
    recovery.prepare(layout)
    return layout


@pytest.fixture
def daemon(ground: Path, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that seals; a scrub would find what a test spoils."""
    with daemon_process(ground / "daemon", "--fs-verity", "require", "--scrub-rate", "0") as process:
        write_files(tmp_path / "source", {"a.bin": DATA, "config.json": b"{}"})
        process.write_catalog({"tiny": prefetched(f"file://{tmp_path}/source")})
        yield process


def _commit(layout: Layout, data: bytes) -> Path:
    """A sealed blob of `data`, committed as the engine does."""
    sha256 = manifest_of({"x": data}).files[0].sha256
    ingest = Ingest(layout.ingest / sha256, IngestKey(sha256, "v1", len(data)))
    ingest.write(aligned(data), len(data), 0)
    finished = ingest.finish(len(data))
    assert verity.seal(finished, Sealing.ALWAYS)
    blobs.commit(layout, finished, sha256)
    ingest.discard()
    return layout.blob(sha256)


def _publish(layout: Layout) -> tuple[PublicLayout, Manifest]:
    files = {"a.bin": DATA, "config.json": b"{}"}
    for data in files.values():
        _commit(layout, data)
    snapshots.set_name(layout, REF, snapshots.publish(layout, manifest_of(files), VERIFIED_AT))
    return layout.public, manifest_of(files)


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 128 * 4096, 128 * 4096 + 1])
def test_the_kernel_measures_the_digest_of_the_bytes(layout: Layout, size: int) -> None:
    """The digest of a sealed blob is the Merkle root of its bytes, as it is computed without the kernel."""
    assert verity.digest(_commit(layout, DATA[:size])) == merkle_digest(DATA[:size])


def test_nobody_writes_to_a_sealed_blob(layout: Layout) -> None:
    """Not even root opens a sealed blob for writing; linking, moving and deleting it go as ever."""
    blob = _commit(layout, DATA)
    before = blob.stat()
    with pytest.raises(PermissionError):
        blob.open("r+b")
    with pytest.raises(PermissionError):
        os.truncate(blob, 1)
    assert before.st_mode & 0o777 == 0o444
    os.link(blob, layout.public.snapshots / "link")
    blobs.quarantine(layout, blob.name)
    assert verity.digest(layout.quarantine / blob.name) == merkle_digest(DATA)
    (layout.quarantine / blob.name).unlink()


def test_sealing_needs_no_capability(layout: Layout) -> None:
    """The owner seals its read-only file without being root, twice over, and leaves it read-only."""
    folder = layout.root / "owned"
    folder.mkdir()
    os.chown(folder, 65532, 65532)
    code = (
        "import os,sys;from pathlib import Path;from cached.store.disk.verity import Sealing,digest,seal;"
        "path=Path(sys.argv[1]);path.write_bytes(b'x'*5000);path.chmod(0o444);"
        "assert seal(path,Sealing.ALWAYS) and seal(path,Sealing.ALWAYS);"
        "print(digest(path),oct(path.stat().st_mode))"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, "file"],
        user=65532,
        group=65532,
        extra_groups=[],
        cwd=folder,  # entered as root: the folders above are not open to all
        env={"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert made.stdout.split() == [merkle_digest(b"x" * 5000), "0o100444"], made.stderr


def test_a_changed_block_is_refused_by_the_kernel(layout: Layout) -> None:
    """One flipped bit on the disk: its block is read by no process, every other block still is."""
    blob = _commit(layout, DATA)
    _rot(image_of(layout.root.parent), blob, 2 * 4096 + 17)
    with blob.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 4096, 4096) == DATA[4096:8192]
        with pytest.raises(OSError, match="Input/output") as caught:
            os.pread(file.fileno(), 4096, 8192)
    assert caught.value.errno == errno.EIO


def test_the_record_holds_what_was_measured(layout: Layout) -> None:
    """A published record has each file's digest, and a check by record compares it with the kernel's."""
    public, manifest = _publish(layout)
    snapshot = public.snapshot(manifest.digest)
    record = VerifiedRecord.parse(snapshot.verified.read_bytes())
    assert record.files["a.bin"].verity == merkle_digest(DATA)
    os.utime(snapshot.path / "a.bin", ns=(1, 1))
    check_record(snapshot, manifest)  # what the kernel vouches for needs no mtime
    (snapshot.path / "a.bin").unlink()
    (snapshot.path / "a.bin").write_bytes(DATA)
    with pytest.raises(DigestMismatch, match=r"a\.bin: fs-verity digest: .* not sealed"):
        check_record(snapshot, manifest)
    (snapshot.path / "a.bin").unlink()
    os.link(_commit(layout, DATA[::-1]), snapshot.path / "a.bin")
    with pytest.raises(DigestMismatch, match=merkle_digest(DATA[::-1])):
        check_record(snapshot, manifest)


def test_hashing_names_what_the_kernel_refuses(layout: Layout) -> None:
    """A check by hashing ends with a mismatch that names the file, not with a bad address or a signal."""
    public, manifest = _publish(layout)
    snapshot = public.snapshot(manifest.digest)
    check_full(snapshot, manifest, 1)
    _rot(image_of(layout.root.parent), snapshot.path / "a.bin", MIB)
    with pytest.raises(DigestMismatch, match=r"a\.bin: bytes: .*fs-verity seal"):
        check_full(snapshot, manifest, 1)


def test_a_gate_measures_through_a_read_only_mount(layout: Layout, tmp_path: Path) -> None:
    """Behind a read-only mount, mode `record` opens on sealed files, and ends with 65 where one is another's."""
    public, manifest = _publish(layout)
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", "--bind", public.path, mount], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mount], check=True)
        gates = Gates(PublicLayout(mount), tmp_path)
        opened = gates.start("--once")
        assert opened.wait() == 0, opened.said()
        victim = public.snapshot(manifest.digest).path / "a.bin"
        victim.unlink()
        os.link(_commit(layout, DATA[::-1]), victim)
        refused = gates.start("--once")
        assert refused.wait() == 65
        assert "a.bin: fs-verity digest" in refused.said()
        gates.end()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_what_was_sealed_before_a_crash_is_not_fetched_again(layout: Layout, tmp_path: Path) -> None:
    """A crash between the seal and the commit costs a hash: the partial blob is committed, and no byte is received."""
    data = random.Random(8).randbytes(5 * MIB)
    spec = spec_of(data)
    ingest = Ingest(layout.ingest / spec.key.id, spec.key)
    ingest.write(aligned(data), len(data), 0)
    ingest.record([(0, 4 * MIB)])
    assert verity.seal(ingest.finish(len(data)), Sealing.ALWAYS)
    engine = Engine(layout.root, WorkerSettings(1, 1, None, Sealing.ALWAYS), HttpSettings())
    try:
        verified = engine.fetch(spec, local(_file(tmp_path, b"other bytes")))
    finally:
        engine.close()
    check_committed(layout, data, verified)
    assert verity.digest(layout.blob(verified.sha256)) == merkle_digest(data)
    assert engine.counts.received_bytes == 0


def test_what_the_disk_changed_on_the_way_is_never_committed(layout: Layout, tmp_path: Path) -> None:
    """Bytes that hashed right in memory and came back wrong from the disk are fetched once more, and then right."""
    data = random.Random(9).randbytes(12 * MIB)
    spec = spec_of(data)
    engine = Engine(layout.root, WorkerSettings(1, 1, None, Sealing.ALWAYS), HttpSettings())
    space = Paused(8 * MIB)
    try:
        download = engine.launch(spec, local(_file(tmp_path, data)), space=space)
        assert space.reached.wait(60)
        _rot(image_of(layout.root.parent), engine.folder(spec) / "data", 4096)
        space.let_go.set()
        verified = download.result.result(60)
    finally:
        engine.close()
    check_committed(layout, data, verified)
    assert engine.counts.mismatches == 1


def test_the_daemon_seals_what_it_fetches_and_mends_what_rots(
    daemon: DaemonProcess, ground: Path, tmp_path: Path
) -> None:
    """Fetched blobs are sealed and gates open on them; a flipped bit makes a full gate end with 65, is found by the
    scrub, quarantined, and fetched again."""
    daemon.start()
    daemon.wait_ready(V1)
    victim = daemon.path(V1) / "a.bin"
    assert verity.digest(victim) == merkle_digest(DATA)
    inode = victim.stat().st_ino
    gates = Gates(daemon.layout.public, tmp_path)
    asked = ("--model", "tiny", "--version", "v1", "--once")
    _rot(image_of(ground), victim, MIB)
    by_record, by_hashing = gates.start_bare(*asked), gates.start_bare(*asked, "--verify", "full")
    assert (by_record.wait(), by_hashing.wait()) == (0, 65), by_hashing.said()
    gates.end()
    assert daemon.stop() == 0
    daemon.start("--scrub-rate", "1GiB/s", "--scrub-period", "1s")
    daemon.wait(lambda: daemon.metric("holdfast_verify_failures_total", where="scrub") == 1, "the flipped bit")
    daemon.wait(lambda: victim.exists() and victim.stat().st_ino != inode, "a.bin again")
    assert victim.read_bytes() == DATA
    assert verity.digest(victim) == merkle_digest(DATA)
    assert [path.stat().st_ino for path in daemon.layout.quarantine.iterdir()] == [inode]
    assert daemon.stop() == 0


def test_a_file_system_made_without_it_can_be_given_it(plain_ground: Path, tmp_path: Path) -> None:
    """Without the feature `auto` says once which command brings it and goes on, `require` does not start; after that
    command the scrub seals what was there, and nothing is fetched again."""
    with daemon_process(plain_ground / "daemon", "--scrub-rate", "1GiB/s", "--scrub-period", "1s") as daemon:
        write_files(tmp_path / "source", {"a.bin": DATA})
        daemon.write_catalog({"tiny": prefetched(f"file://{tmp_path}/source")})
        daemon.start()
        daemon.wait_ready(V1)
        device = daemon.log().partition("tune2fs -O verity ")[2].partition("`")[0]
        assert daemon.log().count("fs-verity") == 1, daemon.log()
        assert daemon.stop() == 0
        daemon.launch("--fs-verity", "require")
        wait_for(lambda: daemon.code() is not None, "its end")
        assert daemon.code() == 1
        assert f"tune2fs -O verity {device}" in daemon.log()
        subprocess.run(["tune2fs", "-O", "verity", device], check=True, capture_output=True)
        daemon.start("--fs-verity", "require")
        daemon.wait(lambda: verity.digest(daemon.path(V1) / "a.bin") == merkle_digest(DATA), "a seal")
        record = daemon.path(V1) / ".holdfast" / "verified.json"
        daemon.wait(lambda: _verity(record) == merkle_digest(DATA), "its digest in the record")
        assert (daemon.path(V1) / "a.bin").stat().st_mode & 0o777 == 0o444
        assert daemon.metric("holdfast_fetch_bytes_total") == 0


def _rot(image: Path, path: Path, offset: int) -> None:
    flip_on_disk(image, path, offset)
    drop_pages(path)


def _verity(record: Path) -> str | None:
    return VerifiedRecord.parse(record.read_bytes()).files["a.bin"].verity


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "origin"
    path.write_bytes(data)
    return path
