"""Snapshots and the names that point at them: publication steps 6 and 7, and their reverse.

Law: a snapshot appears whole, by one rename; a model's name appears last and disappears first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import TEMPORARY_PREFIX, Layout, SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.program.plain_files import NotAPlainFile, read_plain
from cached.contract.reference import ModelRef
from cached.contract.snapshot.strays import find_strays
from cached.contract.snapshot.verified import VerifiedFile, VerifiedRecord
from cached.contract.status import timestamp
from cached.store.disk import durable, verity

building = threading.Lock()  # two names with the same content may be published at the same moment


@dataclass(frozen=True, slots=True)
class Draft:
    """A snapshot that is complete under a temporary name, and not durable yet. `folders`: each after its parent."""

    digest: Digest
    tree: SnapshotLayout
    folders: tuple[Path, ...]


def publish(
    layout: Layout, manifest: Manifest, verified_at: str, recorded: Mapping[str, VerifiedFile] | None = None
) -> Digest:
    """Create the snapshot of `manifest`, whose blobs are all committed, unless it exists undamaged; return its digest.
    `verified_at` is when the blobs' sha256 were last computed, as `contract.status.timestamp` writes it; those that
    are as an earlier record of the snapshot says (`recorded`) keep its time. Raises `HoldfastError`: `Transient`
    (`blob_gone`) if a blob went into quarantine during the call."""
    with building:
        draft = build(layout, manifest, verified_at, recorded)
        if draft is not None:
            try:
                sync(draft)
                place_unsynced(layout, draft)
            except HoldfastError:
                abandon(draft)
                raise
    with durable.disk_errors(f"publishing snapshot {manifest.digest}"):
        durable.fsync_dir(layout.public.snapshots)
    return manifest.digest


def build(
    layout: Layout, manifest: Manifest, verified_at: str, recorded: Mapping[str, VerifiedFile] | None = None
) -> Draft | None:
    """Build the snapshot of `manifest` under a temporary name; return None if it exists undamaged. Next come `sync` and
    `place_unsynced`, or `abandon`; hold `building` until then. Raises as `publish`."""
    data = manifest.canonical()
    digest = Digest.of(data)
    final = layout.public.snapshot(digest)
    tree = SnapshotLayout(layout.public.snapshots / f"{TEMPORARY_PREFIX}{digest.hex[:16]}-{secrets.token_hex(4)}")
    try:
        if os.path.lexists(final.path):
            if _has_manifest(final, data) and is_whole(layout, digest, manifest):
                return None
            delete(layout, digest)
        return Draft(digest, tree, _build(layout, tree, manifest, data, verified_at, recorded or {}))
    except OSError as error:
        failure = durable.disk_error(error, f"publishing snapshot {digest}")  # before the cleanup changes the disk
        shutil.rmtree(tree.path, ignore_errors=True)
        gone = [sha256 for sha256 in manifest.blob_sizes() if not layout.blob(sha256).exists()]
        if isinstance(error, FileNotFoundError) and gone and layout.blobs.exists():
            problem = f"publishing snapshot {digest}: blob {gone[0]} was quarantined or deleted"
            failure = Transient("blob_gone", problem, "it is fetched again")
        raise failure from error


def sync(draft: Draft) -> None:
    """Make a built snapshot durable; raises `HoldfastError`."""
    with durable.disk_errors(f"publishing snapshot {draft.digest}"):
        for path in (draft.tree.manifest, draft.tree.verified, draft.tree.lease):
            durable.sync_file(path)
        for folder in reversed(draft.folders):
            durable.fsync_dir(folder)


def place_unsynced(layout: Layout, draft: Draft) -> None:
    """Give a synced snapshot its name, durable after an `fsync_dir` of the folder of snapshots. Raises
    `HoldfastError`."""
    with durable.disk_errors(f"publishing snapshot {draft.digest}"):
        os.rename(draft.tree.path, layout.public.snapshot(draft.digest).path)


def abandon(draft: Draft) -> None:
    """Delete a built snapshot that got no name; without effect on one that did."""
    shutil.rmtree(draft.tree.path, ignore_errors=True)


def now() -> str:
    """Return the current time as `contract.status.timestamp` writes it."""
    return timestamp(time.time())


def is_whole(layout: Layout, digest: Digest, manifest: Manifest) -> bool:
    """Return whether each file of the snapshot exists and is its blob, in two system calls a file, and nothing else is
    there. Another file was left when the blob was quarantined, and has its bytes, or was replaced by hand."""
    snapshot = layout.public.snapshot(digest)
    return all(is_blob(layout, snapshot, entry) for entry in manifest.files) and not find_strays(snapshot, manifest)


def is_blob(layout: Layout, snapshot: SnapshotLayout, entry: FileEntry) -> bool:
    """Return whether a file of the snapshot exists and is its blob."""
    return durable.is_same_file(snapshot.path / entry.path, layout.blob(entry.sha256))


def remove_strays(layout: Layout, digest: Digest, manifest: Manifest) -> list[str]:
    """Delete what is in the snapshot and not in its manifest, through the trash; return the paths. The rest stays where
    pods read it; the record's ctime becomes another one, by which a gate sees that a repair is done."""
    snapshot = layout.public.snapshot(digest)
    strays = find_strays(snapshot, manifest)
    for path in strays:
        discard(layout, snapshot.path / path)
    if strays:
        with contextlib.suppress(FileNotFoundError):  # then it is made anew
            os.utime(snapshot.verified, follow_symlinks=False)
    return strays


