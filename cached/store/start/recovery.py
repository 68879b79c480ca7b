"""Rebuild the daemon's state from the tree: disk is the truth.

Law: downloads nothing, and hashes only snapshot files that have lost their blob. Sweeps only the leftovers of a crash:
temporary names, trash, names without a snapshot, earlier names of files that were renamed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from cached.contract.digest import Digest, is_hex
from cached.contract.errors import HoldfastError, InvalidReference, Permanent
from cached.contract.layout import LAYOUT_VERSION, TEMPORARY_PREFIX, Layout
from cached.contract.manifest import Manifest
from cached.contract.program import limits
from cached.contract.program.plain_files import read_plain
from cached.contract.reference import ModelRef, name_from_path_segment
from cached.contract.snapshot.verified import VerifiedFile
from cached.contract.status import ModelStatus, encode
from cached.core.blob_table import BlobTable
from cached.core.space import OnDisk
from cached.store.blob import blobs as committed
from cached.store.blob import digest_journal, hash_notes, ingest
from cached.store.disk import durable
from cached.store.disk.root import Root, check_file_system
from cached.store.start import index
from cached.store.version import deletion, fetch_records, kept_snapshots, modes, repair, snapshots
from cached.store.version.fetch_records import FetchRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """The contents of the tree. `damaged`: snapshots whose manifest does not hash to their name; `lost`: the names that
    pointed at one, deleted here and still wanted. `fetched`: the fetch records without `files`; of unknown origin if
    the record is of other content, absent if a name has no record (an older release published it). `digests`: by ingest
    id, unpromised sha256 from the digest journal. `hashed`: the notes of blobs that no snapshot links. `kept`: the uids
    of the pods that snapshots are kept for. `links`: the number of snapshots that have each blob, where there are any.
    `are_blobs_read`: the sizes of blobs are from the disk, and not from an index, which does not know of a blob that
    was cut in place. `statuses`: what an index has of the versions' status files."""

    models: dict[ModelRef, Digest]
    manifests: dict[Digest, Manifest]
    on_disk: OnDisk
    fetched: dict[ModelRef, FetchRecord]
    damaged: tuple[Digest, ...]
    lost: tuple[ModelRef, ...]
    digests: dict[str, str]
    hashed: dict[str, VerifiedFile]
    kept: dict[Digest, frozenset[str]]
    links: BlobTable
    are_blobs_read: bool = field(compare=False)
    statuses: Mapping[ModelRef, index.Status] = field(default_factory=dict, compare=False)


def prepare(layout: Layout) -> None:
    """Create the missing parts of the tree; raises `Permanent` (`bad_root`) for an unfit root or file system, and where
    another daemon works here."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        _check_version(layout)
        make_tree(layout)
        with contextlib.closing(Root(layout)):  # a daemon that recovers here sweeps the files of our trials
            check_file_system(layout)
            if not layout.version.exists():
                durable.replace(layout.version, LAYOUT_VERSION.encode(), 0o644)
    except OSError as error:
        remedy = "give the daemon a writable folder on a local file system"
        if error.errno == errno.EROFS:
            remedy = durable.READ_ONLY_REMEDY
        elif error.errno == errno.ENOSPC:
            remedy = "free space on the node, then start the daemon again"
        raise durable.refuse_root(f"{error.filename or layout.root}: {error.strerror or error}", remedy) from error


def make_tree(layout: Layout) -> None:
    """Create the missing folders and set the mode of each; open the models' folders to all users."""
    public = layout.public
    private = (
        layout.private,
        layout.ingest,
        layout.blobs,
        layout.quarantine,
        layout.trash,
        layout.fetched,
        layout.kept,
    )
    wanted = dict.fromkeys(private, durable.PRIVATE_DIR_MODE)
    wanted |= dict.fromkeys((public.path, public.snapshots, public.models, public.status), durable.PUBLIC_DIR_MODE)
    for folder, mode in wanted.items():
        durable.make_dir(folder, mode)
        if stat.S_IMODE(os.stat(folder).st_mode) != mode:
            folder.chmod(mode)
    modes.open_folders((public.models, public.status))


