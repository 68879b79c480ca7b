"""The kernel's watches on folders, inotify(7), read on the event loop: no thread waits for them.

Law: knows folders and events, not what they mean. Adding a watch asks the file system and may block; reading events
never does.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE = 0x8 | 0x10
IN_OPEN = 0x20
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ISDIR = 0x40000000
_IN_ONLYDIR, _IN_DONT_FOLLOW = 0x1000000, 0x2000000
_IN_CLOEXEC, _IN_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK

_HEAD = struct.Struct("iIII")  # wd, mask, cookie, len
_BUFFER = 64 * 1024
_MOST_WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")
_SHARE = 4  # of what the user may have: the kubelet and others have watches too


@dataclass(frozen=True, slots=True)
class InotifyEvent:
    """One event. `name`: of the entry in the watched folder, empty for the folder itself."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One inotify instance; close it. Raises OSError where the kernel gives none."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._check(self._libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK))

    def fileno(self) -> int:
        return self._descriptor

    def add(self, folder: str | Path, mask: int) -> int:
        """Watch a folder, no symlink; return the watch's number, which is the old one if it is watched already.
        Blocking. Raises OSError."""
        flags = mask | _IN_ONLYDIR | _IN_DONT_FOLLOW
        return self._check(self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), flags))

    def remove(self, watch: int) -> None:
        """End a watch. Without effect on one that ended with its folder."""
        self._libc.inotify_rm_watch(self._descriptor, watch)

    def read(self) -> list[InotifyEvent]:
        """Return the events since the last call; never waits."""
        found: list[InotifyEvent] = []
        while True:
            try:
                data = os.read(self._descriptor, _BUFFER)
            except BlockingIOError:
                return found
            offset = 0
            while offset < len(data):
                watch, mask, _, length = _HEAD.unpack_from(data, offset)
                offset += _HEAD.size
                name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
                offset += length
                found.append(InotifyEvent(watch, mask, name))

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _check(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


def count_affordable_watches() -> int:
    """Return how many watches this process may have without starving others of the same user."""
    try:
        return int(_MOST_WATCHES.read_text()) // _SHARE
    except (OSError, ValueError):
        return 0
