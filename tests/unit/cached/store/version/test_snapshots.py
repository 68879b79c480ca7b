"""A snapshot appears whole, by one rename; a model's name appears last and disappears first."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Transient
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.snapshot.lease import take_shared
from cached.contract.snapshot.verified import VerifiedFile, VerifiedRecord
from cached.store.blob import blobs
from cached.store.version import snapshots
from tests.support.filling import VERIFIED_AT, add_blob, manifest_of, publish, tree

REF = ModelRef("acme/tiny", "v1")
FILES = {"config.json": b"{}", "weights/a.safetensors": b"a" * 9000, "weights/deep/b.txt": b"", ".dot": b"dot"}


def test_a_blob_that_was_taken_away_is_fetched_again(layout: Layout) -> None:
    """Publishing without one of its blobs (the scrub took it away since) publishes nothing, and is tried again."""
    sha256 = add_blob(layout, b"a")
    with pytest.raises(Transient) as caught:
        snapshots.publish(layout, manifest_of({"a": b"a", "b": b"b"}), VERIFIED_AT)
    assert caught.value.code == "blob_gone"
    assert hashlib.sha256(b"b").hexdigest() in caught.value.message
    assert os.listdir(layout.public.snapshots) == []
    assert blobs.has(layout, sha256)


def test_the_tree(layout: Layout) -> None:
    """The files are links to the blobs under their names, folders are 0755 and files 0444, whatever the umask."""
    before = os.umask(0o077)
    try:
        digest = publish(layout, REF, FILES)
    finally:
        os.umask(before)
    snapshot = layout.public.snapshot(digest)
    assert tree(snapshot.path) == {
        *FILES,
        "weights/",
        "weights/deep/",
        ".holdfast/",
        ".holdfast/manifest.json",
        ".holdfast/verified.json",
        ".holdfast/lease",
    }
    for path, data in FILES.items():
        file = snapshot.path / path
        assert file.read_bytes() == data
        assert file.stat().st_ino == layout.blob(hashlib.sha256(data).hexdigest()).stat().st_ino
    for at, _, names in os.walk(snapshot.path):
        assert stat.S_IMODE(Path(at).stat().st_mode) == 0o755
        assert all(stat.S_IMODE((Path(at) / name).lstat().st_mode) == 0o444 for name in names)


def test_its_records(layout: Layout) -> None:
    """The manifest hashes to the snapshot's name; the verified record is what lstat says; the lease is empty."""
    digest = publish(layout, REF, FILES)
    snapshot = layout.public.snapshot(digest)
    assert hashlib.sha256(snapshot.manifest.read_bytes()).hexdigest() == snapshot.path.name == digest.hex
    record = VerifiedRecord.parse(snapshot.verified.read_bytes())
    assert record.files == {path: VerifiedFile.of((snapshot.path / path).lstat(), VERIFIED_AT) for path in FILES}
    assert snapshot.lease.read_bytes() == b""


def test_the_same_content_twice(layout: Layout) -> None:
    """Publishing what is there changes nothing of it, and gives the same digest."""
    digest = publish(layout, REF, FILES)
    before = layout.public.snapshot(digest).path.stat()
    assert publish(layout, ModelRef("other", "v9"), FILES) == digest
    after = layout.public.snapshot(digest).path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(layout.public.snapshots) == [digest.hex]


def test_the_same_content_at_once(layout: Layout) -> None:
    """Two names with the same content may be published at the same moment."""
    count = 4
    with ThreadPoolExecutor(count) as pool:
        for turn in range(15):
            files = FILES | {"turn": bytes([turn])}
            for data in files.values():
                add_blob(layout, data)
            manifest, barrier = manifest_of(files), threading.Barrier(count)

            def one(_: int, manifest=manifest, barrier=barrier) -> Digest:  # type: ignore[no-untyped-def]
                barrier.wait()
                return snapshots.publish(layout, manifest, VERIFIED_AT)

            assert set(pool.map(one, range(count))) == {manifest.digest}
    assert len(os.listdir(layout.public.snapshots)) == 15


