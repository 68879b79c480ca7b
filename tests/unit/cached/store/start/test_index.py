"""The start index: after any change of the tree a start finds what it finds without one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import Layout, SnapshotLayout
from cached.contract.loadable.findings import Finding
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedRecord
from cached.contract.status import NO_VERDICT, ModelStatus, State, Verdict, encode
from cached.store.blob import blobs
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.ingest import Ingest, IngestKey
from cached.store.start import index, recovery, survey
from cached.store.version import fetch_records, kept_snapshots, snapshots
from cached.store.version.fetch_records import FetchRecord
from tests.support.filling import add_blob, aligned, manifest_of, publish, tree

ONE, TWO, SAME = ModelRef("acme/one", "v1"), ModelRef("two", "v1"), ModelRef("same", "v2")
FILES = {"a": b"a" * 5000, "folder/b": b"b"}
OTHERS = {"a": b"a" * 5000, "c": b"of two alone"}
BAD = b"went bad"
ONLY_TWO = hashlib.sha256(OTHERS["c"]).hexdigest()
SHARED = hashlib.sha256(FILES["a"]).hexdigest()
_VERDICT = Verdict(findings=(Finding("no_tokenizer", "a", "it has none", "add one", fatal=False),))
Change = Callable[[Layout], object]


def _write_record(layout: Layout, ref: ModelRef, record: FetchRecord) -> None:
    fetch_records.set_unsynced(layout, ref, fetch_records.write_unsynced(layout, ref, record))


def _fill(layout: Layout) -> None:
    """Three names of two snapshots that share a blob, two records, a blob that nothing links, one in quarantine."""
    recovery.prepare(layout)
    one, two = publish(layout, ONE, FILES), publish(layout, TWO, OTHERS)
    snapshots.set_name(layout, SAME, one)
    record = FetchRecord(one, "r" * 64, "s3://a/b", "main", "2026-11-20T18:00:00Z", {"0" * 64: SHARED}, _VERDICT)
    _write_record(layout, ONE, record)
    _write_record(layout, TWO, FetchRecord(one, None, "of other content", None, "", {}))
    assert two != one
    add_blob(layout, b"an orphan")
    blobs.quarantine(layout, add_blob(layout, BAD))


def _is_believed(layout: Layout) -> bool:
    try:
        return index.load(layout) is not None
    except index.IndexNotBelieved:
        return False


def _write_index(layout: Layout) -> bool:
    return survey.write_index(layout, {}, time.monotonic() + 60)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Layout, Layout]:
    """Two roots with the same content, of which the first has an index."""
    monkeypatch.setattr(index, "MARGIN_NS", 20_000_000)
    indexed, plain = Layout(tmp_path / "indexed"), Layout(tmp_path / "plain")
    for layout in (indexed, plain):
        _fill(layout)
    assert _write_index(indexed)
    return indexed, plain


def _snapshot(layout: Layout, files: dict[str, bytes]) -> SnapshotLayout:
    return layout.public.snapshot(manifest_of(files).digest)


def _edit(path: Path, data: bytes) -> None:
    """Change a file in place, and set its times back."""
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(before.st_mode & 0o777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _delete_and_set_times_back(path: Path) -> None:
    before = path.parent.stat()
    path.unlink()
    os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))


def _finish_without_a_name(layout: Layout) -> None:
    """What a crash leaves between the journal's entry of a blob and its rename."""
    data, id_ = b"finished", "f" * 64
    ingest = Ingest(layout.ingest / id_, IngestKey(id_, "v1", len(data)))
    ingest.write(aligned(data), len(data), 0)
    ingest.finish(len(data))
    DigestJournal(layout.digests, {}).record({id_: hashlib.sha256(data).hexdigest()})


def _begin_a_blob(layout: Layout) -> None:
    ingest = Ingest(layout.ingest / ("e" * 64), IngestKey("e" * 64, "v1", 8192))
    ingest.write(aligned(b"x" * 4096), 4096, 0)
    ingest.record([(0, 4096)])
    ingest.close()


def _delete_shared(layout: Layout) -> None:
    for path in (layout.blob(SHARED), *(_snapshot(layout, files).path / "a" for files in (FILES, OTHERS))):
        path.unlink()


