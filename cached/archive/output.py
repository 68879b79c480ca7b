"""The file that an export writes: nothing of it is visible before it is whole.

Law: a regular file, at the end of the symlinks to it, appears by one rename of a synced one, which has no name before
where the file system can do that (O_TMPFILE), so that a killed export leaves nothing. Devices, pipes and standard
output are written as they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent, Transient

STANDARD = "-"
_NO_NAMELESS = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS})  # open(2)


class ArchiveOutput:
    """A destination of bytes: `write` them all, in order."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self.written = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`. Raises `HoldfastError`."""
        view = memoryview(data)
        while view:
            try:
                done = os.write(self._descriptor, view)
            except OSError as error:
                raise write_error(error, self._name) from error
            self.written += done
            view = view[done:]


@contextlib.contextmanager
def open_output(target: str, size: int) -> Iterator[ArchiveOutput]:
    """Yield the output for `target`, a path or `-`; at the end of the block the file gets its name. After an error in
    the block nothing of it stays. `size`: the bytes to be written. Raises `HoldfastError`."""
    if target == STANDARD:
        yield ArchiveOutput(1, "standard output")
        return
    path = Path(os.path.realpath(target))  # a rename over /dev/stdout would replace it for the whole machine
    try:
        kind = stat.S_IFMT(os.stat(target).st_mode)
    except OSError:
        kind = 0  # it is not there: opening its folder says what is wrong
    if kind == stat.S_IFDIR:
        raise Permanent(
            "is_a_folder", f"expected a file to write, found the folder {path}", f"name a file: {path}/NAME.tar"
        )
    if kind not in (0, stat.S_IFREG):
        with _opened(Path(target)) as descriptor:  # of a pipe among /dev/fd the real path is none
            yield ArchiveOutput(descriptor, target)
        return
    with _replacing(path, size) as descriptor:
        yield ArchiveOutput(descriptor, str(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise write_error(error, str(path)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _replacing(path: Path, size: int) -> Iterator[int]:
    temporary = path.parent / f".{path.name[:200]}.{secrets.token_hex(4)}.part"
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise write_error(error, str(path.parent)) from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, folder)
        try:
            descriptor, is_nameless = _create(temporary)
            stack.callback(os.close, descriptor)
            if not is_nameless:
                stack.callback(_remove, temporary)  # after the rename it is not there any more
            _require_space(descriptor, size, path)
            yield descriptor
            os.fsync(descriptor)
            if is_nameless:
                # With a folder's descriptor: without one Python calls link(2), which does not follow the symlink.
                os.link(f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=folder, follow_symlinks=True)
                stack.callback(_remove, temporary)
            os.rename(temporary, path)
            os.fsync(folder)
        except OSError as error:
            raise write_error(error, str(path)) from error


def _create(temporary: Path) -> tuple[int, bool]:
    """Return the descriptor of a new file, and whether it has no name."""
    try:
        return os.open(temporary.parent, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o644), True
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), False


def _require_space(descriptor: int, size: int, path: Path) -> None:
    space = os.fstatvfs(descriptor)
    free = space.f_bavail * space.f_frsize
    if size > free:
        raise Transient(
            "no_space",
            f"{path}: {size} bytes are to be written, its file system has {free} free",
            "free space there, name another file, or write to `-` and pipe it elsewhere",
        )


def _remove(temporary: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()


def write_error(error: OSError, name: str) -> HoldfastError:
    """Return the error of a failed write to `name`."""
    if error.errno == errno.EPIPE:
        return Transient("no_reader", f"{name}: its reader ended before the archive did", "see why, and export again")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Transient("no_space", f"{name}: the disk is full", "free space there, or name another file")
    return Permanent("cannot_write", f"{name}: {error.strerror}", "name a file in a folder that you may write to")
