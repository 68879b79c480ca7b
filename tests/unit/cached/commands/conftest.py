"""An empty root, a control socket under it, and a body without root's rights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from tests.support.control import ControlServer, serve_control
from tests.support.users import as_ordinary_user


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty root, as a daemon's recovery leaves it."""
    layout = Layout(tmp_path / "root")
    for folder in (layout.public.snapshots, layout.public.models, layout.public.status):
        folder.mkdir(parents=True)
    layout.private.mkdir(mode=0o700)
    return layout


@pytest.fixture
def control(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    """A running control socket under `layout`."""
    monkeypatch.chdir(layout.private)  # a test's folder may be too deep for a socket's address
    with serve_control(layout) as control:
        yield control


@pytest.fixture
def without_root() -> Iterator[None]:
    """The test's body as an ordinary user, whom file modes bind."""
    with as_ordinary_user():
        yield


def publish(layout: Layout, ref: ModelRef, files: Mapping[str, bytes]) -> Digest:
    """A complete version under `layout.public`, as the daemon leaves one; returns its manifest digest."""
    manifest = Manifest.build(
        FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items()
    )
    snapshot = layout.public.snapshot(manifest.digest)
    for path, data in files.items():
        (snapshot.path / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot.path / path).write_bytes(data)
    snapshot.manifest.parent.mkdir(exist_ok=True)
    snapshot.manifest.write_bytes(manifest.canonical())
    snapshot.lease.touch()
    link = layout.public.model_link(ref)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(layout.public.link_target(manifest.digest))
    return manifest.digest
