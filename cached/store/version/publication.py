"""Publish versions in groups: each step of the publication for all versions of a group before the next step.

Law: the order of the design, section 3: the snapshot, then its fetch record, then the name. What gets a name later is
written for all versions before any of it is synced; one sync of a folder makes the entries of all versions in it
durable, before the next step. An error concerns its version only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk import durable
from cached.store.version import fetch_records, kept_snapshots, repair, snapshots
from cached.store.version.fetch_records import FetchRecord


@dataclass(slots=True, eq=False)
class Publication:
    """The publication of a version whose blobs are all committed. `judge` is called before anything is written: it may
    complete `record`, and raises what forbids the publication. `journal_ids`: its ids in the digest journal, which are
    forgotten. `keeps`: the snapshot that the name leads to so far, and the uids of the pods that may go on reading it.
    `failure`: its error, if any; `has_snapshot`: whether the snapshot exists nevertheless. `was_there`: whether a
    snapshot of it was there before: blobs may have been linked from its files, or gone into quarantine."""

    ref: ModelRef
    manifest: Manifest
    record: FetchRecord
    judge: Callable[[Publication], None]
    journal_ids: Collection[str] = ()
    keeps: tuple[Digest, frozenset[str]] | None = None
    failure: Exception | None = None
    has_snapshot: bool = False
    was_there: bool = False


def publish_all(
    layout: Layout, journal: DigestJournal, notes: HashNotes, check: Callable[[], None], group: Sequence[Publication]
) -> None:
    """Publish a group, unless `check` raises. Raises nothing: each publication gets its own `failure`."""
    while group:
        firsts = {each.record.digest: each for each in reversed(group)}
        _publish_distinct(layout, journal, notes, check, [each for each in group if firsts[each.record.digest] is each])
        group = [each for each in group if firsts[each.record.digest] is not each]  # their snapshot is there now


def _publish_distinct(
    layout: Layout, journal: DigestJournal, notes: HashNotes, check: Callable[[], None], group: Sequence[Publication]
) -> None:
    """Publish versions of which no two have the same content."""
    verified_at = snapshots.now()
    drafts: dict[Publication, snapshots.Draft] = {}
    records: dict[Publication, Path] = {}

    def build(each: Publication) -> None:
        draft = _build_snapshot(layout, each, verified_at)
        if draft is not None:
            drafts[each] = draft
        records[each] = fetch_records.write_unsynced(layout, each.ref, each.record)

    def sync(each: Publication) -> None:
        if each in drafts:
            snapshots.sync(drafts[each])
        with durable.disk_errors(f"publishing {each.ref}"):
            durable.sync_file(records[each])

    def place(each: Publication) -> Path:
        if each in drafts:
            snapshots.place_unsynced(layout, drafts[each])
        return layout.public.snapshots

    _step(group, lambda _: check())
    _step(group, lambda each: each.judge(each))
    with snapshots.building:
        _step(group, build)
        _step(group, sync)
        _sync(_step(group, place))
    _step(group, lambda each: kept_snapshots.write(layout, *each.keeps) if each.keeps else None)
    # Before the name: a record with another digest than the name's is ignored.
    _sync(_step(group, lambda each: fetch_records.set_unsynced(layout, each.ref, records[each])))
    _sync(_step(group, lambda each: snapshots.set_name_unsynced(layout, each.ref, each.record.digest)))
    _step(group, lambda each: journal.forget(each.journal_ids))
    _step(group, lambda each: notes.forget(each.manifest.blob_sizes()))  # its record has what they have
    for each in group:
        if each.failure is not None:
            if each in drafts:
                snapshots.abandon(drafts[each])
            if each in records:
                with contextlib.suppress(OSError):  # a start sweeps temporary names
                    records[each].unlink(missing_ok=True)
            each.has_snapshot = snapshots.is_there(layout, each.record.digest)


def _build_snapshot(layout: Layout, publication: Publication, verified_at: str) -> snapshots.Draft | None:
    manifest, digest = publication.manifest, publication.record.digest
    if snapshots.is_there(layout, digest):
        with durable.disk_errors(f"publishing snapshot {digest}"):
            # A rebuild must not delete a file that has no blob.
            publication.was_there = True
            repair.relink(layout, digest, manifest)
    return snapshots.build(layout, manifest, verified_at)


def _step(
    group: Sequence[Publication], step: Callable[[Publication], Path | None]
) -> dict[Path | None, list[Publication]]:
    """Call a step for each publication without a failure; return those that succeeded, by the folder to sync."""
    folders: dict[Path | None, list[Publication]] = {}
    for each in group:
        if each.failure is not None:
            continue
        try:
            folders.setdefault(step(each), []).append(each)
        except Exception as error:  # noqa: BLE001 - raised to the caller that waits for this version
            each.failure = error
    return folders


def _sync(folders: dict[Path | None, list[Publication]]) -> None:
    for folder, publications in folders.items():
        try:
            if folder is not None:
                durable.fsync_dir(folder)
        except OSError as error:
            for each in publications:
                each.failure = durable.disk_error(error, f"publishing {each.ref}")
