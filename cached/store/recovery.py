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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cached.contract.digest import Digest, is_hex
from cached.contract.errors import HoldfastError, InvalidReference, Permanent
from cached.contract.layout import LAYOUT_VERSION, TEMPORARY_PREFIX, Layout
from cached.contract.manifest import Manifest
from cached.contract.program import limits
from cached.contract.reference import ModelRef, name_from_path_segment
from cached.contract.status import ModelStatus
from cached.core.space import OnDisk
from cached.store import blobs as committed
from cached.store import deletion, digest_journal, fetched, ingest, kept, repair, snapshots
from cached.store.disk import durable
from cached.store.disk.root import check_file_system
from cached.store.fetched import FetchRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """The contents of the tree. `damaged`: snapshots whose manifest does not hash to their name; `lost`: the names that
    pointed at one, deleted here and still wanted. `fetched`: the fetch records without `files`; of unknown origin if
    the record is of other content, absent if a name has no record (an older release published it). `digests`: by ingest
    id, unpromised sha256 from the digest journal. `kept`: the uids of the pods that snapshots are kept for."""

    models: dict[ModelRef, Digest]
    manifests: dict[Digest, Manifest]
    on_disk: OnDisk
    fetched: dict[ModelRef, FetchRecord]
    damaged: tuple[Digest, ...]
    lost: tuple[ModelRef, ...]
    digests: dict[str, str]
    kept: dict[Digest, frozenset[str]]


