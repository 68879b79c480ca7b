"""Versions that wait for the publisher are published together, and a cancelled caller interrupts no other."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.core.space import DiskSpace, Ledger
from cached.node import publisher
from cached.node.inventory import Inventory
from cached.node.publisher import Publisher
from cached.node.status_files import StatusFiles
from cached.node.threads import Blocking
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk.root import Root
from cached.store.start import recovery
from cached.store.version import snapshots
from cached.store.version.fetch_records import FetchRecord
from cached.store.version.publication import Publication, publish_all
from tests.support.filling import add_blob, manifest_of, publish
from tests.system.eviction.node import Cluster

DEADLINE_S = 100.0


class Publishing:
    """A publisher whose groups wait on their thread until each may go on."""

    def __init__(self, layout: Layout) -> None:
        recovery.prepare(layout)
        recovered = recovery.recover(layout)
        self.layout = layout
        self.groups: list[list[str]] = []
        self.started = threading.Semaphore(0)
        self.may_go_on = threading.Semaphore(0)
        self.inventory = Inventory(layout, recovered)
        self.status_files = StatusFiles(layout.public, "node", lambda: None)
        self.blocking = Blocking(2)
        self.ledger = Ledger(None, lambda: DiskSpace(1 << 30, 1 << 30, 1 << 20, 1 << 20))
        journal = DigestJournal(layout.digests, {})
        self._root = Root(layout)
        self.publisher = Publisher(
            layout=layout,
            root=self._root,
            inventory=self.inventory,
            status_files=self.status_files,
            ledger=self.ledger,
            blocking=self.blocking,
            cluster=Cluster(),
            journal=journal,
            notes=HashNotes(layout.hashed, {}),
            ignoring_own=contextlib.nullcontext,
        )

    def begin(self, version: str) -> asyncio.Task[Digest]:
        """Have a version of one file published."""
        add_blob(self.layout, version.encode())
        manifest = manifest_of({"f": version.encode()})
        record = FetchRecord(manifest.digest, "request", "source", None, "", {})
        publication = Publication(ModelRef("acme/tiny", version), manifest, record, lambda _: None)
        return asyncio.create_task(self.publisher.publish(publication, tuple))

    def published(self) -> list[str]:
        """The versions in the inventory, all of which have their name on the disk."""
        refs = sorted(self.inventory.models)
        assert [snapshots.read_name(self.layout, ref) for ref in refs] == [self.inventory.models[ref] for ref in refs]
        return [ref.version for ref in refs]

    async def group(self) -> None:
        """Wait until a group is on its thread."""
        assert await asyncio.to_thread(self.started.acquire, timeout=DEADLINE_S)

    def publish_all(
        self,
        layout: Layout,
        journal: DigestJournal,
        notes: HashNotes,
        check: Callable[[], None],
        group: Sequence[Publication],
    ) -> None:
        self.groups.append([each.ref.version for each in group])
        self.started.release()
        assert self.may_go_on.acquire(timeout=DEADLINE_S)
        publish_all(layout, journal, notes, check, group)


@pytest.fixture
async def publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Publishing]:
    publishing = Publishing(Layout(tmp_path / "root"))
    monkeypatch.setattr(publisher, "publish_all", publishing.publish_all)
    yield publishing
    publishing.blocking.close()
    publishing.status_files.close()


async def test_waiting_versions_are_published_together(publishing: Publishing) -> None:
    """Versions that wait for a turn share the next one, and each has its own result."""
    tasks = [publishing.begin("a")]
    await publishing.group()
    tasks += [publishing.begin("b"), publishing.begin("c")]
    publishing.may_go_on.release(2)
    digests = await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE_S)
    assert publishing.groups == [["a"], ["b", "c"]]
    assert digests == [manifest_of({"f": version}).digest for version in (b"a", b"b", b"c")]
    assert publishing.published() == ["a", "b", "c"]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_first_interrupts_no_other(publishing: Publishing, times: int) -> None:
    """However often the first of a started group is cancelled, the group is completed, and no step begins before."""
    first, other = publishing.begin("a"), publishing.begin("b")
    await publishing.group()
    for _ in range(times):
        first.cancel()
        await asyncio.sleep(0)
    later = publishing.begin("c")
    await asyncio.sleep(0.01)
    assert (publishing.groups, other.done(), publishing.published()) == ([["a", "b"]], False, [])
    publishing.may_go_on.release(2)
    await asyncio.wait_for(asyncio.gather(other, later), DEADLINE_S)
    await asyncio.wait([first])
    assert first.cancelled() == (times == 2)  # it waits once: a second time it goes, and leaves the group to its end
    assert publishing.published() == ["a", "b", "c"]


async def test_a_cancelled_waiter_is_not_published(publishing: Publishing) -> None:
    """A version that is cancelled before its turn leaves nothing, and the ones behind it have theirs."""
    tasks = [publishing.begin("a")]
    await publishing.group()
    tasks += [publishing.begin("b"), publishing.begin("c")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    publishing.may_go_on.release(2)
    await asyncio.wait_for(asyncio.gather(tasks[0], tasks[2]), DEADLINE_S)
    assert tasks[1].cancelled()
    assert publishing.groups == [["a"], ["c"]]
    assert publishing.published() == ["a", "c"]


async def test_blobs_whose_quarantine_failed_keep_no_other_in_use(publishing: Publishing) -> None:
    """Where the disk refuses to move one of several corrupt blobs, the versions of those that it moved are withdrawn
    and told, and the failure is raised."""
    tasks = [publishing.begin("a"), publishing.begin("b")]
    publishing.may_go_on.release(1)
    await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE_S)
    moved, refused = (hashlib.sha256(version).hexdigest() for version in (b"a", b"b"))
    (publishing.layout.quarantine / refused).mkdir()
    gone: list[ModelRef] = []
    with pytest.raises(HoldfastError, match=refused):
        await publishing.publisher.quarantine((moved, refused), gone)
    assert gone == [ModelRef("acme/tiny", "a")]
    assert publishing.published() == ["b"]
    assert not publishing.layout.blob(moved).exists()


async def test_an_unexpected_error_reaches_every_caller(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a group breaks off, each caller gets the error, and the next group is published."""

    def fail(*_: object) -> None:
        raise ValueError("unexpected")

    monkeypatch.setattr(publisher, "publish_all", fail)
    tasks = [publishing.begin("a"), publishing.begin("b")]
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), DEADLINE_S)
    assert [type(each) for each in found] == [ValueError, ValueError]
    monkeypatch.setattr(publisher, "publish_all", publish_all)
    await asyncio.wait_for(publishing.begin("c"), DEADLINE_S)
    assert publishing.published() == ["c"]


async def test_a_corrupt_blob_that_a_publication_finds_is_counted(publishing: Publishing) -> None:
    """Where a snapshot that is here has a right file and its blob is another, wrong one, the blob goes into quarantine,
    and the ledger has both."""
    ref, layout, ledger = ModelRef("acme/tiny", "a"), publishing.layout, publishing.ledger
    publish(layout, ref, {"f": b"a"})
    task = publishing.begin("a")
    (blob,) = layout.blobs.glob("*/*")
    blob.unlink()
    blob.write_bytes(b"other")
    ledger.count_blob(blob.name, 5)
    publishing.may_go_on.release(1)
    await asyncio.wait_for(task, DEADLINE_S)
    assert blob.read_bytes() == b"a"
    assert (layout.quarantine / blob.name).read_bytes() == b"other"
    use = ledger.compute_use()
    assert (use.used, use.dying) == (1, 5)
