"""Single steps of a node's life that the random ones found to go wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.fetch.download import Download
from cached.store.blob import ingest
from cached.store.disk.durable import disk_error
from cached.store.version import snapshots
from tests.system.eviction.node import ORIGIN, UNIT, Blob, Limits, Node, fake_time, manifest_of, refused, unreachable

REF = ModelRef("a", "v1")
CONTENT = (Blob("own", 3),)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node with room for ten units, whose catalog has one version."""
    made = Node(tmp_path / "root", 10 * UNIT, lambda _job: None)
    made.origin.contents[f"{ORIGIN}a/v1"] = CONTENT
    with fake_time(made.clock):
        made.boot(Limits(None, 1.0, 1.0))
        made.use_catalog(f"models: {{a: {{versions: {{v1: {{source: '{ORIGIN}a/v1'}}}}}}}}")
        made.turn()
        yield made
        made.crash()


def _work_off(node: Node) -> None:
    node.turn()
    while node.jobs.waiting or node.bytes.downloads:
        if node.jobs.waiting:
            node.do_job(0)
        else:
            node.bytes.finish(node.bytes.downloads[0], CONTENT[0])
            node.turn()


def _refuse(*_: object) -> None:
    raise disk_error(OSError(errno.EIO, os.strerror(errno.EIO)), "a disk that fails")


def test_called_off_before_it_began(node: Node) -> None:
    """A fetch that is called off before its task ran a single step is over all the same: the next one begins."""
    node.reconciler.wake()  # so that the plan comes before the fetch's first step
    node.reconciler.pull(REF, None, refresh=False)
    pinned = f"models: {{a: {{versions: {{v1: {{source: '{ORIGIN}a/v1', digest: '{manifest_of(CONTENT).digest}'}}}}}}}}"
    node.use_catalog(pinned)
    node.turn()
    _work_off(node)
    status = node.status_files.get(REF)
    assert status is not None
    assert (status.state, status.pinned) == (State.READY, True)


def test_a_blob_that_another_fetch_commits_since_is_not_fetched_again(node: Node) -> None:
    """A version that shares a blob may look for it before another version's download commits it, and begin its own
    downloads after that one has ended: the blob is not asked for a second time."""
    other = ModelRef("a", "v2")
    node.origin.contents[f"{ORIGIN}a/v2"] = (*CONTENT, Blob("more", 1))
    node.use_catalog(f"models: {{a: {{versions: {{v1: {{source: '{ORIGIN}a/v1'}}, v2: {{source: '{ORIGIN}a/v2'}}}}}}}}")
    node.reconciler.pull(REF, None, refresh=False)
    node.turn()
    while not node.bytes.downloads:
        node.do_job(0)
    first = node.bytes.downloads[0]
    node.loop.run_until_complete(node.downloads.starting.acquire())  # as another fetch does that starts thousands
    node.reconciler.pull(other, None, refresh=False)
    node.turn()
    while node.jobs.waiting:
        node.do_job(0)
    node.bytes.finish(first, CONTENT[0])
    node.turn()
    node.downloads.starting.release()
    node.turn()
    begun = []
    while node.jobs.waiting or node.bytes.downloads:
        while node.jobs.waiting:
            node.do_job(0)
        for download in list(node.bytes.downloads):
            begun.append(download.spec.name)
            node.bytes.finish(download, next(b for b in (*CONTENT, Blob("more", 1)) if b.name == download.spec.name))
        node.turn()
    assert begun == ["more"]
    assert {REF, other} <= node.inventory.models.keys()


def test_what_a_resumed_fetch_lacks_is_freed(node: Node) -> None:
    """A fetch that goes on from partial blobs has the space freed that the rest needs: what is on the disk of it counts
    once."""
    rest, other = Blob("rest", 4), Blob("other", 4)
    node.origin.contents[f"{ORIGIN}a/v1"] = (*CONTENT, rest)
    node.origin.contents[f"{ORIGIN}a/v2"] = (other,)
    node.use_catalog(f"models: {{a: {{versions: {{v1: {{source: '{ORIGIN}a/v1'}}, v2: {{source: '{ORIGIN}a/v2'}}}}}}}}")

    def download_of(blob: Blob) -> Download:
        while not node.bytes.downloads:
            node.do_job(0)
        return next(download for download in node.bytes.downloads if download.spec.name == blob.name)

    node.reconciler.pull(REF, None, refresh=False)
    node.turn()
    node.bytes.give(download_of(CONTENT[0]), CONTENT[0].size)
    node.bytes.fail(download_of(rest), unreachable())
    node.turn()
    node.reconciler.pull(ModelRef("a", "v2"), None, refresh=False)
    node.turn()
    node.bytes.finish(download_of(other), other)
    _work_off(node)
    assert ModelRef("a", "v2") in node.inventory.models
    node.reconciler.pull(REF, None, refresh=False)
    node.turn()
    for blob in (*CONTENT, rest):
        node.bytes.finish(download_of(blob), blob)
        node.turn()
    _work_off(node)
    assert list(node.inventory.models) == [REF]


