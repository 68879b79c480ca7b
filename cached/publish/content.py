"""Read a folder as a version: its files, its golden predictions, their sha256, the manifest.

Law: reads only. Excluded files are listed; files that cannot be published are refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import Permanent
from cached.contract.golden import GOLDEN_NAME
from cached.contract.manifest import MANIFEST_NAME, RESERVED, FileEntry, Manifest
from cached.contract.verify import hash_file
from cached.core.filters import is_clutter
from cached.publish.destination import Progress, Upload
from cached.publish.usable import check_golden, refuse_unusable
from cached.sources.local.tree import PlainFile, file_error, plain_files


@dataclass(frozen=True, slots=True)
class Content:
    """A folder's manifest, and the path of each of its files."""

    manifest: Manifest
    uploads: tuple[Upload, ...]


def list_folder(base: Path, golden: Path | None) -> tuple[tuple[PlainFile, ...], list[tuple[str, str]]]:
    """Return the files of a folder to publish, with `golden`, if given, as its golden predictions in place of its own,
    and the excluded names, each with the reason. Raises `HoldfastError` for an empty folder and unusable files. Files
    of version control, caches and desktops are excluded: two downloads of one commit differ in them."""
    clutter: set[str] = set()

    def is_left_out(path: str) -> bool:
        if is_clutter(path):
            clutter.add(_root_of_clutter(path))
            return True
        return path == MANIFEST_NAME

    files = plain_files(base, is_left_out)
    if not files:
        raise Permanent("empty", f"{base}: expected files to publish, found none", "name the model's folder")
    left_out = [(name, "a record of Holdfast's own") for name in (MANIFEST_NAME, RESERVED) if (base / name).exists()]
    left_out += [(name, "no part of a model") for name in sorted(clutter)]
    refuse_unusable(files)
    if golden is not None:
        others = (file for file in files if file.path != GOLDEN_NAME)
        files = tuple(sorted((*others, _named_golden(golden)), key=lambda file: file.path))
    for file in files:
        if file.path == GOLDEN_NAME:
            check_golden(file)
    return files, left_out


def _named_golden(path: Path) -> PlainFile:
    try:
        return PlainFile(GOLDEN_NAME, path, os.stat(path).st_size, validator="")
    except OSError as error:
        raise file_error(error, path) from error


def _root_of_clutter(path: str) -> str:
    """Return the topmost folder that is clutter, or the file."""
    parts = path.split("/")
    folders = ["/".join(parts[:end]) for end in range(1, len(parts))]
    return next((folder for folder in folders if is_clutter(f"{folder}/x")), path)


def hash_all(files: Sequence[PlainFile], threads: int, progress: Progress) -> Content:
    """Hash the files with `threads` threads, largest first, and return the manifest; raises `HoldfastError`."""

    def hash_one(file: PlainFile) -> Upload:
        try:
            return Upload(FileEntry(file.path, hash_file(file.real, progress), file.size), file.real)
        except OSError as error:
            raise file_error(error, file.real) from error

    with ThreadPoolExecutor(threads, thread_name_prefix="hash") as pool:
        largest_first = sorted(files, key=lambda file: file.size, reverse=True)
        try:
            uploads = list(pool.map(hash_one, largest_first))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Content(Manifest.build(upload.entry for upload in uploads), tuple(uploads))
