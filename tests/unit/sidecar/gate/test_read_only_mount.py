"""The gate behind a read-only bind mount, as every pod has it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.layout import PublicLayout
from cached.contract.snapshot import doubt, lease
from tests.support.gates import FILES, REF, Gates
from tests.support.snapshots import link_model, make_snapshot, write_heartbeat


@pytest.fixture
def mounted(public: PublicLayout, tmp_path: Path) -> Iterator[Path]:
    """`public` once more, read-only, elsewhere."""
    place = tmp_path / "mount"
    place.mkdir()
    if subprocess.run(["mount", "--bind", public.path, place], capture_output=True).returncode != 0:
        pytest.skip("only root with CAP_SYS_ADMIN may mount")
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("mode", ["record", "full"])
def test_a_publication_is_seen_and_leased_through_the_mount(
    public: PublicLayout, mounted: Path, tmp_path: Path, mode: str
) -> None:
    """Through a read-only mount a gate sees the symlink come, verifies, and keeps the daemon's evictions out."""
    gates = Gates(PublicLayout(mounted), tmp_path)
    try:
        gate = gates.start("--verify", mode)
        gate.wait_said("waiting")
        digest = make_snapshot(public, FILES)
        link_model(public, REF, digest)
        gate.wait_said("open after")
        assert lease.is_held(public.snapshot(digest).lease)
        gate.process.terminate()
        assert gate.wait() == 0
        assert not lease.is_held(public.snapshot(digest).lease)
    finally:
        gates.end()


def test_a_doubt_is_seen_through_the_mount(public: PublicLayout, mounted: Path, tmp_path: Path) -> None:
    """Through a read-only mount a gate that refuses rings and doubts; the daemon's side sees both on the tree itself,
    and neither once the gate was killed."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    write_heartbeat(public)
    os.utime(public.snapshot(digest).path / "model.safetensors", ns=(1, 1))
    gates = Gates(PublicLayout(mounted), tmp_path)
    try:
        gate = gates.start("--once")
        gate.wait_said("asked to look at it now")
        assert doubt.is_bell_held(public) and doubt.is_doubted(public.snapshot(digest))
        gate.process.kill()
        gate.wait()
        assert not doubt.is_bell_held(public) and not doubt.is_doubted(public.snapshot(digest))
    finally:
        gates.end()
