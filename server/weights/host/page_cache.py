"""Which bytes of a file are in the page cache. Law: reads at most one page, none ahead, and touches no mapping."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from contextlib import suppress

from server.weights.settings import PAGE

_CACHESTAT = 451  # the number on every architecture; Linux 6.5
# A file of overlayfs has no pages of its own: they belong to the file of the layer below. cachestat(2) then counts 0,
# cached or not (6.18); mincore(2) asks the file that is mapped, which is the layer's.
_OVERLAYFS_MAGIC = 0x794C7630  # statfs(2)
_COLD_FRACTION = 8  # mostly cached counts as cached: past the cache, those bytes would be read from disk again

# Of one request the kernel reads no more than the device's largest request or its readahead window, whichever is
# larger (force_page_cache_ra in mm/readahead.c), and drops the rest: 128 KiB to some MiB.
AHEAD = 512 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_MAP_FAILED = ctypes.c_void_p(-1).value


class PageCache:
    """The page cache of one open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # A descriptor of its own, set to random reads: a read of one page then reads no others ahead.
        self._probe = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):
            os.posix_fadvise(self._probe, 0, 0, os.POSIX_FADV_RANDOM)
        self._countable = True

    def is_cold(self, begin: int, end: int) -> bool:
        """Return whether next to nothing of these bytes is cached."""
        if self._countable:
            try:
                cached = count_cached(self._descriptor, begin, end)
            except OSError:
                # Older kernels lack the call; newer ones refuse it without write access to the file, for which
                # mincore(2) reports everything as cached.
                self._countable = False
            else:
                pages = -(-end // PAGE) - begin // PAGE
                return cached * _COLD_FRACTION <= pages
        return not self.is_resident(begin)

    def close(self) -> None:
        os.close(self._probe)

    def is_resident(self, offset: int) -> bool:
        """Return whether the page of this byte is cached; True where the file system cannot tell."""
        try:
            return bool(os.preadv(self._probe, [bytearray(1)], offset, os.RWF_NOWAIT))
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that always waits: use the cache
                return True
            raise


def read_ahead(descriptor: int, begin: int, end: int, more: Callable[[], bool] = lambda: True) -> None:
    """Have the kernel read these bytes into the cache, while `more` returns True; most reads have only started when
    this returns. Raises OSError where the file system cannot."""
    for at in range(begin, end, AHEAD):
        if not more():
            return
        os.posix_fadvise(descriptor, at, min(AHEAD, end - at), os.POSIX_FADV_WILLNEED)


def count_cached(descriptor: int, begin: int, end: int) -> int:
    """Return how many pages of these bytes are cached; raises OSError where the kernel does not tell.

    On overlayfs a file that this user neither owns nor may write counts as cached: mincore(2) tells others nothing.
    """
    if begin >= end:
        return 0
    if _is_on_overlayfs(descriptor):
        return _count_mapped(descriptor, begin, end)
    span = (ctypes.c_uint64 * 2)(begin, end - begin)
    found = (ctypes.c_uint64 * 5)()
    if _libc.syscall(_CACHESTAT, ctypes.c_uint(descriptor), ctypes.byref(span), ctypes.byref(found), 0) != 0:
        raise _last_error()
    return int(found[0])


def _is_on_overlayfs(descriptor: int) -> bool:
    status = (ctypes.c_long * 32)()  # struct statfs, 120 bytes on 64-bit machines, begins with the type
    if _libc.fstatfs(descriptor, ctypes.byref(status)) != 0:
        raise _last_error()
    return status[0] & 0xFFFFFFFF == _OVERLAYFS_MAGIC


def _count_mapped(descriptor: int, begin: int, end: int) -> int:
    low = begin - begin % PAGE
    pages = -(-(end - low) // PAGE)
    address = _libc.mmap(None, pages * PAGE, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, low)
    if address == _MAP_FAILED:
        raise _last_error()
    try:
        resident = ctypes.create_string_buffer(pages)
        if _libc.mincore(address, pages * PAGE, resident) != 0:
            raise _last_error()
        return sum(byte & 1 for byte in resident.raw)
    finally:
        _libc.munmap(address, pages * PAGE)


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
