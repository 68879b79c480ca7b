"""How a file is opened that another program may have replaced by something else.

Law: standard library only.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# Through no symlink, and without a wait for the writer of a pipe; whether it is a plain file the caller checks.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class NotAPlainFile(OSError):
    """A pipe, a folder, a link or a device in the place of a file: EUCLEAN, as of other damage."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EUCLEAN, "it is no plain file", os.fspath(path))


def open_plain(path: Path) -> int:
    """Return a descriptor to read a plain file. Raises `NotAPlainFile`, and OSError as `os.open`."""
    try:
        descriptor = os.open(path, READ_FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise NotAPlainFile(path) from error  # a symlink; a socket, or a device without its driver
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise NotAPlainFile(path)


def read_plain(path: Path) -> bytes:
    """Return the bytes of a plain file. Raises as `open_plain`."""
    with open(open_plain(path), "rb", buffering=0) as file:
        return file.readall()
