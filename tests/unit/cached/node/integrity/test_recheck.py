"""A snapshot is hashed at once, once for all who ask, and its status says so until the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedRecord
from cached.contract.status import State
from cached.node.integrity.recheck import Recheck
from cached.node.inventory import Inventory
from cached.node.status_files import StatusFiles
from cached.store.start import recovery
from cached.store.version import fetch_records, snapshots
from tests.support.bitrot import flip
from tests.support.filling import add_blob, manifest_of

REF = ModelRef("tiny", "v1")
FILES = {"a": b"a" * 100_000, "b/c": b"c" * 10, "d": b"d"}


class Node:
    """A held version, and what is asked of the reconciler."""

    def __init__(self, layout: Layout) -> None:
        recovery.prepare(layout)
        for data in FILES.values():
            add_blob(layout, data)
        manifest = manifest_of(FILES)
        self.layout = layout
        self.digest = snapshots.publish(layout, manifest, snapshots.now())
        snapshots.set_name(layout, REF, self.digest)
        self.inventory = Inventory(layout, recovery.recover(layout))
        self.inventory.fetched.setdefault(REF, fetch_records.unknown(self.digest, ""))
        self.status_files = StatusFiles(layout.public, "node", lambda: None)
        self.show_settled(REF)
        self.fetched: set[ModelRef] = set()
        self.repairs: list[tuple[str, object]] = []
        self.bad = 0
        self.outcomes: list[str] = []
        self.recheck = Recheck(
            layout=layout,
            inventory=self.inventory,
            status_files=self.status_files,
            versions=self,
            count_bad=self._count_bad,
            count_outcome=self.outcomes.append,
        )

    def _count_bad(self) -> None:
        self.bad += 1

    async def quarantine_blobs(self, sha256s: Collection[str]) -> None:
        self.repairs.append(("quarantine", frozenset(sha256s)))
        self.inventory.remove(REF)
        self.inventory.drop_snapshot(self.digest)

    async def restore_snapshot(self, digest: Digest) -> None:
        self.repairs.append(("restore", digest))
        snapshots.publish(self.layout, manifest_of(FILES), snapshots.now())

    def is_fetched(self, ref: ModelRef) -> bool:
        return ref in self.fetched

    def show_settled(self, ref: ModelRef) -> None:
        if ref in self.inventory.models:
            self.status_files.set_ready(ref, self.digest, self.inventory.size(ref), pinned=True, source="s3://b/p")
        else:
            self.status_files.drop(ref)

    def state(self) -> State | None:
        status = self.status_files.get(REF)
        return None if status is None else status.state

    def file(self, path: str) -> Path:
        return self.layout.public.snapshot(self.digest).path / path


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node whose checks run."""
    async with _running(tmp_path) as node:
        yield node


@contextlib.asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[Node]:
    node = Node(Layout(folder / "root"))
    running = asyncio.create_task(node.recheck.run())
    yield node
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    node.status_files.close()


async def test_who_asks_at_the_same_time_shares_one_hash(node: Node) -> None:
    """Ten askers of one snapshot get one result, and the record is written once more."""
    record = node.file(".holdfast/verified.json")
    before = record.stat().st_ino
    results = await asyncio.gather(*(node.recheck.recheck(node.digest) for _ in range(10)))
    assert len({id(result) for result in results}) == 1
    assert results[0].outcome == "right" and not results[0].was_outdated
    assert node.outcomes == ["right"]
    assert record.stat().st_ino != before
    assert node.repairs == [] and not node.recheck.is_busy()


async def test_the_status_says_verifying_meanwhile(node: Node) -> None:
    """While the files are hashed the status is `verifying`, with the held digest, source and pin; then `ready`."""
    asked = asyncio.create_task(node.recheck.recheck(node.digest))
    seen = []
    while not asked.done():
        await asyncio.sleep(0)
        seen.append(node.status_files.get(REF))
    checked = [status for status in seen if status is not None and status.is_checked_again]
    assert checked and checked[0].source == "s3://b/p" and checked[0].pinned
    assert checked[0].bytes_total == node.inventory.size(REF)
    assert node.state() is State.READY


async def test_a_fetch_keeps_its_status(node: Node) -> None:
    """A version that is being fetched anew keeps the status of that fetch."""
    node.fetched.add(REF)
    node.status_files.reset(REF, State.RESOLVING, "", None)
    asked = asyncio.create_task(node.recheck.recheck(node.digest))
    while not asked.done():
        await asyncio.sleep(0)
        assert node.state() in (State.RESOLVING, State.READY)  # READY: shown at the end by this test's own stand-in


async def test_all_bad_files_are_condemned_at_once(node: Node) -> None:
    """Two wrong files are one quarantine of both: a fetch in between would take the second one for right."""
    for path in ("a", "b/c"):
        flip(node.file(path), 5)
    result = await node.recheck.recheck(node.digest)
    assert result.outcome == "withdrawn" and "a: expected sha256" in result.problem
    assert node.outcomes == ["withdrawn"]
    wanted = {Digest.of(FILES[path]).hex for path in ("a", "b/c")}
    assert node.repairs == [("quarantine", wanted)] and node.bad == 2
    assert node.state() is None


async def test_what_is_missing_is_restored_and_then_hashed(node: Node) -> None:
    """A missing file is restored without a hash before it, and the whole is hashed afterwards."""
    node.file("d").unlink()
    result = await node.recheck.recheck(node.digest)
    assert (result.outcome, result.was_outdated) == ("restored", False)
    assert node.repairs == [("restore", node.digest)] and node.bad == 0
    assert node.file("d").read_bytes() == b"d"


async def test_a_snapshot_that_is_not_here_is_refused(node: Node) -> None:
    """An unknown snapshot is `not_here`, and the next one is checked all the same."""
    with pytest.raises(Permanent) as caught:
        await node.recheck.recheck(Digest("0" * 64))
    assert caught.value.code == "not_here"
    assert (await node.recheck.recheck(node.digest)).outcome == "right"


async def test_an_asker_who_leaves_stops_nothing(node: Node) -> None:
    """A cancelled asker leaves the check to the others."""
    first = asyncio.create_task(node.recheck.recheck(node.digest))
    second = asyncio.create_task(node.recheck.recheck(node.digest))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).outcome == "right"


async def test_what_does_not_fit_the_record_is_hashed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the files that do not fit the record are right the record fits again, before the others are hashed: a gate
    that waits because of a small file opens at once. What is wrong in the others is found all the same."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})  # one thread, and so one order
    async with _running(tmp_path) as node:
        os.utime(node.file("d"), ns=(1, 1))
        flip(node.file("a"), 5)
        result = await node.recheck.recheck(node.digest)
    assert result.outcome == "withdrawn" and "a: expected sha256" in result.problem
    record = VerifiedRecord.parse(node.file(".holdfast/verified.json").read_bytes())
    assert record.files["d"].mtime_ns == 1 and record.files.keys() == FILES.keys()


async def test_a_file_that_is_touched_during_the_check_is_hashed_again(node: Node) -> None:
    """The record fits the files as they are when it is written: a doubt that is younger than a file's hash is answered
    too."""
    asked = asyncio.create_task(node.recheck.recheck(node.digest))
    while not asked.done():
        await asyncio.sleep(0)
        os.utime(node.file("d"), ns=(1, 1))
    assert asked.result().outcome == "right"
    assert VerifiedRecord.parse(node.file(".holdfast/verified.json").read_bytes()).files["d"].mtime_ns == 1
