"""The ledger follows what people do to the store, and a store that nothing touches is not read file by file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.core.space import DiskSpace, Ledger
from cached.node.recount import Marks, Recount, read_marks
from cached.store.disk.root import Root
from cached.store.start import recovery
from tests.support.filling import add_blob

DATA = [bytes([number]) * 1000 for number in range(50)]
SHA256S = [hashlib.sha256(data).hexdigest() for data in DATA]
TOTAL = sum(map(len, DATA))


class Store:
    """A store with blobs, as a start finds them, and its account."""

    def __init__(self, layout: Layout, marks: Marks | None) -> None:
        self.layout = layout
        self.ledger = Ledger(None, lambda: DiskSpace(1 << 40, 1 << 40))
        self.ledger.count_all(recovery.recover(layout).on_disk)
        self.root = Root(layout)
        self.recount = Recount(layout, self.root, self.ledger, marks)

    @property
    def used(self) -> int:
        return self.ledger.compute_use().used

    def cut(self, number: int) -> None:
        """Cut a blob in place, as nothing of ours ever does."""
        path = self.layout.blob(SHA256S[number])
        path.chmod(0o644)
        os.truncate(path, 400)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("filled") / "root")
    recovery.prepare(layout)
    for data in DATA:
        add_blob(layout, data)
    deadline = time.monotonic() + 100
    while read_marks(layout) is None:  # its folders were changed a moment ago
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return layout


@pytest.fixture
def store(filled: Layout) -> Iterator[Store]:
    store = Store(filled, read_marks(filled))
    with contextlib.closing(store.root):
        yield store


def test_a_blob_that_comes_or_goes_is_counted(store: Store) -> None:
    """The folder that a blob was deleted from, or put into, is another one, also a moment after the last change."""
    assert store.recount.correct() == 0
    for number in (0, 1):
        store.layout.blob(SHA256S[number]).unlink()
        assert store.recount.correct() == 1
        assert store.used == TOTAL - 1000
        store.layout.blob(SHA256S[number]).write_bytes(DATA[number])
        assert store.recount.correct() == 1
        assert store.used == TOTAL


def test_partial_blobs_and_the_quarantine_are_always_counted(store: Store) -> None:
    """What changes without a change of its folder is looked at each time."""
    partial = store.layout.ingest / "partial-of-others"
    partial.mkdir()
    (partial / "data").write_bytes(bytes(100_000))
    (store.layout.quarantine / SHA256S[0]).write_bytes(bytes(1000))
    assert store.recount.correct() == 2
    (partial / "data").write_bytes(bytes(500_000))
    assert store.recount.correct() == 1
    (partial / "data").unlink()
    partial.rmdir()
    (store.layout.quarantine / SHA256S[0]).unlink()
    assert store.recount.correct() == 2
    assert store.used == TOTAL


def test_a_blob_that_is_cut_is_counted_once_it_is_suspected(store: Store) -> None:
    """A blob that was cut in place is found when a write was noticed, and by a start that does not know its folders."""
    store.cut(5)
    store.recount.suspect()
    assert store.recount.correct() == 1
    assert store.used == TOTAL - 600
    store.layout.blob(SHA256S[5]).write_bytes(DATA[5])
    store.ledger.count_blob(SHA256S[5], 1000)
    store.cut(6)
    unknown = Recount(store.layout, store.root, store.ledger, None)
    assert unknown.correct() == 1
    store.layout.blob(SHA256S[6]).write_bytes(DATA[6])


def test_a_store_that_nobody_touched_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the folders are as they were no blob is looked at."""
    deadline = time.monotonic() + 100
    while (marks := read_marks(store.layout)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    recount = Recount(store.layout, store.root, store.ledger, marks)

    def measure(_layout: Layout) -> None:
        raise AssertionError("a blob was looked at")

    monkeypatch.setattr(recovery, "measure", measure)
    assert recount.correct() == 0


def test_a_changed_store_gives_no_marks(tmp_path: Path) -> None:
    """What was changed a moment ago may change again with the same times: nothing is to be concluded from them."""
    layout = Layout(tmp_path / "root")
    recovery.prepare(layout)
    add_blob(layout, b"data")
    assert read_marks(layout) is None