def is_linked(layout: Layout, file: Path) -> bool:
    """Return whether a snapshot links this file: one system call, unless the file has a second link anywhere."""
    if os.lstat(file).st_nlink == 1:
        return False
    found = os.walk(layout.public.snapshots)
    return any(durable.is_same_file(Path(folder, name), file) for folder, _, names in found for name in names)


def is_there(layout: Layout, digest: Digest) -> bool:
    """Return whether there is a snapshot of this digest, named or not."""
    return os.path.exists(layout.public.snapshot(digest).path)


def set_name(layout: Layout, ref: ModelRef, digest: Digest) -> None:
    """Point `models/<name>/<version>` at the snapshot of `digest`, atomically and durably."""
    folder = set_name_unsynced(layout, ref, digest)
    with durable.disk_errors(f"publishing {ref}"):
        durable.fsync_dir(folder)


def set_name_unsynced(layout: Layout, ref: ModelRef, digest: Digest) -> Path:
    """Do the same, except that the name is durable only after an `fsync_dir` of the returned folder."""
    link = layout.public.model_link(ref)
    with durable.disk_errors(f"publishing {ref}"):
        durable.make_dir(link.parent, durable.PUBLIC_DIR_MODE)
        target = layout.public.link_target(digest)
        try:
            durable.replace_symlink_unsynced(link, target)
        except IsADirectoryError:  # made by hand
            discard(layout, link)
            durable.replace_symlink_unsynced(link, target)
    return link.parent


def discard(layout: Layout, path: Path) -> None:
    """Delete what was put by hand into a snapshot, or in the place of a name, of a name's folder or of a snapshot,
    through the trash."""
    trashed = layout.trash / f"by-hand-{secrets.token_hex(8)}"
    durable.rename(path, trashed)
    delete_trash(trashed)


def delete_name(layout: Layout, ref: ModelRef) -> None:
    """Delete the name; the snapshot stays."""
    link = layout.public.model_link(ref)
    durable.unlink(link)
    remove_empty(link.parent)


def read_name(layout: Layout, ref: ModelRef) -> Digest | None:
    """Return the digest that a model's name points at, None if there is no such name."""
    try:
        return Digest(Path(os.readlink(layout.public.model_link(ref))).name)
    except FileNotFoundError:
        return None


def trash(layout: Layout, digest: Digest) -> Path | None:
    """Rename a snapshot into the trash, where no pod sees it; return its path there, None if it does not exist."""
    target = layout.trash / f"{digest.hex}-{secrets.token_hex(4)}"
    try:
        durable.rename(layout.public.snapshot(digest).path, target)
    except FileNotFoundError:
        return None
    return target


def delete(layout: Layout, digest: Digest) -> None:
    """Delete a snapshot, if it exists, through the trash."""
    trashed = trash(layout, digest)
    if trashed is not None:
        delete_trash(trashed)


def delete_trash(path: Path) -> None:
    """Delete a tree in the trash, or a file or symlink that was in a tree's place. Its blobs stay: they are hard
    links."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()
    durable.fsync_dir(path.parent)


def remove_empty(folder: Path) -> None:
    """Delete a folder if it is empty."""
    try:
        folder.rmdir()
    except OSError:  # not empty, or missing
        return
    durable.fsync_dir(folder.parent)


def write_verified(snapshot: SnapshotLayout, record: VerifiedRecord) -> None:
    """Replace the snapshot's verified record."""
    durable.replace(snapshot.verified, record.encode(), durable.READ_ONLY_MODE)


def _has_manifest(snapshot: SnapshotLayout, data: bytes) -> bool:
    try:
        return read_plain(snapshot.manifest) == data
    except (FileNotFoundError, NotADirectoryError, NotAPlainFile):
        return False


def _build(
    layout: Layout,
    snapshot: SnapshotLayout,
    manifest: Manifest,
    data: bytes,
    verified_at: str,
    recorded: Mapping[str, VerifiedFile],
) -> tuple[Path, ...]:
    """Build the tree of a snapshot, not durable; return its folders, each after its parent."""
    top = snapshot.path
    inside = (top, snapshot.manifest.parent, *(top / folder for folder in manifest.list_folders()))
    for folder in inside:
        folder.mkdir()
        folder.chmod(durable.PUBLIC_DIR_MODE)
    record = {}
    for entry in manifest.files:
        path = top / entry.path
        os.link(layout.blob(entry.sha256), path, follow_symlinks=False)
        if (found := os.lstat(path)).st_mode & durable.READ_ONLY_MODE != durable.READ_ONLY_MODE:  # closed by hand
            path.chmod(durable.READ_ONLY_MODE)
        hashed_at = min(verified_at, timestamp(found.st_mtime))  # a blob from before was hashed when it was written
        seen = recorded.get(entry.path)
        if seen is not None and seen.fits(found):
            hashed_at = seen.verified_at
        record[entry.path] = VerifiedFile.of(found, hashed_at, verity.digest(path))
    durable.write_unsynced(snapshot.manifest, data, durable.READ_ONLY_MODE)
    durable.write_unsynced(snapshot.verified, VerifiedRecord(record).encode(), durable.READ_ONLY_MODE)
    durable.write_unsynced(snapshot.lease, b"", durable.READ_ONLY_MODE)
    return inside
