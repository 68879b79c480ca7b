"""Doubts are answered while the bell is held, and what a reader can cost who doubts for ever is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Transient
from cached.contract.layout import Layout
from cached.contract.snapshot.doubt import Doubt
from cached.node.integrity.doubts import ClaimPace, Doubts
from cached.node.integrity.recheck import RecheckResult
from cached.node.inventory import Inventory
from cached.node.threads import Blocking
from cached.node.tree_watch import Followed, TreeWatch
from cached.store.start import recovery
from cached.store.version import snapshots
from tests.support.filling import add_blob, manifest_of

DEADLINE_S = 100.0
CONTENTS = ({"a": b"a" * 100}, {"a": b"b" * 100})


class Node:
    """Two snapshots, and checks that say what the test wants."""

    def __init__(self, layout: Layout, pace: ClaimPace) -> None:
        recovery.prepare(layout)
        for files in CONTENTS:
            for data in files.values():
                add_blob(layout, data)
        self.layout = layout
        self.digests = [snapshots.publish(layout, manifest_of(files), snapshots.now()) for files in CONTENTS]
        self.blocking = Blocking(1)
        inventory = Inventory(layout, recovery.recover(layout))
        for digest, files in zip(self.digests, CONTENTS, strict=True):
            inventory.add_snapshot(digest, manifest_of(files))
        self.asked: list[Digest] = []
        self.looks = 0
        self.fails = False
        self.watch = TreeWatch(layout, asyncio.get_running_loop())
        self.doubts = Doubts(
            layout=layout,
            inventory=inventory,
            blocking=self.blocking,
            recheck=self,
            check_names=self.check_names,
            bell=self.watch,
            pace=pace,
        )

    def has_asked(self, number: int) -> bool:
        return self.digests[number] in self.asked

    async def recheck(self, digest: Digest) -> RecheckResult:
        self.asked.append(digest)
        if self.fails:
            raise Transient("disk", "the disk fails", "look at it")
        return RecheckResult("right", "", was_outdated=False, took_s=0.0)

    async def check_names(self) -> None:
        self.looks += 1

    def doubt(self, number: int) -> Doubt:
        return Doubt(self.layout.public, self.layout.public.snapshot(self.digests[number]))

    def touch(self, number: int) -> None:
        os.utime(self.layout.public.snapshot(self.digests[number]).path / "a", ns=(1, 1))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def _running(folder: Path, pace: ClaimPace, *, is_watched: bool = True) -> AsyncIterator[Node]:
    node = Node(Layout(folder / "root"), pace)
    if is_watched:
        node.watch.follow(Followed(frozenset(node.digests), frozenset(), frozenset()))
    task = asyncio.create_task(node.doubts.run())
    try:
        yield node
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        node.watch.close()
        await asyncio.to_thread(node.blocking.close)


@pytest.mark.parametrize("is_watched", [True, False])
async def test_a_doubt_is_answered_with_and_without_inotify(tmp_path: Path, is_watched: bool) -> None:
    """A gate that rings is heard, whether the kernel tells of it or the lock is tried; a second one too."""
    async with _running(tmp_path, ClaimPace(least_s=0.0, same=0.0, any=0.0), is_watched=is_watched) as node:
        assert node.watch.watches_bell is is_watched
        for number in (0, 1):
            with contextlib.closing(node.doubt(number)):
                await node.until(partial(node.has_asked, number))


async def test_a_claim_that_is_wrong_is_looked_at_once(tmp_path: Path) -> None:
    """A doubt held for ever of what is right is looked at once, and no other claim about that snapshot; one about
    another snapshot is."""
    async with _running(tmp_path, ClaimPace()) as node:
        with contextlib.closing(node.doubt(0)):
            await node.until(lambda: node.looks >= 3)
            assert node.asked == [node.digests[0]]
            with contextlib.closing(node.doubt(1)):
                await node.until(lambda: node.digests[1] in node.asked)
        assert node.asked == node.digests


async def test_wrong_claims_about_any_snapshot_bound_all_claims(tmp_path: Path) -> None:
    """A reader that doubts one snapshot after the other has not all of them hashed without a pause between."""

    async with _running(tmp_path, ClaimPace(any=1e12)) as node:

        async def slow(digest: Digest) -> RecheckResult:
            node.asked.append(digest)
            return RecheckResult("right", "", was_outdated=False, took_s=1.0)

        node.recheck = slow  # type: ignore[method-assign]  # this check takes a second by its own account
        with contextlib.closing(node.doubt(0)), contextlib.closing(node.doubt(1)):
            await node.until(lambda: node.looks >= 3)
        assert len(node.asked) == 1


async def test_what_anybody_can_see_is_always_looked_at(tmp_path: Path) -> None:
    """A record that does not fit is answered in spite of wrong claims before it."""
    async with _running(tmp_path, ClaimPace(least_s=1e9)) as node:
        with contextlib.closing(node.doubt(0)):
            await node.until(lambda: node.looks >= 2)
            assert len(node.asked) == 1
            node.touch(0)
            await node.until(lambda: len(node.asked) >= 2)


async def test_a_check_that_fails_is_not_tried_at_every_look(tmp_path: Path) -> None:
    """Where a check fails, as on a failing disk, the next one waits, though the doubt is plain to see."""
    async with _running(tmp_path, ClaimPace()) as node:
        node.fails = True
        node.touch(0)
        with contextlib.closing(node.doubt(0)):
            await node.until(lambda: node.looks >= 3)
        assert len(node.asked) == 1


async def test_nobody_rings_and_nothing_is_looked_at(tmp_path: Path) -> None:
    """Without the bell a doubt alone is not even looked for; the bell alone has names and records looked after."""
    async with _running(tmp_path, ClaimPace()) as node:
        await asyncio.sleep(0)
        assert node.looks == 0
        with contextlib.closing(Doubt(node.layout.public, None)):
            await node.until(lambda: node.looks >= 1)
        assert node.asked == []


@pytest.mark.parametrize("kind", ["missing", "a pipe", "a folder"])
def test_a_record_that_is_no_file_stops_no_doubt(tmp_path: Path, kind: str) -> None:
    """A record that is missing, a pipe or a folder neither stops nor blocks the gate that rings."""
    layout = Layout(tmp_path / "root")
    recovery.prepare(layout)
    add_blob(layout, CONTENTS[0]["a"])
    snapshot = layout.public.snapshot(snapshots.publish(layout, manifest_of(CONTENTS[0]), snapshots.now()))
    snapshot.verified.unlink()
    if kind == "a pipe":
        os.mkfifo(snapshot.verified)
    elif kind == "a folder":
        snapshot.verified.mkdir()
    Doubt(layout.public, snapshot).close()
