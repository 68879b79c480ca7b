"""Unpack an archive into a folder, which is then a published version: a source for `file://`, a web server, a bucket.

Law: the folder appears by one rename, whole, synced and with every byte checked.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from cached.archive.output import write_error
from cached.archive.reading import BUFFER_BYTES, Archive, ArchivedFile
from cached.contract.errors import Permanent
from cached.contract.manifest import MANIFEST_NAME
from cached.contract.program.progress import ByteProgress


def unpack(archive: Archive, folder: Path, progress: ByteProgress) -> None:
    """Unpack into `folder`, which may be there only if it is empty. Raises `HoldfastError`; nothing stays then."""
    folder = Path(os.path.realpath(folder))
    temporary = folder.parent / f".{folder.name[:200]}.{secrets.token_hex(4)}.part"
    try:
        if os.path.lexists(folder) and not (folder.is_dir() and not os.listdir(folder)):
            raise Permanent("already_there", f"expected no folder {folder}, or an empty one", "name another folder")
        if os.path.ismount(folder):
            raise Permanent(
                "already_there",
                f"{folder}: expected a folder that can be replaced at once, found a mounted volume's top",
                f"name a folder in it: --to {folder / 'NAME'}",
            )
        temporary.mkdir(mode=0o755)
        try:
            _fill(archive, temporary, progress)
            os.rename(temporary, folder)  # over an empty folder too (rename(2))
            _sync(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise write_error(error, str(folder)) from error


def _fill(archive: Archive, top: Path, progress: ByteProgress) -> None:
    folders = {top}
    for file in archive.files():
        path = top / file.entry.path
        for parent in reversed(path.relative_to(top).parents):
            if top / parent not in folders:
                (top / parent).mkdir(mode=0o755)
                folders.add(top / parent)
        _write(file, path, progress)
    archive.check_end()
    descriptor = os.open(top / MANIFEST_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb", buffering=0) as manifest:
        manifest.write(archive.manifest.canonical())
        os.fsync(descriptor)
    for folder in sorted(folders, reverse=True):
        _sync(folder)


def _write(file: ArchivedFile, path: Path, progress: ByteProgress) -> None:
    buffer = memoryview(bytearray(min(BUFFER_BYTES, max(1, file.entry.size))))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb", buffering=0) as opened:
        while count := file.read_into(buffer):
            left = buffer[:count]
            while left:
                left = left[opened.write(left) or 0 :]
            progress.add(count)
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
