"""A blob appears by one rename, once, whole and read-only; it goes only when nothing links it."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from cached.contract.errors import Transient
from cached.contract.layout import Layout
from cached.store.blob import blobs
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.ingest import Ingest, IngestKey
from cached.store.start import recovery
from tests.support.filling import add_blob, aligned, tree

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


def _finished(layout: Layout, id_: str, data: bytes = DATA) -> Ingest:
    made = Ingest(layout.ingest / id_, IngestKey(id_, "v1", len(data)))
    made.write(aligned(data), len(data), 0)
    made.finish(len(data))
    return made


def test_a_commit(layout: Layout) -> None:
    """A committed blob is at its name, with mode 0444, in a private folder, and its partial bytes are gone."""
    assert not blobs.has(layout, SHA256)
    assert blobs.size(layout, SHA256) is None
    made = _finished(layout, SHA256)
    assert blobs.commit(layout, made.folder / "data", SHA256)
    assert blobs.has(layout, SHA256)
    assert blobs.size(layout, SHA256) == len(DATA)
    path = layout.blob(SHA256)
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(made.folder) == []


def test_the_second_copy_goes(layout: Layout) -> None:
    """A blob that is there keeps its inode; the new copy is deleted, and is not new."""
    add_blob(layout, DATA)
    before = layout.blob(SHA256).stat().st_ino
    made = _finished(layout, "b" * 64)
    assert not blobs.commit(layout, made.folder / "data", SHA256)
    assert layout.blob(SHA256).stat().st_ino == before
    assert os.listdir(made.folder) == []


def test_of_many_at_once_one_is_new(layout: Layout) -> None:
    """Two downloads that find they have the same bytes commit one blob: exactly one of them is told that it is new."""
    count = 4
    with ThreadPoolExecutor(count) as pool:
        for turn in range(25):
            data = DATA + bytes([turn])
            sha256 = hashlib.sha256(data).hexdigest()
            made = [_finished(layout, f"{n:064x}", data) for n in range(count)]
            barrier = threading.Barrier(count)

            def commit(each: Ingest, barrier: threading.Barrier = barrier, sha256: str = sha256) -> bool:
                barrier.wait()
                return blobs.commit(layout, each.folder / "data", sha256)

            assert sorted(pool.map(commit, made)) == [False] * (count - 1) + [True]
            for each in made:
                assert os.listdir(each.folder) == []


def test_a_commit_the_disk_refuses(layout: Layout) -> None:
    """A commit that cannot be done is an error of ours that names the blob."""
    with pytest.raises(Transient, match=SHA256):
        blobs.commit(layout, layout.ingest / "nothing" / "data", SHA256)


def test_a_crash_before_the_rename_is_made_up_for(layout: Layout) -> None:
    """After a crash between the note and the rename the blob is committed by the note, and nothing is fetched again."""
    made = _finished(layout, "c" * 64)
    DigestJournal(layout.digests, {}).record({made.key.id: SHA256})
    found = recovery.recover(layout)
    assert layout.blob(SHA256).read_bytes() == DATA
    assert os.listdir(made.folder) == []
    assert found.digests == {made.key.id: SHA256}


def test_a_note_without_its_blob_is_nothing(layout: Layout) -> None:
    """A note whose blob was deleted since promises nothing."""
    made = _finished(layout, "c" * 64)
    DigestJournal(layout.digests, {}).record({made.key.id: SHA256})
    (made.folder / "data").unlink()
    assert recovery.recover(layout).digests == {}
    assert not layout.digests.exists()


def test_a_noted_file_that_was_opened_again_is_hashed_again(layout: Layout) -> None:
    """A whole file whose rename was refused is resumed without a byte fetched, and its note commits nothing now."""
    made = _finished(layout, "c" * 64)
    made_again = Ingest(made.folder, made.key)
    made_again.record([(0, 4096)])
    made_again.finish(len(DATA))
    with closing(Ingest(made.folder, made.key, is_whole=True)) as again:
        assert again.recorded() == [(0, len(DATA))]
        blobs.commit_noted(layout, made.key.id, SHA256)
        assert not blobs.has(layout, SHA256)


def test_an_unfinished_file_is_not_committed_by_a_note(layout: Layout) -> None:
    """Partial bytes with their own record, and no note, are never taken for a blob."""
    key = IngestKey("c" * 64, "v1", len(DATA))
    made = Ingest(layout.ingest / key.id, key)
    made.write(aligned(DATA[:4096]), 4096, 0)
    made.record([(0, 4096)])
    made.close()
    assert recovery.recover(layout).digests == {}
    assert tree(layout.blobs) == set()


def test_only_unlinked_blobs_are_removed(layout: Layout) -> None:
    """A blob that a snapshot links stays; one that none does goes, and says how many bytes that gives back."""
    add_blob(layout, DATA)
    link = layout.public.snapshots / "link"
    os.link(layout.blob(SHA256), link)
    assert blobs.remove_unlinked(layout, SHA256) is None
    link.unlink()
    assert blobs.remove_unlinked(layout, SHA256) == len(DATA)
    assert blobs.remove_unlinked(layout, SHA256) is None
    assert not blobs.has(layout, SHA256)


def test_quarantine_takes_it_out_of_use(layout: Layout) -> None:
    """A quarantined blob is not committed any more, and its bytes are kept to look at."""
    add_blob(layout, DATA)
    blobs.quarantine(layout, SHA256)
    assert not blobs.has(layout, SHA256)
    assert (layout.quarantine / SHA256).read_bytes() == DATA
    blobs.quarantine(layout, SHA256)
    add_blob(layout, DATA)
    blobs.quarantine(layout, SHA256)