def recover(layout: Layout) -> Recovered:
    """Sweep the leftovers of a crash and return the rest, by the start index where it is believed; raises
    `HoldfastError` or OSError."""
    try:
        believed = index.load(layout)
        if believed is not None:
            found = _recover_unchanged(layout, believed)
            _log.info("start index: believed, of %d versions; the tree is not read", len(found.models))
            return found
    except index.IndexNotBelieved as doubt:
        _log.info("start index: not used, the whole tree is read: %s", doubt)
    return recover_by_tree(layout)


def _recover_unchanged(layout: Layout, believed: index.Believed) -> Recovered:
    """Read what an index does not have: the small folders of what is being fetched. Raises `IndexNotBelieved` where
    more than those may change."""
    contents = believed.contents
    digests = _read_digests(layout)
    if any((layout.ingest / id_ / "data").exists() for id_ in digests):
        raise index.IndexNotBelieved("a finished blob waits for its name")
    _sweep((*_list_flat(layout), *_list_folders(layout.public.status, layout.ingest), *believed.to_sweep), layout.trash)
    partial = [folder for folder in _list_folders(layout.ingest) if folder.is_dir()]
    for folder in (layout.root, layout.private, layout.ingest, *partial, layout.kept, layout.trash):
        durable.fsync_dir(folder)
    _forget_linked(layout)
    partials, quarantined = _measure_partials(layout), _measure_quarantined(layout)
    return Recovered(
        models=dict(contents.models),
        manifests=dict(contents.manifests),
        on_disk=OnDisk(contents.blobs, partials, quarantined),
        fetched={ref: noted.record for ref, noted in contents.fetched.items()},
        damaged=(),
        lost=(),
        digests=_keep_digests(layout, digests, contents.blobs),
        hashed=_keep_notes(layout, contents.blobs, contents.links),
        kept=kept_snapshots.read_all(layout),
        links=contents.links,
        are_blobs_read=False,
        statuses=contents.statuses,
    )


def recover_by_tree(layout: Layout) -> Recovered:
    """Do the same without an index."""
    public = layout.public
    nested = _list_folders(public.models, public.status, layout.ingest, layout.fetched)
    records = (folder / ".holdfast" for folder in _list_folders(public.snapshots))
    _sweep((*_list_flat(layout), public.snapshots, *nested, *records), layout.trash)
    _remove_empty_folders(public.models, layout.fetched)
    for folder in list_synced(layout):
        durable.fsync_dir(folder)
    digests = _read_digests(layout)
    for name in find_second_names(layout):
        durable.unlink(layout.blob(name))
    _forget_linked(layout)
    for id_, sha256 in digests.items():
        committed.commit_noted(layout, id_, sha256)
    manifests, damaged = read_snapshots(layout, {})
    on_disk, links = measure(layout), count_links(manifests)
    blobs, incomplete = on_disk.blobs, find_incomplete(manifests, links, on_disk.blobs)
    for digest in incomplete:
        repair.relink(layout, digest, manifests[digest])
        sizes = manifests[digest].blob_sizes()
        blobs.update((sha256, size) for sha256, size in sizes.items() if layout.blob(sha256).exists())
        if not all(sha256 in blobs for sha256 in sizes):  # deleted by hand
            del manifests[digest]
            damaged.append(digest)
    if incomplete:
        links = count_links(manifests)
    models, lost = _read_models(layout, manifests, damaged)
    return Recovered(
        models,
        manifests,
        on_disk,
        _read_fetched(layout, models),
        tuple(damaged),
        tuple(lost),
        _keep_digests(layout, digests, blobs),
        _keep_notes(layout, blobs, links),
        kept_snapshots.read_all(layout),
        blobs.renumber(links.align(blobs)),
        are_blobs_read=True,
    )


