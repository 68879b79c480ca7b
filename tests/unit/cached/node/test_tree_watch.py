"""What is deleted, moved or changed by hand under the root is noted; what we do ourselves is no use of a snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from cached.node import inotify
from cached.node.tree_watch import Changes, Followed, TreeWatch
from cached.store.start import recovery
from cached.store.version import snapshots
from tests.support.filling import add_blob, manifest_of

REF = ModelRef("acme/tiny", "v1")
DEADLINE_S = 100.0


class Tree:
    """A root with one version, and a watch on it."""

    def __init__(self, layout: Layout) -> None:
        recovery.prepare(layout)
        add_blob(layout, b"content")
        self.layout = layout
        self.digest = snapshots.publish(layout, manifest_of({"a.bin": b"content"}), snapshots.now())
        snapshots.set_name(layout, REF, self.digest)
        layout.public.model_status(REF).parent.mkdir()
        layout.public.model_status(REF).write_bytes(b"{}")
        self.snapshot = layout.public.snapshot(self.digest)
        self.watch = TreeWatch(layout, asyncio.get_running_loop())
        self.wanted = Followed(frozenset({self.digest}), frozenset({REF.path_segment}), frozenset({REF.path_segment}))
        self.first = self.watch.follow(self.wanted)

    async def noted(self) -> Changes:
        """What changed, once something did."""
        async with asyncio.timeout(DEADLINE_S):
            await self.watch.changed.wait()
        return self.watch.take()


@contextlib.asynccontextmanager
async def _tree(folder: Path) -> AsyncIterator[Tree]:
    tree = Tree(Layout(folder / "root"))
    with contextlib.closing(tree.watch):
        yield tree


def _move_away(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")


BY_HAND: dict[str, tuple[Callable[[Tree], object], Callable[[Changes, Digest], bool]]] = {
    "a name": (lambda t: t.layout.public.model_link(REF).unlink(), lambda c, _: REF.path_segment in c.segments),
    "a name's folder": (
        lambda t: shutil.rmtree(t.layout.public.model_link(REF).parent),
        lambda c, _: REF.path_segment in c.segments,
    ),
    "a name that leads elsewhere": (
        lambda t: os.replace(_symlink(t), t.layout.public.model_link(REF)),
        lambda c, _: REF.path_segment in c.segments,
    ),
    "a snapshot": (lambda t: shutil.rmtree(t.snapshot.path), lambda c, digest: digest in c.names),
    "a moved snapshot": (lambda t: _move_away(t.snapshot.path), lambda c, digest: digest in c.names | c.files),
    "a record": (lambda t: t.snapshot.verified.unlink(), lambda c, digest: digest in c.names),
    "the records": (lambda t: shutil.rmtree(t.snapshot.manifest.parent), lambda c, digest: digest in c.names),
    "a file": (lambda t: (t.snapshot.path / "a.bin").unlink(), lambda c, digest: digest in c.files),
    "a status file": (lambda t: t.layout.public.model_status(REF).unlink(), lambda c, _: c.statuses),
    "a moved folder of statuses": (
        lambda t: _move_away(t.layout.public.model_status(REF).parent),
        lambda c, _: c.statuses,
    ),
    "all names": (lambda t: shutil.rmtree(t.layout.public.models), lambda c, _: c.everything),
    "a folder of ours": (lambda t: t.layout.trash.rmdir(), lambda c, _: c.everything),
    "a mode": (lambda t: t.layout.ingest.chmod(0o755), lambda c, _: c.everything),
    "a cut blob": (lambda t: _cut(next(t.layout.blobs.glob("*/*"))), lambda c, _: c.sizes),
    "a cut file": (lambda t: _cut(t.snapshot.path / "a.bin"), lambda c, _: c.sizes),
}


def _symlink(tree: Tree) -> Path:
    made = tree.layout.root / "made"
    made.symlink_to("elsewhere")
    return made


def _cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 1)


@pytest.mark.parametrize("what", BY_HAND)
def test_what_is_changed_by_hand_is_noted(tmp_path: Path, what: str) -> None:
    """Whatever part of the tree is deleted, moved or changed is noted under the version that it belongs to."""

    async def body() -> None:
        change, is_noted = BY_HAND[what]
        async with _tree(tmp_path) as tree:
            assert tree.first == Changes(names={tree.digest}, segments={REF.path_segment}, statuses=True)
            assert tree.watch.watches_tree
            assert not tree.watch.take()
            change(tree)
            while not is_noted(await tree.noted(), tree.digest):
                pass

    asyncio.run(body())


def test_what_is_put_back_is_watched_again(tmp_path: Path) -> None:
    """A snapshot that was deleted and made anew is watched as the first one was, and so is its name's folder."""

    async def body() -> None:
        async with _tree(tmp_path) as tree:
            for _ in range(2):
                shutil.rmtree(tree.snapshot.path)
                shutil.rmtree(tree.layout.public.model_link(REF).parent)
                while tree.digest not in (await tree.noted()).names:
                    pass
                tree.watch.follow(tree.wanted)
                assert not tree.watch.watches_tree
                snapshots.publish(tree.layout, manifest_of({"a.bin": b"content"}), snapshots.now())
                snapshots.set_name(tree.layout, REF, tree.digest)
                await tree.noted()
                assert tree.watch.follow(tree.wanted) == Changes(names={tree.digest}, segments={REF.path_segment})
                assert tree.watch.watches_tree
                assert not tree.watch.list_unwatched([tree.digest])
                tree.watch.take()

    asyncio.run(body())


