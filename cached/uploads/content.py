"""Read a folder as a version: its files, their sha256, the manifest.

Law: reads only. What is left out is named, what cannot be published is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import Permanent
from cached.contract.manifest import MANIFEST_NAME, RESERVED, FileEntry, Manifest
from cached.contract.verify import hash_file
from cached.sources.tree import LOST_AND_FOUND, PlainFile, file_error, plain_files
from cached.uploads.base import Progress, Upload


@dataclass(frozen=True, slots=True)
class Content:
    """A folder's manifest, and where each of its files is read."""

    manifest: Manifest
    uploads: tuple[Upload, ...]


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a folder that will be published, and the names at its top that will not."""

    files: tuple[PlainFile, ...]
    left_out: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def look_through(base: Path) -> Folder:
    """List what there is to publish. Raises `Permanent` for an empty folder and for what is no content."""
    files = tuple(file for file in plain_files(base) if file.path != MANIFEST_NAME)
    if not files:
        raise Permanent("empty", f"{base}: expected files to publish, found none", "name the model's folder")
    left_out = tuple(name for name in (MANIFEST_NAME, RESERVED, LOST_AND_FOUND) if (base / name).exists())
    return Folder(files, left_out)


def hash_all(files: Sequence[PlainFile], threads: int, progress: Progress) -> Content:
    """Hash the files with `threads` threads, largest first, and build the manifest."""

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
