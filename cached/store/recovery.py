"""Rebuild what the daemon knows from the tree: disk is the truth.

Law: downloads nothing, and hashes nothing but a snapshot's file that has lost its blob. Sweeps only what a crash can
leave: temporary names, trash, names that point at nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cached.contract.digest import Digest, is_hex
from cached.contract.errors import HoldfastError, InvalidReference, Permanent
from cached.contract.layout import LAYOUT_VERSION, TEMPORARY_PREFIX, Layout
from cached.contract.manifest import Manifest
from cached.contract.program import limits
from cached.contract.reference import ModelRef, name_from_path_segment
from cached.contract.status import ModelStatus
from cached.store import blobs as committed
from cached.store import deletion, digest_journal, fetched, ingest, repair, snapshots
from cached.store.disk import durable, preflight
from cached.store.fetched import FetchRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the tree holds. Sizes in bytes; `damaged` are snapshots whose manifest does not hash to their name,
    `lost` the names that led to one: taken away, and wanted all the same.

    `fetched`: what each name was fetched for, without the files; of unknown origin where the record is of other
    content, absent where a name has no record (an older release published it). `digests`: the sha256 of objects for
    which nobody promised one, by ingest id.
    """

    models: dict[ModelRef, Digest]
    manifests: dict[Digest, Manifest]
    blobs: dict[str, int]
    ingests: dict[str, int]
    quarantined: dict[str, int]
    fetched: dict[ModelRef, FetchRecord]
    damaged: tuple[Digest, ...]
    lost: tuple[ModelRef, ...]
    digests: dict[str, str]


def prepare(layout: Layout) -> None:
    """Make the tree where it is missing; refuse a root that is not ours or cannot hold us.

    Raises `Permanent` (`bad_root`) with what to do.
    """
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        _check_version(layout)
        make_tree(layout)
        preflight.check(layout)
        if not layout.version.exists():
            durable.replace(layout.version, LAYOUT_VERSION.encode(), 0o644)
    except OSError as error:
        remedy = "give the daemon a writable folder on a local file system"
        if error.errno == errno.EROFS:
            remedy = "mount it writable (after a fault the kernel makes a file system read-only: see the kernel log)"
        elif error.errno == errno.ENOSPC:
            remedy = "free space on the node, then start the daemon again"
        raise durable.refuse_root(f"{error.filename or layout.root}: {error.strerror or error}", remedy) from error


def make_tree(layout: Layout) -> None:
    """Make the folders that are missing, and give every one its mode."""
    public = layout.public
    private = (layout.private, layout.ingest, layout.blobs, layout.quarantine, layout.trash, layout.fetched)
    modes = dict.fromkeys(private, durable.PRIVATE_DIR_MODE)
    modes |= dict.fromkeys((public.path, public.snapshots, public.models, public.status), durable.PUBLIC_DIR_MODE)
    for folder, mode in modes.items():
        durable.make_dir(folder, mode)
        if stat.S_IMODE(os.stat(folder).st_mode) != mode:
            folder.chmod(mode)


def recover(layout: Layout) -> Recovered:
    """Sweep what a crash left and read the rest."""
    _sweep(layout)
    _settle(layout)
    digests = _read_digests(layout)
    for id_, sha256 in digests.items():
        committed.commit_noted(layout, id_, sha256)
    manifests, damaged = _read_snapshots(layout)
    blobs, ingests, quarantined = measure(layout)
    # Asked file by file: of two views of keys, `-` goes through the larger one, and there are hundreds of snapshots.
    for digest in [digest for digest, manifest in manifests.items() if not _are_all_in(manifest, blobs)]:
        repair.rejoin(layout, digest, manifests[digest])
        sizes = manifests[digest].blob_sizes()
        blobs.update((sha256, size) for sha256, size in sizes.items() if layout.blob(sha256).exists())
        if not _are_all_in(manifests[digest], blobs):  # somebody deleted what it is made of
            del manifests[digest]
            damaged.append(digest)
    models, lost = _read_models(layout, manifests, damaged)
    records = _read_fetched(layout, models)
    known = {id_: sha256 for id_, sha256 in digests.items() if sha256 in blobs}
    if not known:
        durable.unlink(layout.digests)
    return Recovered(models, manifests, blobs, ingests, quarantined, records, tuple(damaged), tuple(lost), known)


def _read_digests(layout: Layout) -> dict[str, str]:
    """The digest journal, and what releases before it wrote into the records of partial blobs."""
    noted = {name: ingest.committed_as(layout, name) for name in _names(layout.ingest)}
    return {id_: sha256 for id_, sha256 in noted.items() if sha256 is not None} | digest_journal.read(layout.digests)


def measure(layout: Layout) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """What is on the disk, in bytes: committed blobs by sha256, partial ones by id, and the quarantine by name. What
    goes while it is looked at is left out."""
    blobs: dict[str, int] = {}
    for blob in committed.listed(layout):
        with contextlib.suppress(FileNotFoundError):
            blobs[blob.name] = blob.stat(follow_symlinks=False).st_size
    partials = {name: ingest.allocated_bytes(layout.ingest / name) for name in _names(layout.ingest)}
    quarantined = {name: deletion.quarantined_bytes(layout, name) for name in _names(layout.quarantine)}
    return blobs, partials, quarantined


