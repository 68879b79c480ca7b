"""A blob is written to through another hard link, which leaves another mtime than when its sha256 was computed: no
record that is written afterwards vouches for it unhashed. Nothing scrubs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bitrot import flip
from tests.support.daemon import DaemonProcess
from tests.support.gates import Gates
from tests.system.rot.sharing import OTHER, V1, sharing_daemon

FILES = {"a.bin": random.Random(61).randbytes(400_001), "b/c.bin": random.Random(62).randbytes(5000)}
SHARED = {"x.bin": FILES["a.bin"], "y.bin": b"mine"}


@pytest.fixture
def daemon(tmp_path: Path, source: Path) -> Iterator[DaemonProcess]:
    """A daemon with one version, and another in its catalog that shares a blob."""
    with sharing_daemon(tmp_path / "daemon", source, FILES, SHARED) as process:
        yield process


def _write(daemon: DaemonProcess, data: bytes) -> None:
    """Write over the beginning of a.bin, by a link outside of the root's folders."""
    link = daemon.layout.root.parent / "link"
    os.link(daemon.path(V1) / "a.bin", link)
    link.chmod(0o644)
    with link.open("r+b") as file:
        file.write(data)


def test_a_version_that_shares_it_is_not_published_with_it(daemon: DaemonProcess, gates: Gates) -> None:
    """A later version that has the same content gets the right bytes, fetched again, and so does the first."""
    _write(daemon, b"wrong bytes")
    daemon.pull("other@v1")
    gates.check_opens(OTHER)
    assert daemon.files(OTHER) == SHARED
    gates.check_opens(V1)
    assert daemon.files(V1) == FILES
    assert len(list(daemon.layout.quarantine.iterdir())) == 1


@pytest.mark.parametrize("kept", [True, False], ids=["put back", "unreadable"])
def test_nor_where_its_record_is_gone(daemon: DaemonProcess, gates: Gates, kept: bool) -> None:
    """A blob that no record speaks of any more is hashed before a version that shares it is published."""
    record = daemon.path(V1) / ".holdfast" / "verified.json"
    if kept:
        record.unlink()
        daemon.wait(lambda: "is whole again" in daemon.log(), "another record")
    else:
        record.chmod(0o644)
        record.write_text("{")
    flip(daemon.path(V1) / "a.bin")
    daemon.pull("other@v1")
    gates.check_opens(OTHER)
    assert daemon.files(OTHER) == SHARED
    assert len(list(daemon.layout.quarantine.iterdir())) == 1


def test_one_that_was_only_touched_is_kept(daemon: DaemonProcess, gates: Gates) -> None:
    """Where the hash is right the blob stays, and nothing of it is fetched again."""
    fetched = daemon.metric("holdfast_fetch_bytes_total")
    _write(daemon, FILES["a.bin"][:11])
    daemon.pull("other@v1")
    gates.check_opens(OTHER)
    assert daemon.files(OTHER) == SHARED
    assert daemon.metric("holdfast_fetch_bytes_total") - fetched == len(SHARED["y.bin"])
    assert not list(daemon.layout.quarantine.iterdir())


REBUILT: dict[str, Callable[[Path], object]] = {
    "a file": lambda snapshot: (snapshot / "b" / "c.bin").unlink(),
    "a folder": lambda snapshot: shutil.rmtree(snapshot / "b"),
    "its manifest": lambda snapshot: (snapshot / ".holdfast" / "manifest.json").unlink(),
    "its lease": lambda snapshot: (snapshot / ".holdfast" / "lease").unlink(),
}


@pytest.mark.parametrize("gone", REBUILT)
@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_a_snapshot_made_anew_does_not_take_it_for_right(
    daemon: DaemonProcess, gates: Gates, gone: str, down: bool
) -> None:
    """A snapshot of which something else is missing is made anew, and the blob that its record does not fit is fetched
    again."""
    if down:
        daemon.kill()
    _write(daemon, b"wrong bytes")
    REBUILT[gone](daemon.path(V1).resolve())
    if down:
        daemon.start()
    else:
        daemon.wait(lambda: len(list(daemon.layout.quarantine.iterdir())) == 1, "the quarantine")
    gates.check_opens(V1)
    assert daemon.files(V1) == FILES
