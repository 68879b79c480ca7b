"""The modes of what pods read: what is opened again, and what is left alone."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.store.start import recovery
from cached.store.version import modes, repair
from tests.support.filling import manifest_of, publish

V1 = ModelRef("acme/tiny", "v1")
FILES = {"a": b"a", "b/c": b"c", "b/d/e": b"e"}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    recovery.prepare(layout)
    return layout


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_what_is_closed_is_found_and_opened(layout: Layout) -> None:
    """Folders and files that some user may not read are named, and opened with the name's folder and the records."""
    digest, manifest = publish(layout, V1, FILES), manifest_of(FILES)
    snapshot = layout.public.snapshot(digest)
    assert repair.is_intact(layout, digest, manifest)
    (snapshot.path / "b").chmod(0o750)
    (snapshot.path / "b" / "c").chmod(0o440)
    snapshot.lease.chmod(0o400)
    layout.public.model_link(V1).parent.chmod(0o700)
    assert modes.find_closed(layout, digest, manifest) == ["b", "b/c"]
    assert not repair.is_intact(layout, digest, manifest) and not repair.is_named(layout, (V1,), digest)
    modes.open_all(layout, (V1,), digest, manifest)
    assert repair.is_intact(layout, digest, manifest) and repair.is_named(layout, (V1,), digest)
    assert (_mode(snapshot.path / "b"), _mode(snapshot.path / "b" / "c"), _mode(snapshot.lease)) == (
        0o755,
        0o444,
        0o444,
    )


def test_what_is_not_ours_is_left_alone(layout: Layout, tmp_path: Path) -> None:
    """Behind a link in a folder's place nothing is changed, nor a file that is not the blob."""
    digest, manifest = publish(layout, V1, FILES), manifest_of(FILES)
    snapshot = layout.public.snapshot(digest)
    outside = tmp_path / "outside"
    (outside / "d").mkdir(parents=True, mode=0o700)
    (outside / "c").touch(0o600)
    shutil.rmtree(snapshot.path / "b")
    (snapshot.path / "b").symlink_to(outside)
    (snapshot.path / "a").unlink()
    (snapshot.path / "a").touch(0o600)
    assert modes.find_closed(layout, digest, manifest) == []
    modes.open_all(layout, (V1,), digest, manifest)
    assert [_mode(path) for path in (outside / "d", outside / "c", snapshot.path / "a")] == [0o700, 0o600, 0o600]
