"""Restore names, snapshots and links that were deleted from the store by hand, and delete what was added to a snapshot;
report which blobs are lost.

Law: downloads nothing and trusts nothing new. Missing is not corrupt: a blob is restored from a snapshot's file, if
that is the file that was verified, or hashes to the blob's name now. A possible last copy of its content is deleted
only after its hash was wrong. A snapshot is restored only from committed blobs; those that its record does not fit
are marked as never verified, so that no gate takes them by record, and the scrub hashes them first.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout, SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.program import limits
from cached.contract.program.plain_files import READ_FLAGS, read_plain
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import NEVER, VerifiedFile, VerifiedRecord
from cached.contract.snapshot.verify import hash_file
from cached.store.blob import blobs
from cached.store.disk import durable, verity
from cached.store.version import modes, snapshots

_log = logging.getLogger(__name__)

ROTTEN = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ, errno.ENODATA})  # a read of corrupt data


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restoration, by sha256. `lost`: blobs without any copy. `condemned`: blobs with a wrong hash:
    other snapshots may link the same file."""

    lost: frozenset[str]
    condemned: frozenset[str]


def is_named(layout: Layout, refs: Collection[ModelRef], digest: Digest) -> bool:
    """Return whether the names point at the snapshot, through folders, and its records exist, and any user may read
    them: a few system calls, whatever its size."""
    public = os.fspath(layout.public.path)  # as text: paths as objects cost more than the calls
    snapshot = f"{public}/snapshots/{digest.hex}"
    try:
        for ref in refs:
            if not modes.is_open_folder(f"{public}/models/{ref.path_segment}"):
                return False
            if not _is_name(layout, ref, digest):
                return False
        if not (modes.is_open_folder(snapshot) and modes.is_open_folder(f"{snapshot}/.holdfast")):
            return False
        for name in modes.RECORDS:
            if not modes.is_open_file(f"{snapshot}/.holdfast/{name}"):
                return False
    except (OSError, HoldfastError):  # missing or replaced
        return False
    return True


def is_intact(layout: Layout, digest: Digest, manifest: Manifest) -> bool:
    """Return whether each file of the snapshot exists and is its blob, nothing else is there, and any user may read
    it: three system calls a file."""
    return snapshots.is_whole(layout, digest, manifest) and not modes.find_closed(layout, digest, manifest)


def restore(layout: Layout, refs: Collection[ModelRef], digest: Digest, manifest: Manifest) -> Restored:
    """Restore a version's links, snapshot and names from the disk; leave its snapshot as it is if blobs are lost.
    Raises `HoldfastError` for a disk error."""
    with durable.disk_errors(f"restoring snapshot {digest}"):
        modes.open_all(layout, refs, digest, manifest)
        record = _read_record(layout.public.snapshot(digest))
        rotten = _find_rotten(layout, manifest, record)
        for sha256 in rotten:  # made anew, the snapshot would have a record that fits it
            blobs.quarantine(layout, sha256)
        condemned = relink(layout, digest, manifest).union(rotten)
        lost = frozenset(sha256 for sha256 in manifest.blob_sizes() if not blobs.has(layout, sha256))
        if lost:
            return Restored(lost, condemned)
        for path in snapshots.remove_strays(layout, digest, manifest):
            _log.error("snapshot %s: deleted %r, which is not in its manifest", digest, path)
        if not (
            is_named(layout, (), digest)
            and _has_manifest(layout, digest, manifest)
            and snapshots.is_whole(layout, digest, manifest)
        ):
            record = _read_record(layout.public.snapshot(digest))  # of what is relinked too
            snapshots.delete(layout, digest)
            snapshots.publish(layout, manifest, NEVER, record)
        for ref in refs:
            if not is_named(layout, (ref,), digest):
                folder = layout.public.model_link(ref).parent
                if os.path.lexists(folder) and not stat.S_ISDIR(os.lstat(folder).st_mode):
                    snapshots.discard(layout, folder)
                snapshots.set_name(layout, ref, digest)
    return Restored(lost, condemned)


def _find_rotten(layout: Layout, manifest: Manifest, record: Mapping[str, VerifiedFile]) -> list[str]:
    """Return the blobs of a snapshot that were written to since its record says that they were hashed, and are wrong.
    Those of which it says nothing, and other files than it speaks of, wait for the scrub, or a gate."""
    changed = {
        entry.sha256
        for entry in manifest.files
        if entry.path in record
        and record[entry.path].is_hashed
        and _fits_if_same(layout.blob(entry.sha256), record[entry.path]) is False
    }
    return hash_unproven(layout, changed)[1]


