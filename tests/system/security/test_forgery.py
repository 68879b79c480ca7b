"""A process that can write the root forges its records: what a gate still notices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import PublicLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.snapshot.verified import VerifiedFile, VerifiedRecord
from tests.support.gates import FILES, REF, Gates
from tests.support.snapshots import link_model, make_public, make_snapshot


@pytest.fixture
def public(tmp_path: Path) -> PublicLayout:
    return make_public(tmp_path / "public")


@pytest.fixture
def gates(public: PublicLayout, tmp_path: Path) -> Iterator[Gates]:
    gates = Gates(public, tmp_path)
    yield gates
    gates.end()


def forge(public: PublicLayout, digest: Digest) -> None:
    """Other bytes of the same length in a file, and a record that says they were verified."""
    snapshot = public.snapshot(digest)
    path = snapshot.path / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(bytes(len(FILES["model.safetensors"])))
    path.chmod(0o444)
    record = VerifiedRecord.parse(snapshot.verified.read_bytes())
    record.files["model.safetensors"] = VerifiedFile.of(os.stat(path), "2026-11-20T18:00:00Z")
    snapshot.verified.chmod(0o644)
    snapshot.verified.write_bytes(record.encode())


def test_a_full_check_believes_no_record(public: PublicLayout, gates: Gates) -> None:
    """In mode full a forged record is worth nothing: bytes that do not hash as the manifest says end it with 65."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    forge(public, digest)
    gate = gates.start("--once", "--verify", "full", "--digest", str(digest))
    assert gate.wait() == 65
    assert "model.safetensors" in gate.said()


def test_a_pin_believes_no_manifest(public: PublicLayout, gates: Gates) -> None:
    """A version whose whole snapshot was forged, manifest and all, does not pass a gate that has the pin."""
    digest = make_snapshot(public, FILES)
    forged = make_snapshot(public, {**FILES, "model.safetensors": b"evil"})
    link_model(public, REF, forged)
    gate = gates.start("--once", "--digest", str(digest))
    assert gate.wait() == 65
    assert str(digest) in gate.said() and str(forged) in gate.said()


def test_a_manifest_that_is_not_its_folders_name_is_refused(public: PublicLayout, gates: Gates) -> None:
    """Also without a pin a manifest must hash to the snapshot's name: a forged list of files ends the gate with 65."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    manifest = public.snapshot(digest).manifest
    manifest.chmod(0o644)
    manifest.write_bytes(Manifest((FileEntry("config.json", Digest.of(b"{}").hex, 2),)).canonical())
    assert gates.start("--once").wait() == 65