def test_a_damaged_snapshot_is_made_anew(layout: Layout) -> None:
    """A snapshot whose manifest is not the one of its name is replaced, not taken for what it should be."""
    digest = publish(layout, REF, FILES)
    snapshot = layout.public.snapshot(digest)
    snapshot.manifest.chmod(0o644)
    snapshot.manifest.write_bytes(b"{}")
    assert snapshots.publish(layout, manifest_of(FILES), VERIFIED_AT) == digest
    assert Digest.of(snapshot.manifest.read_bytes()) == digest
    snapshot.manifest.unlink()
    assert snapshots.publish(layout, manifest_of(FILES), VERIFIED_AT) == digest
    assert Digest.of(snapshot.manifest.read_bytes()) == digest


def test_without_its_blobs_nothing_appears(layout: Layout) -> None:
    """Where a blob is missing, no snapshot appears and no temporary name stays."""
    with pytest.raises(Transient) as caught:
        snapshots.publish(layout, manifest_of(FILES), VERIFIED_AT)
    assert "publishing snapshot" in caught.value.message
    assert tree(layout.public.snapshots) == set()


def test_the_name_is_a_relative_symlink(layout: Layout, tmp_path: Path) -> None:
    """The name works wherever the public folder is mounted."""
    publish(layout, REF, FILES)
    target = os.readlink(layout.public.model_link(REF))
    assert not os.path.isabs(target)
    elsewhere = tmp_path / "mounted"
    layout.public.path.rename(elsewhere)
    assert (elsewhere / "models" / "acme--tiny" / "v1" / "config.json").read_bytes() == b"{}"


def test_the_name_moves_atomically(layout: Layout) -> None:
    """A reader that resolves the name while it moves finds the old snapshot or the new one, never nothing."""
    one, two = publish(layout, REF, FILES), publish(layout, ModelRef("x", "1"), {"other": b"two"})
    link, seen, stop = layout.public.model_link(REF), set(), threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(Path(os.readlink(link)).name)

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(50):
        snapshots.set_name(layout, REF, two)
        snapshots.set_name(layout, REF, one)
    stop.set()
    watcher.join()
    assert seen <= {one.hex, two.hex}
    assert snapshots.read_name(layout, REF) == one
    assert tree(layout.public.models) == {"acme--tiny/", "acme--tiny/v1", "x/", "x/1"}


def test_the_name_goes_alone(layout: Layout) -> None:
    """Taking a name away leaves the snapshot, and other versions' names."""
    digest = publish(layout, REF, FILES)
    publish(layout, ModelRef("acme/tiny", "v2"), FILES)
    snapshots.delete_name(layout, REF)
    assert snapshots.read_name(layout, REF) is None
    assert tree(layout.public.models) == {"acme--tiny/", "acme--tiny/v2"}
    snapshots.delete_name(layout, ModelRef("acme/tiny", "v2"))
    assert tree(layout.public.models) == set()
    assert layout.public.snapshot(digest).path.exists()


def test_trash_is_out_of_sight(layout: Layout) -> None:
    """A snapshot in the trash is under no public name, and a file that a process has open can still be read."""
    digest = publish(layout, REF, FILES)
    with (layout.public.snapshot(digest).path / "config.json").open("rb") as open_file:
        path = snapshots.trash(layout, digest)
        assert path is not None
        assert path.parent == layout.trash
        assert snapshots.trash(layout, digest) is None
        snapshots.delete_trash(path)
        assert open_file.read() == b"{}"
    assert os.listdir(layout.trash) == []
    assert os.listdir(layout.public.snapshots) == []


def test_the_record_is_replaced_under_a_lease(layout: Layout) -> None:
    """The verified record can be renewed while a reader uses the snapshot; the lease stays theirs."""
    snapshot = layout.public.snapshot(publish(layout, REF, FILES))
    lease = take_shared(snapshot.lease)
    assert lease is not None
    with lease:
        snapshots.write_verified(snapshot, VerifiedRecord({}))
    assert VerifiedRecord.parse(snapshot.verified.read_bytes()).files == {}
    assert stat.S_IMODE(snapshot.verified.stat().st_mode) == 0o444


def test_a_snapshot_of_another_file_is_made_anew(layout: Layout) -> None:
    """A snapshot that was left when a blob went bad is not published again: it would bring the bad bytes back."""
    files = {"model.safetensors": b"weights"}
    digest = publish(layout, REF, files)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    blobs.quarantine(layout, sha256)
    add_blob(layout, b"weights")
    assert publish(layout, REF, files) == digest
    linked = layout.public.snapshot(digest).path / "model.safetensors"
    assert linked.stat().st_ino == layout.blob(sha256).stat().st_ino
