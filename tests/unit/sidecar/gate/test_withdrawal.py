"""Gates and versions that were sealed, or that the daemon withdraws for rot."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.layout import PublicLayout
from cached.contract.snapshot.verified import VerifiedRecord
from tests.support.gates import FILES, REF, Gates
from tests.support.mounts import mounted_tmpfs
from tests.support.snapshots import link_model, make_hollow_snapshot, make_public, make_snapshot

VICTIM = "model.safetensors"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[PublicLayout]:
    """A public folder where no kernel can tell of seals, as in a sandbox that passes no ioctls on."""
    with mounted_tmpfs(tmp_path / "memory") as folder:
        yield make_public(folder / "public")


def test_where_no_seal_can_be_told_the_record_counts(elsewhere: PublicLayout, tmp_path: Path) -> None:
    """A recorded seal that the kernel cannot speak of is passed over: inode and mtime decide, as ever."""
    digest = make_snapshot(elsewhere, FILES)
    snapshot = elsewhere.snapshot(digest)
    record = VerifiedRecord.parse(snapshot.verified.read_bytes())
    sealed = {path: dataclasses.replace(entry, verity=f"sha256:{'5' * 64}") for path, entry in record.files.items()}
    snapshot.verified.write_bytes(VerifiedRecord(sealed).encode())
    link_model(elsewhere, REF, digest)
    gates = Gates(elsewhere, tmp_path)
    assert gates.start("--once").wait() == 0
    os.utime(snapshot.path / VICTIM, ns=(1, 1))
    gate = gates.start("--once")
    assert gate.wait() == 65
    assert "mtime" in gate.said()
    gates.end()


def test_a_version_withdrawn_while_it_is_verified_is_waited_for(public: PublicLayout, gates: Gates) -> None:
    """The daemon takes a rotten version away in spite of its lease: a gate that was verifying it ends in no mismatch,
    but opens on the version that comes instead."""
    rotten = make_hollow_snapshot(public, {VICTIM: 1 << 30, "config.json": 2})
    link_model(public, REF, rotten)
    gate = gates.start("--once", "--verify", "full", "--threads", "1")
    gate.wait_said("hashing")
    public.model_link(REF).unlink()
    shutil.rmtree(public.snapshot(rotten).path)
    gate.wait_said("withdrawn while it was verified")
    good = make_snapshot(public, FILES)
    link_model(public, REF, good)
    assert gate.wait() == 0, gate.said()
    assert str(good) in gate.said()