def find_unproven(
    layout: Layout,
    snapshots_here: Iterable[tuple[Digest, Manifest]],
    sha256s: Collection[str],
    find_note: Callable[[str], VerifiedFile | None],
) -> set[str]:
    """Return those of these blobs that exist, and are as neither a note (`find_note`) nor any record says that they
    were when they were hashed: they were written to since, or their names alone tell what they are. A record costs a
    read, a blob a system call for each record that has it."""
    top = os.fspath(layout.blobs)
    notes = {each: note for each in sha256s if (note := find_note(each)) is not None}
    left = set(sha256s) - {each for each, note in notes.items() if _fits_if_same(f"{top}/{each[:2]}/{each}", note)}
    for digest, manifest in snapshots_here:
        if not left:
            break
        left -= _list_fitting(layout, digest, manifest, left).keys()
    return {sha256 for sha256 in left if blobs.has(layout, sha256)}


def hash_unproven(layout: Layout, sha256s: Collection[str]) -> tuple[dict[str, VerifiedFile], list[str]]:
    """Hash blobs; return the right ones as they were then, and the wrong ones. Raises OSError."""
    right: dict[str, VerifiedFile] = {}
    wrong = []
    for sha256 in sorted(sha256s):
        path = layout.blob(sha256)
        _log.warning("blob %s: no record fits it: hashing it again", sha256)
        found = os.lstat(path)
        if _hashes_to(path, sha256):
            right[sha256] = VerifiedFile.of(found, snapshots.now())
        else:
            wrong.append(sha256)
    return right, wrong


def list_recorded(layout: Layout, digest: Digest, manifest: Manifest) -> dict[str, VerifiedFile]:
    """Return the blobs of a snapshot that are as its record says that they were when they were hashed, and that: what
    is known of them once the snapshot is gone."""
    return _list_fitting(layout, digest, manifest, manifest.blob_sizes())


def list_recorded_unlisted(layout: Layout, digest: Digest) -> dict[str, VerifiedFile]:
    """Do the same for a snapshot whose manifest went bad: the inodes of its record say which blobs it links."""
    record = {seen.ino: seen for seen in _read_record(layout.public.snapshot(digest)).values()}
    linked = (blob for blob in blobs.list_blobs(layout) if record and blob.inode() in record)
    return {blob.name: record[blob.inode()] for blob in linked if _fits_if_same(Path(blob), record[blob.inode()])}


def _list_fitting(
    layout: Layout, digest: Digest, manifest: Manifest, sha256s: Container[str]
) -> dict[str, VerifiedFile]:
    listed = [
        (path, sha256)
        for path, sha256 in zip(manifest.packed.paths, manifest.packed.blobs(), strict=True)
        if sha256 in sha256s
    ]
    record = _read_record(layout.public.snapshot(digest)) if listed else {}
    return {
        sha256: record[path]
        for path, sha256 in listed
        if path in record and _fits_if_same(layout.blob(sha256), record[path])
    }


def find_rotten_unlisted(layout: Layout, digest: Digest) -> list[str]:
    """Do the same for a snapshot whose manifest went bad: its files' inodes say which blobs it links. A blob costs
    nothing but its entry in a folder, unless a file does not fit the record."""
    snapshot = layout.public.snapshot(digest)
    record = _read_record(snapshot)
    changed = set()
    for path in _files_below(snapshot.path):
        seen = record.get(os.fspath(path.relative_to(snapshot.path)))
        if _fits_if_same(path, seen) is False:
            changed.add(os.lstat(path).st_ino)
    if not changed:
        return []
    return hash_unproven(layout, [blob.name for blob in blobs.list_blobs(layout) if blob.inode() in changed])[1]


def relink(layout: Layout, digest: Digest, manifest: Manifest) -> frozenset[str]:
    """If a snapshot's file and its blob are different files, keep the one with the right bytes as the blob: a missing
    blob is linked from the file, a corrupt one goes into quarantine first. Return the sha256 of the quarantined blobs.
    Costs two system calls a file, and a hash of each different one."""
    snapshot = layout.public.snapshot(digest)
    apart = [entry for entry in manifest.files if not snapshots.is_blob(layout, snapshot, entry)]
    if not apart:
        return frozenset()
    condemned: set[str] = set()
    record = _read_record(snapshot)  # where it is missing or invalid each file is hashed
    renewed = dict(record)
    for entry in apart:
        path = snapshot.path / entry.path
        _log.error("%s: it and blob %s are not the same file any more", path, entry.sha256)
        if not _is_file(path):
            continue  # the snapshot is rebuilt from the blob, if that exists, and hashed by the scrub
        if blobs.has(layout, entry.sha256):
            if _hashes_to(layout.blob(entry.sha256), entry.sha256):
                continue
            blobs.quarantine(layout, entry.sha256)
            condemned.add(entry.sha256)
        if entry.path in record and _is_unchanged(path, record[entry.path]) and not _is_condemned(layout, path, entry):
            _link(layout, path, entry.sha256)
        elif not _is_condemned(layout, path, entry) and _hashes_to(path, entry.sha256):
            _link(layout, path, entry.sha256)
            renewed[entry.path] = VerifiedFile.of(os.lstat(path), snapshots.now(), verity.digest(path))
    if renewed != record and renewed.keys() == {entry.path for entry in manifest.files}:
        snapshots.write_verified(snapshot, VerifiedRecord(renewed))
    return frozenset(condemned)


