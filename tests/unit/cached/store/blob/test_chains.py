"""The chaining values on the disk: a hint that is right or counts for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.store.blob import chains

BLOB, STATES = "a" * 64, bytes(range(96))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.blob(BLOB).parent.mkdir(parents=True)
    layout.blob(BLOB).touch()
    return layout


def test_they_are_read_as_they_were_written(layout: Layout) -> None:
    """The states of a blob are the same after a restart, and may be written again."""
    for _ in range(2):
        chains.write(layout, BLOB, STATES)
        assert chains.read(layout, BLOB, len(STATES)) == STATES


@pytest.mark.parametrize("data", [b"", STATES, bytes(len(STATES) + 32), STATES + bytes(4096)])
def test_damaged_ones_count_for_nothing(layout: Layout, data: bytes) -> None:
    """A file that a crash cut short, filled with zeros or spoiled, or of another length, is none."""
    chains.write(layout, BLOB, STATES)
    assert chains.read(layout, BLOB, len(STATES) - 32) is None
    assert chains.read(layout, "b" * 64, len(STATES)) is None
    layout.chain(BLOB).write_bytes(data)
    assert chains.read(layout, BLOB, len(STATES)) is None


def test_those_of_no_blob_go(layout: Layout) -> None:
    """What belongs to no blob, and what a crash left half, is deleted; the others stay. Without any there is nothing to
    do."""
    chains.sweep(layout)
    for blob in (BLOB, "b" * 64):
        chains.write(layout, blob, STATES)
    (layout.chains / ".tmp-0").touch()
    chains.sweep(layout)
    assert [each.name for each in layout.chains.iterdir()] == [BLOB]
