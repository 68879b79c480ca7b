"""The modes of what pods read: any user may enter the folders and read the files of a snapshot.

Law: looks for the bits that reading needs, and no others: some file systems have modes of their own. Changes what was
published here only: a file is the blob, a folder no link, and in no link.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.store.disk import durable
from cached.store.version import snapshots

_log = logging.getLogger(__name__)

RECORDS = ("manifest.json", "verified.json", "lease")  # of a snapshot, under `.holdfast`


def is_open_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether this is a folder that any user may enter and list. Raises OSError where it is missing."""
    mode = os.lstat(path).st_mode
    return stat.S_ISDIR(mode) and mode & 0o555 == 0o555


def is_open_file(path: str | os.PathLike[str]) -> bool:
    """Return whether this is a file that any user may read. Raises OSError where it is missing."""
    mode = os.lstat(path).st_mode
    return stat.S_ISREG(mode) and mode & 0o444 == 0o444


def open_folders(parents: Iterable[Path]) -> None:
    """Let any user enter the folders in these; files and links in them are left alone. Raises OSError."""
    for parent in parents:
        with os.scandir(parent) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # an eviction of its last version
                    if entry.is_dir(follow_symlinks=False) and not is_open_folder(entry.path):
                        _open(entry.path, durable.PUBLIC_DIR_MODE)


def find_closed(layout: Layout, digest: Digest, manifest: Manifest) -> list[str]:
    """Return the paths of a snapshot's folders and files that some user may not read: a system call each. What is
    missing or replaced is none."""
    return [path for path, _, _ in _list_closed(layout, digest, manifest)]


def open_all(layout: Layout, refs: Collection[ModelRef], digest: Digest, manifest: Manifest) -> None:
    """Let any user read a version: its names' folders, and its snapshot with all files and records. Raises OSError."""
    snapshot = layout.public.snapshot(digest)
    folders = [*(layout.public.model_link(ref).parent for ref in refs), snapshot.path, snapshot.manifest.parent]
    for folder in folders:
        if os.path.lexists(folder) and stat.S_ISDIR(os.lstat(folder).st_mode) and not is_open_folder(folder):
            _open(os.fspath(folder), durable.PUBLIC_DIR_MODE)
    for name in RECORDS:
        path = snapshot.manifest.parent / name
        if os.path.lexists(path) and stat.S_ISREG(os.lstat(path).st_mode) and not is_open_file(path):
            _open(os.fspath(path), durable.READ_ONLY_MODE)
    for _, path_, mode in _list_closed(layout, digest, manifest):
        _open(path_, mode)


def _open(path: str, mode: int) -> None:
    _log.error(
        "%s: expected mode %o, found %o: pods could not read it", path, mode, stat.S_IMODE(os.lstat(path).st_mode)
    )
    Path(path).chmod(mode)


def _list_closed(layout: Layout, digest: Digest, manifest: Manifest) -> Iterator[tuple[str, str, int]]:
    """Yield the path in the snapshot, the path of what is to be changed, and its mode."""
    snapshot = layout.public.snapshot(digest)
    top, replaced = os.fspath(snapshot.path), set[str]()
    for folder in manifest.list_folders():  # each after its parent
        path = f"{top}/{folder}"
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if os.path.dirname(folder) in replaced or not stat.S_ISDIR(mode):
            replaced.add(folder)
        elif mode & 0o555 != 0o555:
            yield folder, path, durable.PUBLIC_DIR_MODE
    for entry in manifest.files:
        try:
            mode = os.lstat(f"{top}/{entry.path}").st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if mode & 0o444 != 0o444 and snapshots.is_blob(layout, snapshot, entry):
            yield entry.path, os.fspath(layout.blob(entry.sha256)), durable.READ_ONLY_MODE