def read_statuses(layout: Layout) -> dict[ModelRef, ModelStatus]:
    """What the last daemon said of every version; files that are no status are left out."""
    statuses: dict[ModelRef, ModelStatus] = {}
    for segment in _names(layout.public.status):
        for name in _names(layout.public.status / segment):
            try:
                ref = ModelRef(name_from_path_segment(segment), name.removesuffix(".json"))
                statuses[ref] = ModelStatus.parse(layout.public.model_status(ref).read_bytes())
            except (OSError, HoldfastError):
                continue  # not a status of ours, or half of one from a crash: written anew where it matters
    return statuses


def _check_version(layout: Layout) -> None:
    if not layout.version.exists():
        return
    found = layout.version.read_text()
    if found != LAYOUT_VERSION:
        raise durable.refuse_root(
            f"{layout.version}: expected layout version {LAYOUT_VERSION.strip()!r}, found {found.strip()[:40]!r}",
            "run the Holdfast release that wrote this root, or give the daemon an empty folder",
        )


def _sweep(layout: Layout) -> None:
    public = layout.public
    flat = [layout.root, layout.private, layout.ingest, public.path, public.snapshots, public.status]
    nested = [
        parent / name
        for parent in (public.models, public.status, layout.ingest, layout.fetched)
        for name in _names(parent)
    ]
    records = [public.snapshots / name / ".holdfast" for name in _names(public.snapshots)]
    for folder in (*flat, *nested, *records):
        for name in _names(folder):
            if name.startswith(TEMPORARY_PREFIX):
                _delete(folder / name)
    for name in _names(layout.trash):
        _delete(layout.trash / name)


def _settle(layout: Layout) -> None:
    """Make durable what is here: a daemon that was killed may have renamed and not synced, and all that is built on
    such a name from now on would be lost with it."""
    public = layout.public
    nesting = (layout.blobs, public.models, layout.ingest, layout.fetched)
    nested = [parent / name for parent in nesting for name in _names(parent)]
    flat = (layout.root, layout.private, layout.ingest, layout.blobs, layout.quarantine, layout.trash, public.path)
    for folder in (*flat, layout.fetched, public.snapshots, public.models, *nested):
        if folder.is_dir():
            durable.fsync_dir(folder)


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
            if limits.shortage(error, str(digest)) is not None:
                raise  # that says nothing of what is on the disk
            damaged.append(digest)
    return manifests, damaged


def _are_all_in(manifest: Manifest, blobs: Mapping[str, int]) -> bool:
    return all(entry.sha256 in blobs for entry in manifest.files)


def _has_quarantined(layout: Layout, digest: Digest, manifest: Manifest, quarantined: frozenset[str]) -> bool:
    """Tell whether a crash came after a blob went into quarantine and before the snapshots that link it went too."""
    for entry in manifest.files:
        if entry.sha256 not in quarantined:
            continue
        try:
            bad = os.lstat(layout.quarantine / entry.sha256).st_ino
            if os.lstat(layout.public.snapshot(digest).path / entry.path).st_ino == bad:
                return True
        except FileNotFoundError:
            continue
    return False


def _read_models(
    layout: Layout, manifests: Mapping[Digest, Manifest], damaged: Collection[Digest]
) -> tuple[dict[ModelRef, Digest], list[ModelRef]]:
    """The names and what they lead to; and those that led to a damaged snapshot."""
    models: dict[ModelRef, Digest] = {}
    lost: list[ModelRef] = []
    for segment in _names(layout.public.models):
        for version in _names(layout.public.models / segment):
            try:
                ref = ModelRef(name_from_path_segment(segment), version)
                digest = snapshots.pointed(layout, ref)
            except (OSError, InvalidReference):
                continue  # not a name of ours: left alone
            if digest is not None and digest in manifests:
                models[ref] = digest
            elif digest is not None:
                durable.unlink(layout.public.model_link(ref))  # a crash between two steps of an eviction, or damage
                if digest in damaged:
                    lost.append(ref)
    return models, lost


def _read_fetched(layout: Layout, models: Mapping[ModelRef, Digest]) -> dict[ModelRef, FetchRecord]:
    """The records of the names that are here; others are left of a publication or an eviction that a crash cut off."""
    records: dict[ModelRef, FetchRecord] = {}
    for segment in _names(layout.fetched):
        for name in _names(layout.fetched / segment):
            try:
                ref = ModelRef(name_from_path_segment(segment), name.removesuffix(".json"))
            except InvalidReference:
                continue  # not a record of ours: left alone
            digest = models.get(ref)
            if digest is None:
                fetched.remove(layout, ref)
                continue
            record = fetched.read(layout, ref)
            known = record is not None and record.digest == digest
            records[ref] = replace(record, files={}) if record and known else fetched.unknown(digest, "")
    return records


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _delete(path: Path) -> None:
    """Delete litter; what cannot be deleted (somebody made it immutable) stays, and stops nobody."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot delete %s, which is left over: %s", path, error)