def test_a_lease_of_others_is_a_use_and_ours_is_none(tmp_path: Path) -> None:
    """Who takes or ends a lease uses the snapshot; a look of our own at the lease, or at the bell, does not."""

    async def body() -> None:
        async with _tree(tmp_path) as tree:
            with tree.watch.ignoring_own():
                assert not lease.is_held(tree.snapshot.lease)
                os.close(os.open(tree.layout.public.snapshots, os.O_RDONLY))
            assert not tree.watch.take()
            assert not tree.watch.rung.is_set()
            held = lease.take_shared(tree.snapshot.lease)
            assert held is not None
            assert (await tree.noted()).used == {tree.digest}
            held.close()
            with tree.watch.ignoring_own():  # begins after it, and the loop has not read it
                pass
            assert (await tree.noted()).used == {tree.digest}
            os.close(os.open(tree.layout.public.snapshots, os.O_RDONLY))
            async with asyncio.timeout(DEADLINE_S):
                await tree.watch.rung.wait()

    asyncio.run(body())


def test_lost_events_are_a_look_at_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel dropped events, everything may have changed."""

    async def body() -> None:
        async with _tree(tmp_path) as tree:
            lost = [inotify.InotifyEvent(-1, inotify.IN_Q_OVERFLOW, "")]
            monkeypatch.setattr(inotify.Inotify, "read", lambda _self: lost)
            with tree.watch.ignoring_own():
                pass
            assert tree.watch.take().everything

    asyncio.run(body())


@pytest.mark.parametrize("most", [0, 6, 9, 10])
def test_a_limit_of_watches_leaves_others_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    """With few watches the folders that most concerns come first, what has none is told apart, and the log says so."""
    monkeypatch.setattr(inotify, "count_affordable_watches", lambda: most)

    async def body() -> None:
        async with _tree(tmp_path) as tree:
            assert tree.watch.watches_tree is (most >= 8)
            assert bool(tree.watch.list_unwatched([tree.digest])) is (most < 9)
            assert tree.watch.watches_bell is (most >= 4)
            tree.watch.follow(tree.wanted)
            assert caplog.text.count("not all folders have an inotify watch") == 1

    asyncio.run(body())
