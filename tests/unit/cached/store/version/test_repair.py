"""Putting back what was deleted by hand, where the process runs into its own limits."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cached.contract.errors import Transient
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verify import load_manifest
from cached.store.version import repair
from tests.support.filling import manifest_of, publish

REF, DATA = ModelRef("acme/tiny", "v1"), b"weights"


def test_a_lack_of_descriptors_is_not_taken_for_lost_bytes(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the record cannot be read for want of a descriptor, nothing is called lost: it is tried again."""
    digest = publish(layout, REF, {"a.bin": DATA})
    manifest = manifest_of({"a.bin": DATA})
    blob = layout.blob(manifest.files[0].sha256)
    blob.unlink()

    def refuse(_path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(repair, "read_plain", refuse)
        with pytest.raises(Transient) as raised:
            repair.restore(layout, (), digest, manifest)
    assert raised.value.code == "no_descriptor"
    assert repair.restore(layout, (), digest, manifest).lost == frozenset()
    assert blob.read_bytes() == DATA


@pytest.mark.parametrize("place", ["blob", "file", "record", "manifest"])
def test_a_pipe_in_a_files_place_is_damage_and_not_waited_for(layout: Layout, place: str) -> None:
    """A pipe without a writer in the place of an empty blob, of a file or of a record ends no repair, and counts as no
    bytes, not even as none."""
    digest = publish(layout, REF, {"a.bin": DATA, "empty.bin": b""})
    manifest = manifest_of({"a.bin": DATA, "empty.bin": b""})
    snapshot, empty = layout.public.snapshot(digest), manifest.files[1]
    places = {
        "blob": layout.blob(empty.sha256),
        "file": snapshot.path / "empty.bin",
        "record": snapshot.verified,
        "manifest": snapshot.manifest,
    }
    places[place].unlink()
    os.mkfifo(places[place])
    assert repair.restore(layout, (REF,), digest, manifest).lost == frozenset()
    assert (snapshot.path / "empty.bin").read_bytes() == layout.blob(empty.sha256).read_bytes() == b""
    assert load_manifest(snapshot, None) == manifest
