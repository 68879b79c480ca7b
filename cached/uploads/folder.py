"""Publish into a folder: a local disk, NFS, a mounted volume.

Law: a file appears under its name only by rename, whole and fsynced; unfinished ones lie under `.holdfast/`, on the
same file system, and go when the publish is done.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.layout import TEMPORARY_PREFIX
from cached.contract.manifest import MANIFEST_NAME, PUBLISHING_NAME, RESERVED, FileEntry
from cached.contract.verify import hash_file
from cached.sources.tree import look_inside
from cached.store import durable
from cached.uploads.base import PART_BYTES, Progress, Upload
from cached.uploads.reading import CheckedReader

_FILE_MODE = 0o644
_FOLDER_MODE = 0o755


class FolderDestination:
    """A `Destination` in a folder, which is made where it is missing."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._deleting = threading.Lock()  # a folder that one deletion finds empty may be the one another is syncing

    @property
    def display(self) -> str:
        return self._base.as_uri()

    def refuse_inside(self, folder: Path) -> None:
        """Raise `Permanent` if this destination lies within `folder`: the next publish would publish it too."""
        inner, outer = Path(os.path.realpath(self._base)), Path(os.path.realpath(folder))
        if inner != outer and inner.is_relative_to(outer):
            raise Permanent("bad_destination", f"{inner} lies within {outer}", "publish to a folder outside of it")

    async def manifest(self) -> bytes | None:
        return await asyncio.to_thread(self._read_manifest)

    async def sizes(self, files: Sequence[FileEntry]) -> dict[str, int]:
        return await asyncio.to_thread(self._sizes, files)

    async def sha256(self, path: str) -> str | None:
        """Hash the file that is there: nothing else vouches for it."""
        return await asyncio.to_thread(self._hash, path)

    async def mark(self) -> None:
        await asyncio.to_thread(self._mark)

    async def withdraw(self) -> None:
        await asyncio.to_thread(self._unlink, self._base / MANIFEST_NAME)

    async def put(self, upload: Upload, progress: Progress) -> None:
        await asyncio.to_thread(self._copy, upload, progress)

    async def seal(self, manifest: bytes) -> None:
        await asyncio.to_thread(self._write, self._base / MANIFEST_NAME, manifest)

    async def delete(self, path: str) -> None:
        await asyncio.to_thread(self._delete, path)

    async def unmark(self) -> None:
        await asyncio.to_thread(self._unmark)

    async def aclose(self) -> None:
        """Nothing is held."""

    def _read_manifest(self) -> bytes | None:
        path = self._base / MANIFEST_NAME
        with _writing(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def _sizes(self, files: Sequence[FileEntry]) -> dict[str, int]:
        sizes = {}
        for entry in files:
            try:
                sizes[entry.path] = look_inside(self._base, entry.path).size
            except Permanent:  # missing, or not a plain file: then it is put there
                continue
        return sizes

    def _hash(self, path: str) -> str:
        real = look_inside(self._base, path).real
        with _writing(real):
            return hash_file(real)

    def _mark(self) -> None:
        self._make_folders(self._base / RESERVED)
        self._write(self._base / PUBLISHING_NAME, b"")

    def _write(self, path: Path, data: bytes) -> None:
        with _writing(path):
            durable.replace(path, data, _FILE_MODE)

    def _unlink(self, path: Path) -> None:
        with _writing(path):
            durable.unlink(path)

    def _copy(self, upload: Upload, progress: Progress) -> None:
        target = self._base / upload.entry.path
        temporary = self._base / RESERVED / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        self._make_folders(target.parent)
        with CheckedReader(upload) as reader, _writing(target):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
            try:
                for start in range(0, upload.entry.size, PART_BYTES):
                    data = reader.read(min(PART_BYTES, upload.entry.size - start))
                    _write_all(descriptor, data)
                    progress(len(data))
                reader.finish()
                os.fchmod(descriptor, _FILE_MODE)
                os.fsync(descriptor)
                durable.rename(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)

    def _make_folders(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            with _writing(each):
                durable.make_dir(each, _FOLDER_MODE)

    def _delete(self, path: str) -> None:
        with self._deleting:
            self._unlink(self._base / path)
            for folder in list((self._base / path).parents)[: path.count("/")]:
                try:
                    folder.rmdir()
                except OSError:  # not empty: something else lives there
                    return

    def _unmark(self) -> None:
        records = self._base / RESERVED
        with _writing(records):
            for left in records.glob(f"{TEMPORARY_PREFIX}*"):
                left.unlink(missing_ok=True)
            durable.unlink(self._base / PUBLISHING_NAME)
            if not os.listdir(records):
                records.rmdir()
                durable.fsync_dir(self._base)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _write_error(error, path) from error


def _write_error(error: OSError, path: Path) -> HoldfastError:
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Transient("no_space", f"{path}: the destination is full", "free space there, then publish again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Permanent("forbidden", f"{path}: {reason}", "let the user that publishes write there")
    if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG):
        return Permanent("bad_destination", f"{path}: {reason}", "remove what is in the way, or name another folder")
    return Transient("write", f"{path}: {reason}", "check the volume, or the NFS server behind it")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
