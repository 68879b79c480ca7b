"""The bytes of each snapshot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cached.contract.held_bytes import HeldBytes
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.daemon.page import sizes
from cached.daemon.page.sizes import SnapshotSizes
from cached.node.inventory import Inventory
from cached.store.start import recovery


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    layout = Layout(tmp_path)
    recovery.prepare(layout)
    return Inventory(layout, recovery.recover(layout))


def _add(inventory: Inventory, **files: int) -> Manifest:
    """Add a snapshot of these blobs: their names, and sizes in bytes."""
    manifest = Manifest.build(FileEntry(name, name.encode().hex().ljust(64, "0"), size) for name, size in files.items())
    inventory.add_snapshot(manifest.digest, manifest)
    return manifest


async def test_bytes_are_exclusive_or_shared(inventory: Inventory) -> None:
    """A blob of one snapshot is its own; one of several is shared by all, and counts once in the sums."""
    one, two = _add(inventory, a=10, b=5), _add(inventory, b=5, c=7)
    found = SnapshotSizes(inventory)
    await found.update()
    assert found.get(one.digest) == HeldBytes(10, 5)
    assert found.get(two.digest) == HeldBytes(7, 5)
    assert (found.shared, found.total, found.changes) == (5, 22, 1)
    await found.update()
    assert found.changes == 1
    inventory.drop_snapshot(one.digest)
    await _count(found)
    assert (found.get(one.digest), found.get(two.digest)) == (None, HeldBytes(12, 0))
    assert (found.shared, found.total) == (0, 12)


async def test_the_loop_goes_on_during_a_count(inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count of many blobs lets others work in between, and what changes then is counted the next time."""
    monkeypatch.setattr(sizes, "_BLOBS_A_STEP", 1)
    for number in range(20):
        _add(inventory, **{f"f{number}": number})
    found = SnapshotSizes(inventory)
    counting = asyncio.create_task(found.update())
    await asyncio.sleep(0)
    assert not counting.done()
    late = _add(inventory, late=100)
    await counting
    assert found.total == sum(range(20))
    await _count(found)
    assert found.get(late.digest) == HeldBytes(100, 0)


async def _count(found: SnapshotSizes) -> None:
    """Wait until a count is due, and count."""
    before = found.changes
    async with asyncio.timeout(100):
        while found.changes == before:
            await found.update()
            await asyncio.sleep(0)
