"""Read bytes of a weight file into memory: through the page cache where they are cached, past it where they are not.

Law: `preadv` only, never a mapping, so that a file that shrinks is an error and not a signal. Reads bypass the cache
only while no other process reads the file: of two that start together each finds the other's bytes in the cache, and
the disk reads each byte once. A shared lock on the file itself, which needs no write access, marks its readers.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import NamedTuple

from server.weights.errors import WeightsError
from server.weights.format.checkpoint import WeightFile
from server.weights.host.page_cache import PageCache, read_ahead
from server.weights.settings import PAGE, Io, LoaderSettings


class ReadBytes(NamedTuple):
    """Bytes read: how many were not in the cache, and how many bypassed it."""

    cold: int
    direct: int


class Reader:
    """One file of a load. Safe for several threads."""

    def __init__(self, file: WeightFile, settings: LoaderSettings) -> None:
        self.file = file
        self._cache = PageCache(file.descriptor)
        self._always = settings.io is Io.DIRECT
        direct = self._always or (settings.io is Io.AUTO and settings.local_readers == 1)
        self._direct: int | None = None
        if direct:
            with suppress(OSError):  # tmpfs of older kernels, some network and overlay file systems
                self._direct = os.open(f"/proc/self/fd/{file.descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        self._lock = _Presence(file.descriptor) if self._direct is not None and not self._always else None

    def read(self, view: memoryview, begin: int, end: int, slot: int) -> ReadBytes:
        """Read the bytes `begin` to `end` to `slot` in the view; `slot` is `begin` modulo the page size. May also write
        the pages around them in the view. Raises `Permanent` where the file is shorter."""
        cold = self._cache.is_cold(begin, end)
        if self._direct is not None and (cold or self._always) and (self._lock is None or self._lock.is_alone()):
            done = self._read_direct(self._direct, view, begin, end, slot)
        else:
            done = 0
            if cold:
                # All in one request: the kernel's own readahead requests a little at a time.
                with suppress(OSError):
                    read_ahead(self.file.descriptor, begin, end)
        read_exactly(self.file, view[slot + done : slot + end - begin], begin + done)
        return ReadBytes(end - begin if cold else 0, done)

    def close(self) -> None:
        self._cache.close()
        if self._lock is not None:
            self._lock.close()
        if self._direct is not None:
            os.close(self._direct)

    def _read_direct(self, descriptor: int, view: memoryview, begin: int, end: int, slot: int) -> int:
        """Return how many of the bytes were read; the caller reads the rest through the cache."""
        low, high = begin - begin % PAGE, -(-end // PAGE) * PAGE
        target = view[slot - begin % PAGE :][: high - low]
        done = 0
        while done < end - low:
            try:
                count = os.preadv(descriptor, [target[done:]], low + done)
            except OSError:  # a device with larger blocks, or a bad one: the buffered read succeeds, or reports why
                break
            done += count
            if count == 0 or done % PAGE:  # the end of the file, or a short read
                break
        return max(0, min(done, end - low) - begin % PAGE)


def read_exactly(file: WeightFile, view: memoryview, offset: int) -> None:
    """Fill `view` from byte `offset` of the file, through the cache; raises `Permanent` where the file is shorter."""
    while view:
        try:
            count = os.preadv(file.descriptor, [view], offset)
        except OSError as error:
            raise WeightsError(
                "unreadable",
                f"{file.path}: cannot be read at byte {offset}: {error.strerror}",
                "check the disk (the node's kernel log), and have the version fetched again",
            ) from error
        if count == 0:
            raise WeightsError(
                "weights_changed",
                f"{file.path}: expected {file.size} bytes, found its end at byte {offset}: "
                "it was truncated while it was loaded",
                "load it again, from a snapshot that no process writes to",
            )
        view, offset = view[count:], offset + count


class _Presence:
    """A shared lock on the file while it is read, and a check whether another process holds one.

    The check requests an exclusive lock, then a shared one again. The kernel releases the old lock first, so that two
    checks at once may both find another reader: then both use the cache, which is correct.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        self._share()

    def is_alone(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:  # another reader, or a file system without locks, where that is unknown
            return False
        finally:
            self._share()

    def close(self) -> None:
        os.close(self._descriptor)

    def _share(self) -> None:
        with suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