CHANGES: dict[str, Change] = {
    "a snapshot deleted": lambda layout: shutil.rmtree(_snapshot(layout, OTHERS).path),
    "a snapshot's records deleted": lambda layout: shutil.rmtree(_snapshot(layout, OTHERS).manifest.parent),
    "a manifest deleted": lambda layout: _snapshot(layout, OTHERS).manifest.unlink(),
    "a manifest edited": lambda layout: _edit(_snapshot(layout, OTHERS).manifest, manifest_of(FILES).canonical()),
    "a manifest cut": lambda layout: _edit(_snapshot(layout, FILES).manifest, b""),
    "a foreign snapshot": lambda layout: (layout.public.snapshots / ("0" * 64)).mkdir(),
    "a blob deleted": lambda layout: layout.blob(ONLY_TWO).unlink(),
    "a blob deleted, its folder's times set back": lambda layout: _delete_and_set_times_back(layout.blob(ONLY_TWO)),
    "a shared blob and its files deleted": _delete_shared,
    "a folder of blobs moved away": lambda layout: layout.blob(SHARED).parent.rename(layout.root / "elsewhere"),
    "a blob more": lambda layout: add_blob(layout, b"of tomorrow"),
    "a blob in quarantine": lambda layout: blobs.quarantine(layout, ONLY_TWO),
    "a blob in quarantine and in its place": lambda layout: os.link(
        layout.blob(ONLY_TWO), layout.quarantine / ONLY_TWO
    ),
    "the quarantine emptied": lambda layout: shutil.rmtree(layout.quarantine),
    "a name deleted": lambda layout: layout.public.model_link(TWO).unlink(),
    "a name led elsewhere": lambda layout: snapshots.set_name(layout, TWO, manifest_of(FILES).digest),
    "a name that leads nowhere": lambda layout: snapshots.set_name(layout, TWO, Digest("0" * 64)),
    "a name more": lambda layout: snapshots.set_name(layout, ModelRef("new", "v1"), manifest_of(FILES).digest),
    "a model's folder deleted": lambda layout: shutil.rmtree(layout.public.model_link(SAME).parent),
    "a record edited": lambda layout: _edit(layout.fetch_record(ONE), b"{}"),
    "a record deleted": lambda layout: layout.fetch_record(ONE).unlink(),
    "a record of nothing": lambda layout: _write_record(
        layout, ModelRef("none", "v1"), FetchRecord(manifest_of(FILES).digest, None, "", None, "", {})
    ),
    "a temporary name left": lambda layout: (layout.public.models / "two" / ".tmp-left").symlink_to("nowhere"),
    "a version published": lambda layout: publish(layout, ModelRef("new", "v2"), {"new": b"new"}),
}
OTHER_FILES: dict[str, Change] = {
    "nothing": lambda layout: None,
    "a partial blob": _begin_a_blob,
    "a finished blob without its name": _finish_without_a_name,
    "a digest noted": lambda layout: DigestJournal(layout.digests, {}).record({"1" * 64: SHARED, "2" * 64: "3" * 64}),
    "a snapshot kept for its pods": lambda layout: kept_snapshots.write(
        layout, manifest_of(FILES).digest, frozenset({"uid"})
    ),
    "trash": lambda layout: (layout.trash / "left").mkdir(),
    "a temporary record left": lambda layout: (_snapshot(layout, FILES).manifest.parent / ".tmp-left").touch(),
    "a verified record renewed": lambda layout: snapshots.write_verified(_snapshot(layout, FILES), VerifiedRecord({})),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_by_hand_is_found_at_the_start(pair: tuple[Layout, Layout], name: str) -> None:
    """However the tree was changed while no daemon ran, a start finds and mends what a full recovery does."""
    indexed, plain = pair
    for layout in pair:
        CHANGES[name](layout)
    assert not _is_believed(indexed)
    assert recovery.recover(indexed) == recovery.recover(plain)
    indexed.start_index.unlink()
    assert tree(indexed.root) == tree(plain.root)


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_a_start_always_reads_is_no_doubt(pair: tuple[Layout, Layout], name: str) -> None:
    """What is under way changes while versions rest: it is read at each start, and swept as by a full recovery."""
    indexed, plain = pair
    for layout in pair:
        OTHER_FILES[name](layout)
    assert _is_believed(indexed)
    assert recovery.recover(indexed) == recovery.recover(plain)
    indexed.start_index.unlink()
    assert tree(indexed.root) == tree(plain.root)


def _spoil_checksum(layout: Layout) -> None:
    data = bytearray(layout.start_index.read_bytes())
    data[random.Random(1).randrange(len(data) // 2, len(data))] ^= 1
    layout.start_index.write_bytes(data)


def _cut(layout: Layout) -> None:
    os.truncate(layout.start_index, layout.start_index.stat().st_size // 2)


def _link_elsewhere(layout: Layout) -> None:
    layout.start_index.rename(layout.private / "other")
    layout.start_index.symlink_to("other")


def _make_folder(layout: Layout) -> None:
    layout.start_index.unlink()
    layout.start_index.mkdir()


def _make_fifo(layout: Layout) -> None:
    layout.start_index.unlink()
    os.mkfifo(layout.start_index, 0o600)


FOREIGN: dict[str, Change] = {
    "cut": _cut,
    "empty": lambda layout: os.truncate(layout.start_index, 0),
    "changed": _spoil_checksum,
    "longer": lambda layout: layout.start_index.write_bytes(layout.start_index.read_bytes() + b"\0"),
    "of another format": lambda layout: layout.start_index.write_bytes(
        layout.start_index.read_bytes().replace(b"index 1\n", b"index 2\n", 1)
    ),
    "of another mode": lambda layout: layout.start_index.chmod(0o644),
    "a link to one": lambda layout: os.link(layout.start_index, layout.private / "other"),
    "a symlink to one": _link_elsewhere,
    "a pipe": _make_fifo,
    "a folder": _make_folder,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_index_that_is_not_ours_is_not_believed(
    pair: tuple[Layout, Layout], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A cut, changed or foreign index costs one line in the log and a full recovery, never a start."""
    indexed, plain = pair
    FOREIGN[name](indexed)
    caplog.set_level("INFO")
    assert recovery.recover(indexed) == recovery.recover(plain)
    assert [record.message for record in caplog.records if "not used" in record.message]


def _forge(layout: Layout, change: Callable[[dict[str, object]], object]) -> None:
    """Change the index's JSON, and give it a right checksum."""
    head, _, binary = layout.start_index.read_bytes().split(b"\n", 2)[2].partition(b"\n")
    document = json.loads(head)
    change(document)
    body = json.dumps(document).encode() + b"\n" + binary
    layout.start_index.write_bytes(index.FORMAT + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@pytest.mark.parametrize("value", [None, -1, "x", [], {}, [[]], [None], {"a": "b"}, 1 << 70, [[1, 2, 3, 4]], True])
def test_a_forged_index_fails_no_start(pair: tuple[Layout, Layout], value: object) -> None:
    """Whatever stands in a field of an index with a right checksum, the start finds what a full recovery does. (Not
    where it says in the right form that there are no names: who can write here can say anything.)"""
    indexed, plain = pair
    whole, expected = indexed.start_index.read_bytes(), recovery.recover(plain)
    for field in json.loads(whole.split(b"\n", 2)[2].partition(b"\n")[0]):
        for change in (lambda head: head.update({field: value}), lambda head: head.pop(field)):  # noqa: B023
            indexed.start_index.write_bytes(whole)
            _forge(indexed, change)
            found = recovery.recover(indexed)
            assert found == expected or (field == "names" and not found.models), field


def test_another_boot_is_a_doubt(pair: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a reboot the tree is read, since a check of the file system may have changed it."""
    indexed, plain = pair
    (tmp_path / "boot").write_text("00000000-0000-4000-8000-000000000000\n")
    monkeypatch.setattr(index, "_BOOT", tmp_path / "boot")
    assert not _is_believed(indexed)
    assert recovery.recover(indexed) == recovery.recover(plain)
    monkeypatch.setattr(index, "_BOOT", tmp_path / "none")
    assert not _is_believed(indexed)


def test_a_clock_set_back_is_a_doubt(pair: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are yet to come prove nothing."""
    indexed, _ = pair
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    assert not _is_believed(indexed)


def test_a_copied_root_is_read(pair: tuple[Layout, Layout], tmp_path: Path) -> None:
    """A root that was copied or restored with its index, and all times, has other folders."""
    indexed, plain = pair
    copy = Layout(tmp_path / "copy")
    shutil.copytree(indexed.root, copy.root, symlinks=True)
    assert copy.start_index.stat().st_mtime_ns == indexed.start_index.stat().st_mtime_ns
    assert not _is_believed(copy)
    assert recovery.recover(copy) == recovery.recover(plain)


def test_a_change_in_the_same_moment_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is not written of folders that changed a moment ago: another change would give them the same time."""
    monkeypatch.setattr(index, "MARGIN_NS", 300_000_000)
    layout = Layout(tmp_path / "root")
    _fill(layout)
    _write_index(layout)
    newest = max(folder.stat().st_ctime_ns for folder in (layout.public.snapshots, layout.quarantine))
    head = json.loads(layout.start_index.read_bytes().split(b"\n", 2)[2].partition(b"\n")[0])
    assert head["begun_ns"] > newest + index.MARGIN_NS


def test_an_index_that_is_right_is_not_written_again(pair: tuple[Layout, Layout]) -> None:
    """Where nothing changed the file stays as it is; after a change it is another."""
    indexed, plain = pair
    before = indexed.start_index.stat()
    assert not _write_index(indexed)
    assert indexed.start_index.stat().st_ino == before.st_ino
    for layout in pair:
        publish(layout, ModelRef("new", "v2"), {"new": b"new"})
    assert _write_index(indexed)
    assert _is_believed(indexed)
    assert recovery.recover(indexed) == recovery.recover(plain)


@pytest.mark.parametrize(
    "name",
    [
        "a manifest edited",
        "a manifest deleted",
        "a blob deleted",
        "a blob in quarantine",
        "a blob in quarantine and in its place",
        "a name that leads nowhere",
        "a record of nothing",
        "a temporary name left",
    ],
)
def test_nothing_is_written_of_a_tree_that_recovery_would_mend(tmp_path: Path, name: str) -> None:
    """Where recovery would find something to do there is no index, and none is left half written."""
    layout = Layout(tmp_path / "root")
    _fill(layout)
    CHANGES[name](layout)
    before = tree(layout.root)
    with pytest.raises((survey.NotAtRest, OSError)):
        _write_index(layout)
    assert tree(layout.root) == before


def test_a_change_while_it_is_written_is_seen(pair: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that changes between the two looks at it gets no index."""
    indexed, _ = pair
    publish(indexed, ModelRef("new", "v2"), {"new": b"new"})
    list_synced = recovery.list_synced

    def delete_and_list(layout: Layout) -> list[Path]:
        layout.blob(ONLY_TWO).unlink()
        return list_synced(layout)

    monkeypatch.setattr(recovery, "list_synced", delete_and_list)
    with pytest.raises(survey.NotAtRest):
        _write_index(indexed)
    assert not _is_believed(indexed)


def test_a_deadline_is_kept(tmp_path: Path) -> None:
    """Where the time is over nothing is written."""
    layout = Layout(tmp_path / "root")
    _fill(layout)
    with pytest.raises(survey.NotAtRest, match="too long"):
        survey.write_index(layout, {}, time.monotonic() - 1)
    assert not layout.start_index.exists()


def test_a_status_is_read_where_its_file_is_another(pair: tuple[Layout, Layout]) -> None:
    """A start knows a status without reading it while its file is the same; one that was written since, edited in
    place or is gone is what its file says."""
    indexed, _ = pair
    indexed.start_index.unlink()
    written = {}
    for ref, files in ((ONE, FILES), (SAME, FILES), (TWO, OTHERS)):
        written[ref] = _ready(ref, files, _VERDICT if ref == ONE else NO_VERDICT)
        indexed.public.model_status(ref).parent.mkdir(exist_ok=True)
        indexed.public.model_status(ref).write_bytes(encode(written[ref].document()))
        indexed.public.model_status(ref).chmod(0o644)
    assert _write_index(indexed)
    found = recovery.read_statuses(indexed, recovery.recover(indexed))
    assert found == {ref: recovery.FoundStatus(status, True) for ref, status in written.items()}
    assert found == recovery.read_statuses(indexed, recovery.recover_by_tree(indexed))

    _edit(indexed.public.model_status(ONE), encode(replace(written[ONE], source="elsewhere").document()))
    indexed.public.model_status(TWO).write_bytes(b'{"half')
    indexed.public.model_status(SAME).chmod(0o666)
    assert _is_believed(indexed)
    found = recovery.read_statuses(indexed, recovery.recover(indexed))
    assert found == recovery.read_statuses(indexed, recovery.recover_by_tree(indexed))
    assert found[ONE].status.source == "elsewhere"
    assert not found[SAME].is_exact


def _ready(ref: ModelRef, files: dict[str, bytes], verdict: Verdict) -> ModelStatus:
    digest, size, then = str(manifest_of(files).digest), sum(map(len, files.values())), "2026-11-20T18:00:00Z"
    told = (ref.name, ref.version, State.READY, digest, True, "s3://a/b", size, size, None, None, then, then, None)
    return ModelStatus(*told, held=digest, verdict=verdict)


def test_sizes_of_an_index_are_told_apart_from_those_of_the_disk(pair: tuple[Layout, Layout]) -> None:
    """A blob that was cut in place shows in no folder: who counts blobs is told that no file was looked at."""
    indexed, plain = pair
    os.truncate(indexed.blob(SHARED), 10)
    found = recovery.recover(indexed)
    assert (found.are_blobs_read, found.on_disk.blobs[SHARED]) == (False, 5000)
    assert recovery.recover(plain).are_blobs_read