def _keep_digests(layout: Layout, digests: Mapping[str, str], blobs: Mapping[str, int]) -> dict[str, str]:
    """Return the entries of the digest journal whose blobs are here; delete a journal without any."""
    known = {id_: sha256 for id_, sha256 in digests.items() if sha256 in blobs}
    if not known:
        durable.unlink(layout.digests)
    return known


def _keep_notes(layout: Layout, blobs: Mapping[str, int], links: Mapping[str, int]) -> dict[str, VerifiedFile]:
    """Return the notes of the blobs that are here and in no snapshot; delete a file without any."""
    known = {sha256: seen for sha256, seen in hash_notes.read(layout.hashed).items() if sha256 in blobs}
    unlinked = {sha256: seen for sha256, seen in known.items() if not links.get(sha256)}
    if not unlinked:
        layout.hashed.unlink(missing_ok=True)
    return unlinked


def count_links(manifests: Mapping[Digest, Manifest]) -> BlobTable:
    """Return the number of snapshots that have each blob."""
    return BlobTable.count(manifest.packed.hashes for manifest in manifests.values())


def find_incomplete(manifests: Mapping[Digest, Manifest], links: BlobTable, blobs: BlobTable) -> list[Digest]:
    """Return the snapshots of which a blob is not among `blobs`. `links`: the blobs of all snapshots."""
    missing = frozenset(links.find_missing(blobs))
    if not missing:
        return []
    return [digest for digest, manifest in manifests.items() if not manifest.blob_sizes().keys().isdisjoint(missing)]


def _read_digests(layout: Layout) -> dict[str, str]:
    """Return the digest journal, and the digests that older releases wrote into the records of partial blobs."""
    noted = {name: ingest.committed_as(layout, name) for name in _names(layout.ingest)}
    return {id_: sha256 for id_, sha256 in noted.items() if sha256 is not None} | digest_journal.read(layout.digests)


def measure(layout: Layout) -> OnDisk:
    """Return the bytes on the disk, without those of files deleted during the call."""
    return OnDisk(measure_blobs(layout), _measure_partials(layout), _measure_quarantined(layout))


def measure_blobs(layout: Layout) -> BlobTable:
    """Return the size in bytes of each committed blob."""
    blobs = BlobTable()
    for _, folder in groupby(committed.list_blobs(layout), key=lambda blob: blob.name[:2]):
        sizes: dict[str, int] = {}
        for blob in folder:
            with contextlib.suppress(FileNotFoundError):
                sizes[blob.name] = blob.stat(follow_symlinks=False).st_size
        blobs.put_all(sizes)
    return blobs


def _measure_partials(layout: Layout) -> dict[str, int]:
    return {name: ingest.allocated_bytes(layout.ingest / name) for name in _names(layout.ingest)}


def _measure_quarantined(layout: Layout) -> dict[str, int]:
    return {name: deletion.quarantined_bytes(layout, name) for name in _names(layout.quarantine)}


@dataclass(frozen=True, slots=True)
class FoundStatus:
    """The last daemon's status of a version. `is_exact`: its file is the one that this daemon would write of it."""

    status: ModelStatus
    is_exact: bool


def read_statuses(layout: Layout, recovered: Recovered) -> dict[ModelRef, FoundStatus]:
    """Return the last daemon's status of every version; skip invalid files."""
    statuses: dict[ModelRef, FoundStatus] = {}
    folder = os.fspath(layout.public.status)
    for ref in _list_refs(layout.public.status, ".json"):
        path = f"{folder}/{ref.path_segment}/{ref.version}.json"
        noted = recovered.statuses.get(ref)
        try:
            if noted is not None and index.stamp_file(path) == noted.stamp:
                statuses[ref] = FoundStatus(noted.make_status(ref, recovered.manifests[noted.digest]), True)
            else:
                statuses[ref] = read_status(path)
        except (OSError, HoldfastError):  # truncated by a crash: a current version's is rewritten
            continue
    return statuses