def prepare(layout: Layout) -> None:
    """Create the missing parts of the tree; raises `Permanent` (`bad_root`) for an unfit root or file system."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        _check_version(layout)
        make_tree(layout)
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
    """Create the missing folders and set the mode of each."""
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
    modes = dict.fromkeys(private, durable.PRIVATE_DIR_MODE)
    modes |= dict.fromkeys((public.path, public.snapshots, public.models, public.status), durable.PUBLIC_DIR_MODE)
    for folder, mode in modes.items():
        durable.make_dir(folder, mode)
        if stat.S_IMODE(os.stat(folder).st_mode) != mode:
            folder.chmod(mode)


def recover(layout: Layout) -> Recovered:
    """Sweep the leftovers of a crash and return the rest; raises `HoldfastError` or OSError."""
    _sweep(layout)
    _sync_folders(layout)
    digests = _read_digests(layout)
    _unlink_second_names(layout)
    for id_, sha256 in digests.items():
        committed.commit_noted(layout, id_, sha256)
    manifests, damaged = _read_snapshots(layout)
    on_disk = measure(layout)
    blobs = dict(on_disk.blobs)
    # Not a difference of key views: it iterates over the larger one, and there are hundreds of snapshots.
    for digest in [digest for digest, manifest in manifests.items() if not _are_all_in(manifest, blobs)]:
        repair.relink(layout, digest, manifests[digest])
        sizes = manifests[digest].blob_sizes()
        blobs.update((sha256, size) for sha256, size in sizes.items() if layout.blob(sha256).exists())
        if not _are_all_in(manifests[digest], blobs):  # deleted by hand
            del manifests[digest]
            damaged.append(digest)
    models, lost = _read_models(layout, manifests, damaged)
    records = _read_fetched(layout, models)
    known = {id_: sha256 for id_, sha256 in digests.items() if sha256 in blobs}
    if not known:
        durable.unlink(layout.digests)
    return Recovered(
        models,
        manifests,
        replace(on_disk, blobs=blobs),
        records,
        tuple(damaged),
        tuple(lost),
        known,
        kept.read_all(layout),
    )


def _read_digests(layout: Layout) -> dict[str, str]:
    """Return the digest journal, and the digests that older releases wrote into the records of partial blobs."""
    noted = {name: ingest.committed_as(layout, name) for name in _names(layout.ingest)}
    return {id_: sha256 for id_, sha256 in noted.items() if sha256 is not None} | digest_journal.read(layout.digests)


def measure(layout: Layout) -> OnDisk:
    """Return the bytes on the disk, without those of files deleted during the call."""
    blobs: dict[str, int] = {}
    for blob in committed.list_blobs(layout):
        with contextlib.suppress(FileNotFoundError):
            blobs[blob.name] = blob.stat(follow_symlinks=False).st_size
    partials = {name: ingest.allocated_bytes(layout.ingest / name) for name in _names(layout.ingest)}
    quarantined = {name: deletion.quarantined_bytes(layout, name) for name in _names(layout.quarantine)}
    return OnDisk(blobs, partials, quarantined)


def read_statuses(layout: Layout) -> dict[ModelRef, tuple[ModelStatus, bytes]]:
    """Return the last daemon's status of every version, and the bytes of its file, none of them where the file itself
    is not as the daemon makes it; skip invalid files."""
    statuses: dict[ModelRef, tuple[ModelStatus, bytes]] = {}
    folder = os.fspath(layout.public.status)
    for ref in _list_refs(layout.public.status, ".json"):
        with contextlib.suppress(OSError, HoldfastError):  # truncated by a crash: a current version's is rewritten
            path = f"{folder}/{ref.path_segment}/{ref.version}.json"
            with open(path, "rb", buffering=0) as file:
                data, found = file.read(), os.fstat(file.fileno())
            is_ours = found.st_mode == stat.S_IFREG | 0o644 and os.path.samestat(found, os.lstat(path))
            statuses[ref] = ModelStatus.parse(data), data if is_ours else b""
    return statuses


def _check_version(layout: Layout) -> None:
    if layout.version.exists() and (found := layout.version.read_text()) != LAYOUT_VERSION:
        raise durable.refuse_root(
            f"{layout.version}: expected layout version {LAYOUT_VERSION.strip()!r}, found {found.strip()[:40]!r}",
            "run the Holdfast release that wrote this root, or give the daemon an empty folder",
        )


def _sweep(layout: Layout) -> None:
    public = layout.public
    flat = (layout.root, layout.private, layout.ingest, layout.kept, public.path, public.snapshots, public.status)
    nested = _list_folders(public.models, public.status, layout.ingest, layout.fetched)
    records = (folder / ".holdfast" for folder in _list_folders(public.snapshots))
    for folder in (*flat, *nested, *records):
        for name in _names(folder):
            if name.startswith(TEMPORARY_PREFIX):
                _delete(folder / name)
    for name in _names(layout.trash):
        _delete(layout.trash / name)


def _sync_folders(layout: Layout) -> None:
    """Sync all folders: a killed daemon may have renamed without a sync, and a power cut would undo such a rename."""
    public = layout.public
    nested = _list_folders(layout.blobs, public.models, layout.ingest, layout.fetched)
    flat = (layout.root, layout.private, layout.ingest, layout.blobs, layout.quarantine, layout.trash, public.path)
    for folder in (*flat, layout.fetched, layout.kept, public.snapshots, public.models, *nested):
        if folder.is_dir():
            durable.fsync_dir(folder)


def _unlink_second_names(layout: Layout) -> None:
    """Unlink the earlier name of each renamed file that a power cut brought back under both: a blob in quarantine is no
    blob, and to a partial blob with another name a later attempt would write."""
    for name in filter(is_hex, _names(layout.quarantine)):
        if durable.is_same_file(layout.blob(name), layout.quarantine / name):
            durable.unlink(layout.blob(name))
    for name in _names(layout.ingest):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.lstat(layout.ingest / name / "data").st_nlink > 1:
                ingest.forget(layout, name)


def _read_snapshots(layout: Layout) -> tuple[dict[Digest, Manifest], list[Digest]]:
    manifests: dict[Digest, Manifest] = {}
    damaged: list[Digest] = []
    quarantined = frozenset(_names(layout.quarantine))
    for name in _names(layout.public.snapshots):
        if not is_hex(name):
            continue
        digest = Digest(name)
        try:
            data = layout.public.snapshot(digest).manifest.read_bytes()
            if Digest.of(data) != digest:
                raise Permanent("digest_mismatch", f"{name}: the manifest has changed", "")
            manifest = Manifest.parse(data)
            if _has_quarantined(layout, digest, manifest, quarantined):
                raise Permanent("digest_mismatch", f"{name}: a file of it is in quarantine", "")
            manifests[digest] = manifest
        except (OSError, HoldfastError) as error:
            if limits.find_limit_error(error, str(digest)) is not None:
                raise  # it says nothing about the disk
            damaged.append(digest)
    return manifests, damaged


def _are_all_in(manifest: Manifest, blobs: Mapping[str, int]) -> bool:
    return all(entry.sha256 in blobs for entry in manifest.files)


def _has_quarantined(layout: Layout, digest: Digest, manifest: Manifest, quarantined: frozenset[str]) -> bool:
    """Return whether a crash came between the quarantine of a blob and the withdrawal of a snapshot that links it."""
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
    for ref in _list_refs(layout.public.models, ""):
        try:
            digest = snapshots.read_name(layout, ref)
        except (OSError, InvalidReference):
            continue  # not a model's name: left alone
        if digest is not None and digest in manifests:
            models[ref] = digest
        elif digest is not None:
            durable.unlink(layout.public.model_link(ref))  # a crash between two steps of an eviction, or damage
            if digest in damaged:
                lost.append(ref)
    return models, lost


def _read_fetched(layout: Layout, models: Mapping[ModelRef, Digest]) -> dict[ModelRef, FetchRecord]:
    """Return the records of published names; delete others, left by a publication or an eviction that crashed."""
    records: dict[ModelRef, FetchRecord] = {}
    for ref in _list_refs(layout.fetched, ".json"):
        digest = models.get(ref)
        if digest is None:
            fetched.remove(layout, ref)
            continue
        record = fetched.read(layout, ref)
        known = record is not None and record.digest == digest
        records[ref] = replace(record, files={}) if record and known else fetched.unknown(digest, "")
    return records


def _list_refs(folder: Path, suffix: str) -> Iterator[ModelRef]:
    """Yield the versions that have a file `<model>/<version><suffix>`; ignore other files."""
    for segment in _names(folder):
        for name in _names(folder / segment):
            try:
                ref = ModelRef(name_from_path_segment(segment), name.removesuffix(suffix))
            except InvalidReference:
                continue
            yield ref


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


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
