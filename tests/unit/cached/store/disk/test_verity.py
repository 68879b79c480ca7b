"""Sealing where fs-verity cannot be had: it is said what is missing, and nothing is half done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout
from cached.store.disk import verity
from cached.store.disk.verity import Sealing
from cached.store.start import recovery
from tests.support.mounts import mounted_tmpfs


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """A root on a file system that has no fs-verity on any kernel."""
    with mounted_tmpfs(tmp_path / "memory") as folder:
        layout = Layout(folder / "root")
        recovery.prepare(layout)
        yield layout


def test_auto_goes_on_and_says_once_what_is_missing(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    """`auto` comes to no sealing, one line with a remedy, and no trace on the disk."""
    with caplog.at_level(logging.INFO):
        assert verity.choose(layout, "auto") is Sealing.NONE
    (said,) = caplog.messages
    assert "tmpfs has no fs-verity" in said
    assert "ext4" in said
    assert list(layout.ingest.iterdir()) == []


def test_off_asks_nobody(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    """`off` comes to no sealing, without a word."""
    with caplog.at_level(logging.INFO):
        assert verity.choose(layout, "off") is Sealing.NONE
    assert caplog.messages == []


def test_require_is_refused_with_a_remedy(layout: Layout) -> None:
    """`require` is a permanent error that names the root, what is missing, and what to do."""
    with pytest.raises(Permanent, match="--fs-verity require, and tmpfs has no fs-verity") as caught:
        verity.choose(layout, "require")
    assert caught.value.code == "no_verity"
    assert str(layout.root) in caught.value.message
    assert "ext4" in caught.value.remedy


@pytest.mark.parametrize("sealing", Sealing)
def test_a_file_that_cannot_be_sealed_stays_as_it_was(layout: Layout, sealing: Sealing) -> None:
    """Whatever was wished for, a refusal leaves the file's bytes and its mode; it is an error only where it must be."""
    path = layout.ingest / "data"
    path.write_bytes(b"weights")
    path.chmod(0o444)
    if sealing is Sealing.ALWAYS:
        with pytest.raises(HoldfastError, match="fs-verity"):
            verity.seal(path, sealing)
    else:
        assert not verity.seal(path, sealing)
    assert path.read_bytes() == b"weights"
    assert path.stat().st_mode & 0o777 == 0o444
    assert verity.digest(path) is None
