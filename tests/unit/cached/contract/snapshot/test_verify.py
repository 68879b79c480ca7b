"""Verification: what is hashed, how it ends, and what it says."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cached.contract.errors import DigestMismatch
from cached.contract.layout import SnapshotLayout
from cached.contract.manifest import Manifest
from cached.contract.snapshot.verify import check_full, check_record, hash_file, load_manifest
from tests.support.snapshots import make_public, make_snapshot

WINDOW = 16 << 20
FILES = {f"{number}.bin": bytes([number]) * (1 << 20) for number in range(8)}


@pytest.fixture
def snapshot(tmp_path: Path) -> SnapshotLayout:
    """A snapshot of `FILES`."""
    public = make_public(tmp_path / "public")
    return public.snapshot(make_snapshot(public, FILES))


@pytest.fixture
def manifest(snapshot: SnapshotLayout) -> Manifest:
    """Its manifest."""
    return load_manifest(snapshot, None)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 4097])
def test_every_byte_is_hashed_once(tmp_path: Path, size: int) -> None:
    """The digest is sha256 of the whole file, whatever its size, and progress adds up to that size."""
    data = os.urandom(4099) * (size // 4099 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    told: list[int] = []
    assert hash_file(tmp_path / "file", told.append) == hashlib.sha256(data[:size]).hexdigest()
    assert sum(told) == size


def test_a_file_that_cannot_be_mapped_is_read() -> None:
    """Where the file system refuses maps, the digest is the same."""
    unmapped = Path("/sys/kernel/notes")
    if not os.access(unmapped, os.R_OK):
        pytest.skip(f"no {unmapped} here")
    told: list[int] = []
    assert hash_file(unmapped, told.append) == hashlib.sha256(unmapped.read_bytes()).hexdigest()
    assert sum(told) == len(unmapped.read_bytes())


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    """A symlink at the path is an error, not the file behind it."""
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="no plain file"):
        hash_file(tmp_path / "link")


def test_a_file_cut_short_while_it_is_hashed_is_an_error(tmp_path: Path) -> None:
    """Bytes that vanish while the file is hashed raise; they do not end the process with SIGBUS."""
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * WINDOW))
    with pytest.raises(OSError, match="cut short"):
        hash_file(path, lambda _size: os.truncate(path, WINDOW))


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_a_whole_snapshot_passes(snapshot: SnapshotLayout, manifest: Manifest, threads: int) -> None:
    """Any number of threads hashes each byte once."""
    lock, told = threading.Lock(), 0

    def tell(size: int) -> None:
        nonlocal told
        with lock:
            told += size

    check_full(snapshot, manifest, threads, tell)
    assert told == manifest.total_bytes


@pytest.mark.parametrize("threads", [1, 4])
def test_each_file_counts(snapshot: SnapshotLayout, manifest: Manifest, threads: int) -> None:
    """One changed byte in any one file is found, and the error names that file."""
    for name, data in FILES.items():
        path = snapshot.path / name
        path.chmod(0o644)
        path.write_bytes(data[:-1] + b"!")
        with pytest.raises(DigestMismatch, match=name):
            check_full(snapshot, manifest, threads)
        path.write_bytes(data)


def test_an_interruption_ends_it(snapshot: SnapshotLayout, manifest: Manifest) -> None:
    """What `progress` raises comes out, and no thread is left hashing."""

    class Enough(Exception):
        pass

    def refuse(_size: int) -> None:
        raise Enough

    before = threading.active_count()
    with pytest.raises(Enough):
        check_full(snapshot, manifest, 2, refuse)
    assert threading.active_count() == before


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_fewer_threads_than_asked_for_hash_everything(
    snapshot: SnapshotLayout, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """Where the kernel refuses threads those that run, or the caller's own, hash every file and find a bad one."""
    start, left = threading.Thread.start, [allowed]

    def limited(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    told: list[int] = []
    check_full(snapshot, manifest, 8, told.append)
    assert sum(told) == manifest.total_bytes
    (snapshot.path / "5.bin").chmod(0o644)
    (snapshot.path / "5.bin").write_bytes(bytes(1 << 20))
    left[0] = allowed
    with pytest.raises(DigestMismatch, match=r"5\.bin"):
        check_full(snapshot, manifest, 8)


def _link_folder(snapshot: Path) -> None:
    folder = snapshot / "sub"
    folder.symlink_to(folder.rename(snapshot.parent / "moved"))


STRAYS: dict[str, Callable[[Path], object]] = {
    "'extra.json'": lambda snapshot: (snapshot / "extra.json").write_bytes(b"{}"),
    "'sub/extra.json'": lambda snapshot: (snapshot / "sub/extra.json").write_bytes(b"{}"),
    "'more'": lambda snapshot: (snapshot / "more").mkdir(),
    "'dangling'": lambda snapshot: (snapshot / "dangling").symlink_to("nowhere"),
    "'pipe'": lambda snapshot: os.mkfifo(snapshot / "pipe"),
    "'sub/.holdfast'": lambda snapshot: (snapshot / "sub/.holdfast").mkdir(),
    "'sub'": _link_folder,
}


@pytest.mark.parametrize("check", [check_record, partial(check_full, threads=2)], ids=["record", "full"])
@pytest.mark.parametrize("named", STRAYS)
def test_what_the_manifest_does_not_have_is_a_mismatch(
    tmp_path: Path, named: str, check: Callable[[SnapshotLayout, Manifest], None]
) -> None:
    """Anything beside the manifest's files is refused by name at both levels, wherever it lies and whatever it is: an
    engine takes what it finds in the folder."""
    public = make_public(tmp_path / "public")
    snapshot = public.snapshot(make_snapshot(public, {"a.bin": b"a", "sub/b.bin": b"b"}))
    manifest = load_manifest(snapshot, None)
    check(snapshot, manifest)
    STRAYS[named](snapshot.path)
    with pytest.raises(DigestMismatch, match="the manifest does not have it") as refused:
        check(snapshot, manifest)
    assert refused.value.message.startswith(f"{named}: ")
