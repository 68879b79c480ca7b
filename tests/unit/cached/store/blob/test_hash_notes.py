"""The notes of committed blobs: what outlives the process, and what is never believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.store.blob import hash_notes
from cached.store.blob.hash_notes import HashNotes
from cached.store.start import recovery
from tests.support.filling import add_blob

FIRST, SECOND = b"one", b"two"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    recovery.prepare(layout)
    return layout


def test_what_is_noted_outlives_the_process(layout: Layout) -> None:
    """Another process finds each blob as it was, and the file goes with the last entry."""
    first, second = (add_blob(layout, data) for data in (FIRST, SECOND))
    notes = HashNotes(layout.hashed, {})
    notes.note(layout, [first])
    notes.note(layout, [second])
    again = HashNotes(layout.hashed, hash_notes.read(layout.hashed))
    for sha256 in (first, second):
        seen = again.find(sha256)
        assert seen is not None and seen == notes.find(sha256)
        assert seen.fits(os.lstat(layout.blob(sha256)))
    again.forget([first])
    assert again.find(first) is None and layout.hashed.exists()
    again.forget([second])
    assert not layout.hashed.exists()


@pytest.mark.parametrize("torn", [b'{"sha256": "', b"[]\n", b'{"sha256": 1, "ino": 1}\n', b"\xff\n", b"[" * 100_000])
def test_a_line_that_is_none_is_ignored(layout: Layout, torn: bytes) -> None:
    """A line that a crash cut short, or anything else, is no entry, and the next one counts."""
    sha256 = add_blob(layout, FIRST)
    layout.hashed.write_bytes(torn)
    HashNotes(layout.hashed, {}).note(layout, [sha256])
    assert list(hash_notes.read(layout.hashed)) == [sha256]


def test_a_file_that_cannot_be_written_costs_a_hash_after_a_restart(layout: Layout) -> None:
    """Where the disk refuses the file the entries are in memory, and nothing fails."""
    sha256 = add_blob(layout, FIRST)
    layout.hashed.mkdir()
    notes = HashNotes(layout.hashed, {})
    notes.note(layout, [sha256])
    assert notes.find(sha256) is not None
