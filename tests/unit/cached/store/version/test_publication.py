"""Each version of a group that is published together has its own result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk import durable
from cached.store.version import fetch_records, snapshots
from cached.store.version.fetch_records import FetchRecord
from cached.store.version.publication import Publication, publish_all
from tests.support.filling import add_blob, manifest_of, tree

REFS = [ModelRef("acme/tiny", f"v{number}") for number in range(3)]


def _publication(ref: ModelRef, files: Mapping[str, bytes]) -> Publication:
    manifest = manifest_of(files)
    record = FetchRecord(manifest.digest, "asked", "somewhere", None, "", {})
    return Publication(ref, manifest, record, lambda _: None)


def _publish(layout: Layout, group: list[Publication]) -> list[str | None]:
    """Publish a group; return the codes of the errors."""
    publish_all(layout, DigestJournal(layout.digests, {}), HashNotes(layout.hashed, {}), lambda: None, group)
    return [each.failure.code if isinstance(each.failure, HoldfastError) else None for each in group]


def test_an_error_concerns_one_version(layout: Layout) -> None:
    """A version with a missing blob fails alone and leaves nothing; the others are published, same content included."""
    add_blob(layout, b"a")
    group = [_publication(REFS[0], {"f": b"a"}), _publication(REFS[1], {"f": b"b"}), _publication(REFS[2], {"f": b"a"})]
    assert _publish(layout, group) == [None, "blob_gone", None]
    named = [snapshots.read_name(layout, ref) for ref in REFS]
    assert named == [group[0].record.digest, None, group[2].record.digest]
    assert [fetch_records.read(layout, ref) for ref in REFS] == [group[0].record, None, group[2].record]
    assert os.listdir(layout.public.snapshots) == [group[0].record.digest.hex]


def test_a_forbidden_version_leaves_nothing(layout: Layout) -> None:
    """What `judge` raises forbids its version alone, before anything of it is written; what it found is kept."""

    def refuse(publication: Publication) -> None:
        publication.record = replace(publication.record, source="looked at")
        raise Permanent("not_loadable", "no engine loads it", "publish another")

    for data in (b"a", b"b"):
        add_blob(layout, data)
    group = [_publication(REFS[0], {"f": b"a"}), _publication(REFS[1], {"f": b"b"})]
    group[0].judge = refuse
    assert _publish(layout, group) == ["not_loadable", None]
    assert (group[0].record.source, group[0].has_snapshot) == ("looked at", False)
    assert os.listdir(layout.public.snapshots) == [group[1].record.digest.hex]
    assert [fetch_records.read(layout, ref) for ref in REFS[:2]] == [None, group[1].record]


def test_a_group_is_written_before_it_is_synced(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is synced before all files of the group are written; one that cannot be synced fails its version alone,
    and nothing of that stays."""
    for data in (b"a", b"b"):
        add_blob(layout, data)
    steps: list[tuple[str, Path]] = []
    write, sync = durable.write_unsynced, durable.sync_file
    group = [_publication(REFS[0], {"f": b"a"}), _publication(REFS[1], {"f": b"b"})]

    def fail_first(path: Path) -> None:
        steps.append(("sync", path))
        if group[0].record.digest.hex[:16] in str(path):
            raise OSError(5, "Input/output error")
        sync(path)

    def count(path: Path, data: bytes, mode: int) -> None:
        steps.append(("write", path))
        write(path, data, mode)

    monkeypatch.setattr(durable, "write_unsynced", count)
    monkeypatch.setattr(durable, "sync_file", fail_first)
    assert _publish(layout, group) == ["disk", None]
    assert [step for step, _ in steps][:8] == ["write"] * 8
    assert {path for step, path in steps[8:]} < {path for step, path in steps[:8]}
    assert os.listdir(layout.public.snapshots) == [group[1].record.digest.hex]
    assert sorted(os.listdir(layout.fetched / "acme--tiny")) == ["v1.json"]


def test_a_folder_is_synced_once_before_the_next_step(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of several new names is synced once; no name appears before its snapshot and record are durable."""
    for data in (b"a", b"b", b"c"):
        add_blob(layout, data)
    _publish(layout, [_publication(ModelRef("acme/tiny", "old"), {"f": b"c"})])  # the folders are there
    synced: list[tuple[Path, int]] = []
    shared = {layout.public.snapshots, layout.fetched / "acme--tiny", layout.public.models / "acme--tiny"}

    def sync(path: Path) -> None:
        if path in shared:
            synced.append((path, sum(snapshots.read_name(layout, ref) is not None for ref in REFS)))

    monkeypatch.setattr(durable, "fsync_dir", sync)
    assert _publish(layout, [_publication(REFS[0], {"f": b"a"}), _publication(REFS[1], {"f": b"b"})]) == [None, None]
    order = [layout.public.snapshots, layout.fetched / "acme--tiny", layout.public.models / "acme--tiny"]
    assert synced == [(order[0], 0), (order[1], 0), (order[2], 2)]


def test_a_failed_sync_fails_every_version_in_the_folder(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that may not be durable are not published; their snapshots are known."""
    add_blob(layout, b"a")
    really = durable.fsync_dir

    def sync(path: Path) -> None:
        if path == layout.public.models / "acme--tiny":
            raise OSError(5, "Input/output error")
        really(path)

    monkeypatch.setattr(durable, "fsync_dir", sync)
    group = [_publication(ref, {"f": b"a"}) for ref in REFS]
    assert _publish(layout, group) == ["disk"] * 3
    assert all(each.has_snapshot for each in group)


def test_a_group_on_another_root_is_refused(layout: Layout) -> None:
    """If the root was replaced, every version gets that error, and nothing is written."""

    def check() -> None:
        raise Transient("root_gone", "gone", "")

    add_blob(layout, b"a")
    group = [_publication(ref, {"f": b"a"}) for ref in REFS]
    publish_all(layout, DigestJournal(layout.digests, {}), HashNotes(layout.hashed, {}), check, group)
    assert [each.failure is not None for each in group] == [True] * 3
    assert tree(layout.public.snapshots) == set()