def read_status(path: str) -> FoundStatus:
    """Return the status in a file; raises OSError or `Permanent` (`invalid_status`)."""
    with open(path, "rb", buffering=0) as file:
        data, found = file.read(), os.fstat(file.fileno())
    is_ours = found.st_mode == stat.S_IFREG | 0o644 and os.path.samestat(found, os.lstat(path))
    status = ModelStatus.parse(data)
    return FoundStatus(status, is_ours and data == encode(status.document()))


def _check_version(layout: Layout) -> None:
    if layout.version.exists() and (found := layout.version.read_text()) != LAYOUT_VERSION:
        raise durable.refuse_root(
            f"{layout.version}: expected layout version {LAYOUT_VERSION.strip()!r}, found {found.strip()[:40]!r}",
            "run the Holdfast release that wrote this root, or give the daemon an empty folder",
        )


def _list_flat(layout: Layout) -> tuple[Path, ...]:
    """Return the folders that every start sweeps."""
    public = layout.public
    return layout.root, layout.private, layout.ingest, layout.kept, public.path, public.status


def _sweep(folders: Iterable[Path], trash: Path) -> None:
    for folder in folders:
        for path in list_temporary(folder):
            _delete(path)
    for name in _names(trash):
        _delete(trash / name)


def list_temporary(folder: Path) -> list[Path]:
    """Return what a crash left under temporary names."""
    return [folder / name for name in _names(folder) if name.startswith(TEMPORARY_PREFIX)]


def list_synced(layout: Layout) -> list[Path]:
    """Return the folders to sync before anything builds on what they have: a killed daemon may have renamed without a
    sync, and a power cut would undo such a rename."""
    public = layout.public
    nested = _list_folders(layout.blobs, public.models, layout.ingest, layout.fetched)
    flat = (layout.root, layout.private, layout.ingest, layout.blobs, layout.quarantine, layout.trash, public.path)
    folders = (*flat, layout.fetched, layout.kept, public.snapshots, public.models, *nested)
    return [folder for folder in folders if folder.is_dir()]


def find_second_names(layout: Layout) -> list[str]:
    """Return the blobs in quarantine that a power cut brought back under their earlier names too: they are no blobs."""
    names = filter(is_hex, _names(layout.quarantine))
    return [name for name in names if durable.is_same_file(layout.blob(name), layout.quarantine / name)]


def _forget_linked(layout: Layout) -> None:
    """Delete the earlier name of each committed blob that a power cut brought back: to a partial blob with another name
    a later attempt would write."""
    for name in _names(layout.ingest):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.lstat(layout.ingest / name / "data").st_nlink > 1:
                ingest.forget(layout, name)


def list_snapshots(layout: Layout) -> list[str]:
    """Return the names in the folder of snapshots that are digests, as hex digits."""
    return [name for name in _names(layout.public.snapshots) if is_hex(name)]


def read_snapshots(layout: Layout, known: Mapping[Digest, Manifest]) -> tuple[dict[Digest, Manifest], list[Digest]]:
    """Return the manifest of each snapshot, and the damaged snapshots. `known`: manifests that were parsed before."""
    manifests: dict[Digest, Manifest] = {}
    damaged: list[Digest] = []
    quarantined = frozenset(_names(layout.quarantine))
    for name in list_snapshots(layout):
        digest = Digest(name)
        try:
            data = read_plain(layout.public.snapshot(digest).manifest)
            if Digest.of(data) != digest:
                raise Permanent("digest_mismatch", f"{name}: the manifest has changed", "")
            manifest = known.get(digest) or Manifest.parse(data)
            if _has_quarantined(layout, digest, manifest, quarantined):
                raise Permanent("digest_mismatch", f"{name}: a file of it is in quarantine", "")
            manifests[digest] = manifest
        except (OSError, HoldfastError) as error:
            if limits.find_limit_error(error, str(digest)) is not None:
                raise  # it says nothing about the disk
            damaged.append(digest)
    return manifests, damaged


