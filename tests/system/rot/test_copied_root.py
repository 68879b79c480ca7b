"""Blobs under a root that was copied or restored, or whose snapshots are gone: a blob's name alone proves nothing, nor
does a record of another file. Nothing scrubs."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.bitrot import flip
from tests.support.daemon import DaemonProcess, daemon_process, prefetched
from tests.support.gates import Gates
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Stall
from tests.system.rot.sharing import OTHER, V1, sharing_daemon

FILES = {"a.bin": random.Random(61).randbytes(2_400_001), "b/c.bin": random.Random(62).randbytes(5000)}
SHARED = {"x.bin": FILES["a.bin"], "y.bin": b"mine", "z.bin": FILES["b/c.bin"]}


@pytest.fixture
def daemon(tmp_path: Path, source: Path) -> Iterator[DaemonProcess]:
    """A daemon with one version, and another in its catalog that shares all blobs of that."""
    with sharing_daemon(tmp_path / "daemon", source, FILES, SHARED) as process:
        yield process


def _blob(daemon: DaemonProcess, path: str) -> Path:
    return daemon.layout.blob(sha256(FILES[path]).hexdigest())


COPIES = {
    "with hard links": ["cp", "-a"],
    "without hard links": ["cp", "-r", "--preserve=mode,timestamps,ownership"],
    "without times": ["cp", "-r", "--preserve=mode,links"],
}


@pytest.mark.parametrize("command", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("is_wrong", [True, False], ids=["wrong", "right"])
def test_a_copy_is_hashed_before_a_later_version_has_it(
    daemon: DaemonProcess, gates: Gates, command: list[str], is_wrong: bool
) -> None:
    """What a copy of the root has under a blob's name is hashed before a version that shares it is published: wrong
    bytes go into quarantine, right ones are not fetched again."""
    daemon.stop()
    root = daemon.layout.root
    root.rename(root.with_name("before"))
    subprocess.run([*command, root.with_name("before"), root], check=True)
    if is_wrong:
        flip(_blob(daemon, "a.bin"))
    daemon.start()
    daemon.pull("other@v1")
    gates.check_opens(OTHER)
    assert daemon.files(OTHER) == SHARED
    assert len(list(daemon.layout.quarantine.iterdir())) == is_wrong
    assert is_wrong or daemon.metric("holdfast_fetch_bytes_total") == len(SHARED["y.bin"])
    gates.check_opens(V1)
    assert daemon.files(V1) == FILES


@pytest.mark.parametrize("path", FILES)
def test_a_blob_without_a_snapshot_is_hashed(daemon: DaemonProcess, gates: Gates, path: str) -> None:
    """Where the folder that pods mount was lost, a version is published again from its blobs only after each was
    hashed: a wrong one is fetched again, and no other."""
    daemon.stop()
    shutil.rmtree(daemon.layout.public.path)
    flip(_blob(daemon, path))
    daemon.start()
    daemon.wait_ready(V1)
    gates.check_opens(V1)
    assert daemon.files(V1) == FILES
    assert daemon.metric("holdfast_fetch_bytes_total") == len(FILES[path])


def _write(blob: Path) -> None:
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"wrong bytes")
    blob.chmod(0o444)


def _flip_unnoted(daemon: DaemonProcess, path: str) -> None:
    daemon.layout.hashed.unlink()
    flip(_blob(daemon, path))


SPOILED: dict[str, Callable[[DaemonProcess, str], object]] = {
    "written to": lambda daemon, path: _write(_blob(daemon, path)),
    "unnoted": lambda daemon, path: _flip_unnoted(daemon, path),
    "cut": lambda daemon, path: subprocess.run(["truncate", "-s", "4096", _blob(daemon, path)], check=True),
}


@pytest.fixture
def cut_short(tmp_path: Path, origin: HostileOrigin) -> Iterator[DaemonProcess]:
    """A daemon that was killed after it had committed all blobs of a version but one."""
    with daemon_process(tmp_path / "cut", "--scrub-rate", "0") as process:
        origin.publish("/m/", {**FILES, "late.bin": b"late"})
        origin.always("/m/late.bin", Stall(None))
        process.write_catalog({"tiny": prefetched(origin.url("/m/"))})
        process.start()
        process.wait(lambda: all(_blob(process, path).exists() for path in FILES), "the blobs")
        process.kill()
        origin.heal("/m/late.bin")
        yield process


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("path", FILES)
def test_what_a_crash_left_before_its_publication_is_hashed_where_no_note_fits(
    cut_short: DaemonProcess, spoil: Callable[[DaemonProcess, str], object], path: str
) -> None:
    """A committed blob that was changed while no daemon ran is fetched again before its version is published."""
    spoil(cut_short, path)
    cut_short.start()
    cut_short.wait_ready(V1)
    assert cut_short.files(V1) == {**FILES, "late.bin": b"late"}


def test_a_restart_hashes_nothing_that_was_committed(cut_short: DaemonProcess) -> None:
    """A blob that a killed daemon committed is as its note says: it is published without another hash or byte, and the
    notes go with the publication."""
    cut_short.start()
    cut_short.wait_ready(V1)
    assert "hashing it again" not in cut_short.log()
    assert cut_short.metric("holdfast_fetch_bytes_total") == len(b"late")
    assert not cut_short.layout.hashed.exists()
