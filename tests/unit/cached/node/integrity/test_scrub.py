"""The scrub goes on beside what else happens to snapshots."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.node.integrity import scrub
from cached.node.integrity.scrub import Scrub, ScrubPace, ScrubParts
from cached.node.inventory import Inventory
from cached.store.disk.verity import Sealing
from cached.store.start import recovery
from cached.store.version import fetch_records, snapshots
from tests.support.filling import add_blob, manifest_of

DEADLINE_S = 60


class NoRepairs:
    """Repairs that no snapshot of these tests needs."""

    async def quarantine_blobs(self, sha256s: Collection[str]) -> None:
        raise AssertionError(f"expected no bad blob, found {sha256s}")

    async def restore_snapshot(self, digest: Digest) -> None:
        raise AssertionError(f"expected nothing to restore, found {digest}")


def publish(layout: Layout, ref: ModelRef, data: bytes) -> Digest:
    """Publish a version of one file."""
    add_blob(layout, data)
    digest = snapshots.publish(layout, manifest_of({"a": data}), snapshots.now())
    snapshots.set_name(layout, ref, digest)
    return digest


async def test_an_eviction_under_the_scrub_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot that an eviction has deleted from the disk, and not yet from the inventory, is left without a word;
    the scrub goes on with the next one."""
    monkeypatch.setattr(scrub, "_PAUSE_S", 0.01)
    layout = Layout(tmp_path)
    recovery.prepare(layout)
    held = {ref: publish(layout, ref, ref.name.encode()) for ref in (ModelRef("gone", "v1"), ModelRef("here", "v1"))}
    inventory = Inventory(layout, recovery.recover(layout))
    for ref, digest in held.items():
        inventory.fetched.setdefault(ref, fetch_records.unknown(digest, ""))
    snapshots.delete(layout, held[ModelRef("gone", "v1")])  # without a record it is due first
    hashed, loop = asyncio.Event(), asyncio.get_running_loop()

    def count_hashed(_size: int) -> None:
        loop.call_soon_threadsafe(hashed.set)

    parts = ScrubParts(
        layout=layout,
        inventory=inventory,
        sealing=Sealing.NONE,
        is_fetching=lambda: False,
        is_checking=lambda: False,
        repairs=NoRepairs(),
        count_hashed=count_hashed,
        count_bad=lambda: None,
    )
    running = asyncio.create_task(Scrub(parts, ScrubPace(1 << 30, 1.0, "node")).run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await hashed.wait()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert not caplog.records
