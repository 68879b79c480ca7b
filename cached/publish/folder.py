"""Publish into a folder: a local disk, NFS, a mounted volume.

Law: a file appears under its name only by rename, complete, fsynced and read back from the disk; temporary files are
under `.holdfast/`, on the same file system, and deleted at the end of the publish. A publisher holds flock LOCK_EX on
the mark: the kernel drops it when the process dies, so a locked mark has a live publisher, also across NFS clients.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cached.contract.errors import Permanent, Transient
from cached.contract.layout import TEMPORARY_PREFIX
from cached.contract.manifest import CHAINS_NAME, MANIFEST_NAME, PUBLISHING_NAME, REPLACED_NAME, RESERVED, FileEntry
from cached.contract.program import limits
from cached.contract.snapshot.verify import hash_file
from cached.publish.destination import PART_BYTES, Progress, Say, Stored, Upload
from cached.publish.mark import MAX_MARK_BYTES, Mark, another_publisher, describe_publisher
from cached.publish.reading import CheckedReader, wrong_bytes
from cached.sources.local.tree import find_inside
from cached.store.disk import durable

_FILE_MODE = 0o644
_FOLDER_MODE = 0o755


class FolderDestination:
    """A `Destination` in a folder, which is created if it is missing."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._held: tuple[Mark, int] | None = None  # ours, and its locked descriptor
        self._deleting = threading.Lock()  # one deletion may remove an empty folder while another one syncs it

    @property
    def display(self) -> str:
        return self._base.as_uri()

    def refuse_inside(self, folder: Path) -> None:
        """Raise `Permanent` if this destination lies within `folder`: the next publish would publish it too."""
        inner, outer = Path(os.path.realpath(self._base)), Path(os.path.realpath(folder))
        if inner != outer and inner.is_relative_to(outer):
            raise Permanent("bad_destination", f"{inner} lies within {outer}", "publish to a folder outside of it")

    async def read_manifest(self) -> bytes | None:
        return await asyncio.to_thread(self._read, MANIFEST_NAME)

    async def list_files(self, files: Sequence[FileEntry]) -> dict[str, Stored]:
        return await asyncio.to_thread(self._listing, files)

    async def vouches_for(self, upload: Upload, stored: Stored) -> bool:
        """Hash the stored file: a folder has no checksums."""
        return stored.size == upload.entry.size and await self.get_sha256(upload.entry.path) == upload.entry.sha256

    async def get_sha256(self, path: str) -> str | None:
        return await asyncio.to_thread(self._hash, path)

    keeps_chains = True

    async def read_chains(self) -> bytes | None:
        return await asyncio.to_thread(self._read, CHAINS_NAME)

    async def write_chains(self, data: bytes) -> None:
        await asyncio.to_thread(self._write_record, CHAINS_NAME, data)

    async def claim(self, mark: Mark, say: Say) -> None:
        await asyncio.to_thread(self._claim, mark, say)

    async def is_marked(self) -> bool:
        return await asyncio.to_thread(os.path.lexists, self._base / PUBLISHING_NAME)

    async def keep_claim(self) -> None:
        await asyncio.to_thread(self._check_mark)

    async def read_replaced(self) -> bytes | None:
        return await asyncio.to_thread(self._read, REPLACED_NAME)

    async def keep_replaced(self, manifest: bytes) -> None:
        await asyncio.to_thread(self._write_record, REPLACED_NAME, manifest)

    async def withdraw(self) -> None:
        await self.delete(MANIFEST_NAME)

    async def put(self, upload: Upload, progress: Progress) -> Stored:
        return await asyncio.to_thread(self._copy, upload, progress)

    async def seal(self, manifest: bytes) -> None:
        await asyncio.to_thread(self._write_record, MANIFEST_NAME, manifest)

    async def delete(self, path: str) -> None:
        await asyncio.to_thread(self._delete, path)

    async def unmark(self) -> None:
        await asyncio.to_thread(self._unmark)

    async def give_up(self) -> None:
        """Release the lock, which ends the claim."""
        self._release()

    async def aclose(self) -> None:
        self._release()

    def _read(self, name: str) -> bytes | None:
        path = self._base / name
        with _translate_errors(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def _listing(self, files: Sequence[FileEntry]) -> dict[str, Stored]:
        found = {}
        for entry in files:
            try:
                found[entry.path] = self._stored(entry.path)
            except Permanent:  # missing, or not a plain file: it is uploaded
                continue
        return found

    def _stored(self, path: str) -> Stored:
        file = find_inside(self._base, path)
        with _translate_errors(file.real):
            # In steps of two seconds: a file system may show a finer time before it has rounded it.
            return Stored(file.size, str(os.stat(file.real).st_mtime_ns // 2_000_000_000))

    def _hash(self, path: str) -> str | None:
        try:
            real = find_inside(self._base, path).real
        except Permanent as error:
            if error.code != "not_found":
                raise
            return None
        with _translate_errors(real):
            _drop_cache(real)
            return hash_file(real)

    def _claim(self, mark: Mark, say: Say) -> None:
        """Lock the mark, which is the same file until it is deleted; then write `mark` into it."""
        path = self._base / PUBLISHING_NAME
        descriptor = None
        while descriptor is None:  # another publisher deleted it in between: try again
            self._make_folders(path.parent)
            descriptor = self._locked(path)
        self._held = mark, descriptor
        with _translate_errors(path):
            before = os.pread(descriptor, MAX_MARK_BYTES, 0)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, mark.encode(), 0)
            os.fsync(descriptor)
            durable.fsync_dir(path.parent)
        if before:
            say(f"taking over from a publish that did not end ({describe_publisher(Mark.parse(before))})")

    def _locked(self, path: Path) -> int | None:
        """Return the mark's locked descriptor, None if the mark or its folder was deleted during the call."""
        with _translate_errors(path):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
            except FileNotFoundError:
                return None
            try:
                self._lock(descriptor, path)
                if _is_at(path, descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            return None

    def _lock(self, descriptor: int, path: Path) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise another_publisher(self.display, Mark.parse(os.pread(descriptor, MAX_MARK_BYTES, 0))) from error
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise Permanent(
                    "no_locks",
                    f"{path}: the file system has no locks ({error.strerror}), which keep two publishers apart",
                    "mount it with locks (NFS: without `nolock`, its lock service reachable), or publish elsewhere",
                ) from error
            raise

    def _check_mark(self) -> None:
        assert self._held is not None
        mark, descriptor = self._held
        path = self._base / PUBLISHING_NAME
        with _translate_errors(path):
            if not _is_at(path, descriptor):
                raise another_publisher(self.display, Mark.parse(self._read(PUBLISHING_NAME) or b""))
            found = Mark.parse(os.pread(descriptor, MAX_MARK_BYTES, 0))
        if found != mark:
            raise another_publisher(self.display, found)

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held[1])

    def _write_record(self, name: str, data: bytes) -> None:
        path = self._base / name
        with _translate_errors(path):
            durable.replace(path, data, _FILE_MODE)

    def _copy(self, upload: Upload, progress: Progress) -> Stored:
        target = self._base / upload.entry.path
        temporary = self._base / RESERVED / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        self._make_folders(target.parent)
        with CheckedReader(upload) as reader, _translate_errors(target):
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
            try:
                for start in range(0, upload.entry.size, PART_BYTES):
                    data = reader.read(min(PART_BYTES, upload.entry.size - start))
                    durable.write_all(descriptor, data)
                    progress(len(data))
                reader.finish()
                os.fchmod(descriptor, _FILE_MODE)
                os.fsync(descriptor)
                _read_back(temporary, upload.entry, target)
                durable.rename(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        return self._stored(upload.entry.path)

    def _make_folders(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            with _translate_errors(each):
                durable.make_dir(each, _FOLDER_MODE)

    def _delete(self, path: str) -> None:
        target = self._base / path
        with self._deleting:
            with _translate_errors(target):
                durable.unlink(target)
            for folder in list(target.parents)[: path.count("/")]:
                try:
                    folder.rmdir()
                except OSError:  # not empty
                    return

    def _unmark(self) -> None:
        self._check_mark()
        records = self._base / RESERVED
        with _translate_errors(records):
            for left in records.glob(f"{TEMPORARY_PREFIX}*"):
                left.unlink(missing_ok=True)
            durable.unlink(self._base / PUBLISHING_NAME)
            if not os.listdir(records):
                records.rmdir()
                durable.fsync_dir(self._base)
        self._release()


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read_back(written: Path, entry: FileEntry, target: Path) -> None:
    """Hash the bytes on the disk, not those in memory."""
    _drop_cache(written)
    found = hash_file(written)
    if found != entry.sha256:
        raise wrong_bytes(str(target), entry.sha256, found)


def _drop_cache(path: Path) -> None:
    """Drop a file's page cache, so that the next read comes from the disk, or the server behind it."""
    with durable.opened(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Raise an OSError as our error, which names `path`."""
    try:
        yield
    except OSError as error:
        short = limits.find_limit_error(error, f"writing {path}")
        if short is not None:
            raise short from error
        problem = f"{path}: {error.strerror or type(error).__name__}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free space there, then publish again"
            raise Transient("no_space", f"{path}: the destination is full", remedy) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Permanent("forbidden", problem, "let the user that publishes write there") from error
        if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG):
            remedy = "remove what is in the way, or name another folder"
            raise Permanent("bad_destination", problem, remedy) from error
        raise Transient("write", problem, "check the volume, or the NFS server behind it") from error
