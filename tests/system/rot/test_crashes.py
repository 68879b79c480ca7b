"""Crashes between the steps that take wrong bytes out of use: what was found bad is never taken for a version again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError
from cached.contract.reference import ModelRef
from tests.support.bitrot import flip
from tests.support.crashing.points import Kill, Plan, Point
from tests.support.crashing.stage import Stage
from tests.support.crashing.trying import Trials
from tests.support.crashing.warm import WarmDaemon
from tests.support.daemon import DaemonProcess, prefetched, publish_files
from tests.support.origin import HostileOrigin

V1 = ModelRef("tiny", "v1")
FILES = {name: random.Random(name).randbytes(300_001) for name in ("a.bin", "b.bin", "c.bin")}


def test_after_a_power_cut_a_quarantined_blob_is_no_blob(daemon: DaemonProcess, source: Path) -> None:
    """A power cut may bring a blob back that is in quarantine too: a rename is durable in one folder before the other.
    The next start fetches that blob, and no other."""
    publish_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.kill()
    blob = daemon.layout.blob(hashlib.sha256(FILES["a.bin"]).hexdigest())
    flip(blob)
    os.link(blob, daemon.layout.quarantine / blob.name)
    inode = blob.stat().st_ino
    daemon.start()
    daemon.wait_ready(V1)
    assert daemon.files(V1) == FILES
    assert daemon.metric("holdfast_fetch_bytes_total") == len(FILES["a.bin"])
    assert [path.stat().st_ino for path in daemon.layout.quarantine.iterdir()] == [inode]


@pytest.mark.parametrize("point", [Point("unlink model name", 1), Point("rename trashed snapshot", 2)], ids=str)
def test_a_crash_with_several_wrong_files_forgets_none(
    trials: Trials, tmp_path: Path, origin: HostileOrigin, point: Point
) -> None:
    """Of several blobs that one check found bad, a daemon that dies while it withdraws their version leaves none to be
    taken for right."""
    daemon = WarmDaemon(tmp_path / "daemon", trials.parent, "--scrub-rate", "0")
    url = Stage(daemon, origin).serve("v1", FILES)
    daemon.write_catalog({"tiny": prefetched(url)})
    try:
        daemon.start()
        daemon.wait_ready(V1)
        daemon.kill()
        for name in ("a.bin", "b.bin"):
            flip(daemon.path(V1) / name)
        daemon.plan = Plan(daemon.layout.root, tmp_path / "points", Kill(point, "before"))
        daemon.start()
        with contextlib.suppress(HoldfastError, OSError):
            daemon.control.verify(V1)
        assert daemon.died(), (tmp_path / "points").read_text()
        daemon.plan = None
        daemon.start()
        daemon.wait_ready(V1)
        assert daemon.files(V1) == FILES
    finally:
        daemon.end()
