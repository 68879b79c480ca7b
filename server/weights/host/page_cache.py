"""Which bytes of a file are in the page cache.

Law: asks and reads at most one page; changes nothing it can help.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress

from server.weights.settings import PAGE

_CACHESTAT = 451  # the number on every architecture; Linux 6.5
_COLD_FRACTION = 8  # mostly cached counts as cached: past the cache, those bytes would be read from disk again

# Of what is asked for at once the kernel reads no more than the device's largest request or its window for reading
# ahead, whichever is larger (force_page_cache_ra in mm/readahead.c), and drops the rest: 128 KiB to some MiB.
AHEAD = 512 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class PageCache:
    """Answers for one open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # A descriptor of its own, told that reads are random: a look at one page then reads no others ahead.
        self._probe = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):
            os.posix_fadvise(self._probe, 0, 0, os.POSIX_FADV_RANDOM)
        self._countable = True

    def cold(self, begin: int, end: int) -> bool:
        """Whether next to nothing of these bytes is cached."""
        if self._countable:
            try:
                cached = count_cached(self._descriptor, begin, end)
            except OSError:
                # Older kernels lack the call; newer ones refuse it to whoever may not write the file, and mincore(2)
                # tells those that everything is cached.
                self._countable = False
            else:
                pages = -(-end // PAGE) - begin // PAGE
                return cached * _COLD_FRACTION <= pages
        return not self.resident(begin)

    def close(self) -> None:
        os.close(self._probe)

    def resident(self, offset: int) -> bool:
        """Whether the page of this byte is cached; true too where the file system cannot say."""
        try:
            return bool(os.preadv(self._probe, [bytearray(1)], offset, os.RWF_NOWAIT))
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that always waits: through the cache
                return True
            raise


def read_ahead(descriptor: int, begin: int, end: int, more: Callable[[], bool] = lambda: True) -> None:
    """Have the kernel read these bytes into the cache, for as long as `more` says so; most are on their way only when
    this returns. Raises OSError where the file system cannot."""
    for at in range(begin, end, AHEAD):
        if not more():
            return
        os.posix_fadvise(descriptor, at, min(AHEAD, end - at), os.POSIX_FADV_WILLNEED)


def count_cached(descriptor: int, begin: int, end: int) -> int:
    """How many pages of these bytes are cached; raises OSError where the kernel does not say (cachestat(2))."""
    span = (ctypes.c_uint64 * 2)(begin, end - begin)
    found = (ctypes.c_uint64 * 5)()
    if _libc.syscall(_CACHESTAT, ctypes.c_uint(descriptor), ctypes.byref(span), ctypes.byref(found), 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found[0])
