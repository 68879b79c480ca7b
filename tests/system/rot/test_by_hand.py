"""People delete and replace files of the store by hand, in company of a scrub, and with the source gone: what is
missing is not rotten, and the last copy of a content stays."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.bitrot import flip
from tests.support.daemon import DaemonProcess, daemon_process, model, prefetched, publish_files

V1, OTHER = ModelRef("tiny", "v1"), ModelRef("other", "v1")
FILES = {"a.bin": random.Random(31).randbytes(1_000_001), "b/c.bin": random.Random(32).randbytes(70_000)}
SHARED = {"x.bin": FILES["a.bin"], "y.bin": b"mine"}


@pytest.fixture
def daemon(tmp_path: Path, source: Path) -> Iterator[DaemonProcess]:
    """A daemon that scrubs as fast as it can, with a version whose source is gone by now."""
    with daemon_process(tmp_path / "daemon", "--scrub-rate", "1GiB/s", "--scrub-period", "1s") as process:
        publish_files(source / "a", FILES)
        publish_files(source / "b", SHARED)
        process.write_catalog({"tiny": prefetched(f"file://{source}/a"), "other": model(f"file://{source}/b")})
        process.start()
        process.wait_ready(V1)
        yield process


def _blob(daemon: DaemonProcess, path: str = "a.bin") -> Path:
    return daemon.layout.blob(hashlib.sha256(FILES[path]).hexdigest())


def _cut(path: Path) -> None:
    """Replace a file by a shorter one."""
    path.unlink()
    path.write_bytes(b"short")


def _crosswise(daemon: DaemonProcess) -> None:
    _blob(daemon).unlink()
    (daemon.path(V1) / "b/c.bin").unlink()


def _is_joined(daemon: DaemonProcess, ref: ModelRef, files: dict[str, bytes]) -> bool:
    """Whether each file of the version is right, and is its blob."""
    try:
        blobs = {path.stat().st_ino for path in daemon.layout.blobs.glob("*/*")}
        inodes = {(daemon.path(ref) / path).stat().st_ino for path in files}
        return inodes <= blobs and daemon.files(ref) == files
    except (FileNotFoundError, NotADirectoryError):
        return False


def _overwrite(path: Path) -> None:
    """Replace a file by another one with as many other bytes."""
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(bytes(size))


def _touched_and_alone(daemon: DaemonProcess) -> None:
    os.utime(daemon.path(V1) / "a.bin")
    _blob(daemon).unlink()


def _replaced_by_a_copy(daemon: DaemonProcess) -> None:
    path = daemon.path(V1) / "a.bin"
    path.unlink()
    path.write_bytes(FILES["a.bin"])
    shutil.rmtree(daemon.layout.blobs)


HANDS: dict[str, Callable[[DaemonProcess], None]] = {
    "a blob": lambda daemon: _blob(daemon).unlink(),
    "every blob": lambda daemon: shutil.rmtree(daemon.layout.blobs),
    "a blob, and the file was touched": _touched_and_alone,
    "a blob, and the file is a copy": _replaced_by_a_copy,
    "a blob overwritten": lambda daemon: _overwrite(_blob(daemon)),
    "a blob cut to another file": lambda daemon: _cut(_blob(daemon)),
    "a file": lambda daemon: (daemon.path(V1) / "a.bin").unlink(),
    "a file overwritten": lambda daemon: _overwrite(daemon.path(V1) / "a.bin"),
    "a blob and another's file": _crosswise,
}


@pytest.mark.parametrize("hand", HANDS.values(), ids=HANDS.keys())
@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_the_last_copy_of_a_content_stays(
    daemon: DaemonProcess, source: Path, hand: Callable[[DaemonProcess], None], down: bool
) -> None:
    """Whichever of a file and its blob a person deletes or spoils, while the scrub runs or while nothing does, and with
    the source gone: the other one is kept, the version is whole again, and no byte is asked for."""
    shutil.rmtree(source)
    if down:
        daemon.kill()
        hand(daemon)
        daemon.start()
    else:
        hand(daemon)
    fetched = daemon.metric("holdfast_fetch_bytes_total")
    daemon.wait(partial(_is_joined, daemon, V1, FILES), "the whole version")
    daemon.wait_state(V1, "ready")
    assert daemon.metric("holdfast_fetch_bytes_total") == fetched
    log = daemon.log()
    assert "withdrawn" not in log, log


def test_what_a_bad_manifest_took_along_is_kept(daemon: DaemonProcess) -> None:
    """A snapshot is taken away because its manifest rots: a content that only it had is a blob again, not fetched."""
    fetched = daemon.metric("holdfast_fetch_bytes_total")
    for path in daemon.layout.blobs.glob("*/*"):
        path.unlink()
    flip(daemon.path(V1) / ".holdfast" / "manifest.json", 5)
    found = ("manifest.json: expected sha256", "is whole again")  # by the scrub, or by who misses the blobs before it
    daemon.wait(lambda: any(each in daemon.log() for each in found), "the rotten manifest")
    daemon.wait(partial(_is_joined, daemon, V1, FILES), "the whole version")
    daemon.wait_state(V1, "ready")
    assert daemon.metric("holdfast_fetch_bytes_total") == fetched


def test_a_manifest_that_rots_while_nothing_runs_loses_no_version(daemon: DaemonProcess) -> None:
    """A version that was only pulled, whose manifest is found damaged at a start, is here again without a byte."""
    daemon.pull("other@v1")
    daemon.wait_ready(OTHER)
    daemon.kill()
    flip(daemon.path(OTHER) / ".holdfast" / "manifest.json", 5)
    daemon.start()
    daemon.wait(partial(_is_joined, daemon, OTHER, SHARED), "the whole version")
    daemon.wait_state(OTHER, "ready")
    assert daemon.metric("holdfast_fetch_bytes_total") == 0


def test_a_file_goes_and_the_version_that_shares_its_blob_is_evicted(daemon: DaemonProcess, source: Path) -> None:
    """A version that has lost its link to a shared blob still needs it: the other one's eviction leaves it."""
    daemon.pull("other@v1")
    daemon.wait_ready(OTHER)
    shutil.rmtree(source)
    (daemon.path(V1) / "a.bin").unlink()
    daemon.control.gc(dry_run=False)
    assert not daemon.path(OTHER).exists()
    daemon.wait(partial(_is_joined, daemon, V1, FILES), "the whole version")
    daemon.wait_state(V1, "ready")