def _has_quarantined(layout: Layout, digest: Digest, manifest: Manifest, quarantined: frozenset[str]) -> bool:
    """Return whether a crash came between the quarantine of a blob and the withdrawal of a snapshot that links it."""
    if not quarantined or quarantined.isdisjoint(manifest.packed.blobs()):
        return False
    path = layout.public.snapshot(digest).path
    return any(
        entry.sha256 in quarantined and durable.is_same_file(path / entry.path, layout.quarantine / entry.sha256)
        for entry in manifest.files
    )


def _read_models(
    layout: Layout, manifests: Mapping[Digest, Manifest], damaged: Collection[Digest]
) -> tuple[dict[ModelRef, Digest], list[ModelRef]]:
    """Return the names with their digests, and the names that pointed at a damaged snapshot."""
    models: dict[ModelRef, Digest] = {}
    lost: list[ModelRef] = []
    for ref, digest in list_names(layout).items():
        if digest in manifests:
            models[ref] = digest
        else:
            durable.unlink(layout.public.model_link(ref))  # a crash between two steps of an eviction, or damage
            if digest in damaged:
                lost.append(ref)
    return models, lost


def list_names(layout: Layout) -> dict[ModelRef, Digest]:
    """Return the digest that each name leads to, whether or not its snapshot exists."""
    names: dict[ModelRef, Digest] = {}
    for ref in _list_refs(layout.public.models, ""):
        try:
            digest = snapshots.read_name(layout, ref)
        except (OSError, InvalidReference):
            continue  # not a model's name: left alone
        if digest is not None:
            names[ref] = digest
    return names


def list_records(layout: Layout) -> list[ModelRef]:
    """Return the versions that have a fetch record."""
    return list(_list_refs(layout.fetched, ".json"))


def read_record(layout: Layout, ref: ModelRef, digest: Digest) -> FetchRecord:
    """Return the fetch record of a name that leads to `digest`, without `files`."""
    record = fetch_records.read(layout, ref)
    known = record is not None and record.digest == digest
    return replace(record, files={}) if record and known else fetch_records.unknown(digest, "")


def _read_fetched(layout: Layout, models: Mapping[ModelRef, Digest]) -> dict[ModelRef, FetchRecord]:
    """Return the records of published names; delete others, left by a publication or an eviction that crashed."""
    records: dict[ModelRef, FetchRecord] = {}
    for ref in list_records(layout):
        if ref in models:
            records[ref] = read_record(layout, ref, models[ref])
        else:
            fetch_records.remove(layout, ref)
    return records


def _list_refs(folder: Path, suffix: str) -> Iterator[ModelRef]:
    """Yield the versions that have a file `<model>/<version><suffix>`; ignore other files."""
    for segment in _names(folder):
        try:
            model = name_from_path_segment(segment)
        except InvalidReference:
            continue
        for name in _names(folder / segment):
            try:
                ref = ModelRef(model, name.removesuffix(suffix))
            except InvalidReference:
                continue
            yield ref


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_empty_folders(*parents: Path) -> None:
    """Delete models' folders without an entry: a crash came between the deletion of the last one and theirs."""
    for folder in _list_folders(*parents):
        with contextlib.suppress(InvalidReference):
            name_from_path_segment(folder.name)
            snapshots.remove_empty(folder)


def _list_folders(*parents: Path) -> list[Path]:
    return [parent / name for parent in parents for name in _names(parent)]


def _delete(path: Path) -> None:
    """Delete a leftover; one that cannot be deleted (made immutable by hand) stays and is logged."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot delete %s, which is left over: %s", path, error)