def rescue(layout: Layout, digest: Digest, belongs: Callable[[str], bool]) -> list[str]:
    """Before a snapshot is deleted: hash its files with a single link, and link each as the blob of its hash if that
    `belongs` to it. Return their sha256. Normally there are none: one system call a file."""
    rescued = []
    for path in _files_below(layout.public.snapshot(digest).path):
        found = os.lstat(path)
        if found.st_nlink > 1 or not stat.S_ISREG(found.st_mode):
            continue
        sha256 = _hash(path)
        if sha256 is not None and belongs(sha256) and not layout.blob(sha256).exists():
            _log.warning("%s: it is the only copy of its content: kept as blob %s", path, sha256)
            _link(layout, path, sha256)
            rescued.append(sha256)
    return rescued


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a snapshot, without its own records."""
    for at, folders, names in os.walk(folder):
        if Path(at) == folder and ".holdfast" in folders:
            folders.remove(".holdfast")
        yield from (Path(at, name) for name in names)


def _is_name(layout: Layout, ref: ModelRef, digest: Digest) -> bool:
    """Return whether a name is the symlink that publication makes: gates follow no other to the same snapshot."""
    link = f"{os.fspath(layout.public.path)}/models/{ref.path_segment}/{ref.version}"
    return os.readlink(link) == layout.public.link_target(digest)


def _has_manifest(layout: Layout, digest: Digest, manifest: Manifest) -> bool:
    """Return whether the snapshot's manifest is there, readable and right."""
    try:
        return read_plain(layout.public.snapshot(digest).manifest) == manifest.canonical()
    except OSError as error:
        if error.errno not in (*ROTTEN, errno.ENOENT, errno.ENOTDIR):
            raise
        return False


def _read_record(snapshot: SnapshotLayout) -> dict[str, VerifiedFile]:
    """Return a snapshot's record by path, empty where it is missing or invalid. Raises where a limit is reached."""
    try:
        return VerifiedRecord.parse(read_plain(snapshot.verified)).files
    except (OSError, HoldfastError) as error:
        if limits.find_limit_error(error, "reading a record") is not None:
            raise  # else an existing file would count as lost
        return {}


def _fits_if_same(path: Path | str, seen: VerifiedFile | None) -> bool | None:
    """Return whether a file is as it was when it was hashed, and that is recorded; None where that was another file, or
    it is missing."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if seen is None or not seen.is_hashed:
        return False
    return seen.fits(found) if found.st_ino == seen.ino else None


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_condemned(layout: Layout, path: Path, entry: FileEntry) -> bool:
    """Return whether this file is in quarantine: a crash came before its snapshot was withdrawn."""
    return durable.is_same_file(path, layout.quarantine / entry.sha256)


def _link(layout: Layout, path: Path, sha256: str) -> None:
    """Link a snapshot's file as a blob, durable and read-only."""
    blob = layout.blob(sha256)
    with durable.opened(path, READ_FLAGS) as descriptor:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != durable.READ_ONLY_MODE:
            os.fchmod(descriptor, durable.READ_ONLY_MODE)
        os.fsync(descriptor)
    durable.make_dir(blob.parent, durable.PRIVATE_DIR_MODE)
    os.link(path, blob, follow_symlinks=False)
    durable.fsync_dir(blob.parent)


def _hashes_to(path: Path, sha256: str) -> bool:
    found = _hash(path)
    if found != sha256:
        what = found or "no plain file, or one that the disk cannot read"
        _log.error("%s: expected sha256 %s, found %s", path, sha256, what)
    return found == sha256


def _hash(path: Path) -> str | None:
    """Return a file's sha256, None if it is no plain file, or corrupt on the disk. Raises OSError for another error."""
    try:
        return hash_file(path)
    except OSError as error:
        if error.errno not in ROTTEN:
            raise
        return None


def _is_unchanged(path: Path, seen: VerifiedFile) -> bool:
    """Return whether a file is the one that was hashed."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return seen.fits(found)