def test_a_failure_is_tried_again_ever_more_rarely(node: Node) -> None:
    """What failed for good is tried again after five minutes, then after twice as long each time, up to an hour."""
    node.use_catalog(f"models: {{a: {{versions: {{v1: {{source: '{ORIGIN}a/v1'}}}}, prefetch: {{versions: [v1]}}}}}}")
    node.turn()
    waited = []
    for _ in range(6):
        while not node.bytes.downloads:
            node.do_job(0)
        node.bytes.fail(node.bytes.downloads[0], refused())
        node.turn()
        before = node.clock.now
        while not node.jobs.waiting:
            node.clock.now += 60
            node.reconciler.wake()
            node.turn()
        waited.append(round(node.clock.now - before))
    assert waited == [300, 600, 1200, 2400, 3600, 3600]


def test_a_sweep_that_the_disk_stops_counts_what_it_took(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk refuses one deletion of a sweep that is told, and what went before is free all the same."""
    blob, partial = node.layout.blob(CONTENT[0].sha256), node.layout.ingest / "f"
    node.crash()
    blob.parent.mkdir()
    blob.write_bytes(bytes(2 * UNIT))
    partial.mkdir()
    (partial / "data").write_bytes(bytes(UNIT))
    node.boot(Limits(None, 1.0, 1.0))
    assert (node.ledger.compute_use().used, node.ledger.compute_use().dying) == (2 * UNIT, UNIT)

    monkeypatch.setattr(ingest, "forget", _refuse)
    with pytest.raises(HoldfastError, match="a disk that fails"):
        node.begin(node.reconciler.sweep())
        _work_off(node)
    assert not blob.exists()
    assert (node.ledger.compute_use().used, node.ledger.compute_use().dying) == (0, UNIT)


def test_a_snapshot_that_never_got_its_name_goes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk refuses the name of a version that nothing wants any more by then, its snapshot is swept."""
    with monkeypatch.context() as full:
        full.setattr(snapshots, "set_name_unsynced", _refuse)
        node.reconciler.pull(REF, None, refresh=False)
        _work_off(node)
        status = node.status_files.get(REF)
        assert status is not None and status.error is not None and status.error.code == "disk"
        node.use_catalog("models: {}")
        node.turn()
    node.begin(node.reconciler.sweep())
    _work_off(node)
    assert list(node.layout.public.snapshots.iterdir()) == []
    assert (node.committed(), node.ledger.compute_use().used) == ({}, 0)


def test_a_blob_that_is_gone_is_counted_no_more(node: Node) -> None:
    """Where the scrub finds that a person deleted a blob, the account has it once: as what was fetched instead."""
    node.reconciler.pull(REF, None, refresh=False)
    _work_off(node)
    node.layout.blob(CONTENT[0].sha256).unlink()
    node.begin(node.reconciler.quarantine_blobs((CONTENT[0].sha256,)))
    _work_off(node)
    assert node.inventory.models.keys() == {REF}
    assert node.ledger.compute_use().used == sum(node.committed().values()) == CONTENT[0].size


def test_a_blob_that_has_grown_is_taken_out_of_use(node: Node) -> None:
    """Where the scrub finds that a person wrote to a blob, the account loses what it had, and gains what is there."""
    node.reconciler.pull(REF, None, refresh=False)
    _work_off(node)
    os.truncate(node.layout.blob(CONTENT[0].sha256), 5 * UNIT)
    node.begin(node.reconciler.quarantine_blobs((CONTENT[0].sha256,)))
    _work_off(node)
    use = node.ledger.compute_use()
    assert (use.used, use.dying) == (CONTENT[0].size, 5 * UNIT)
