"""Load files into the page cache or drop them from it, and return the cached share.

Law: only the kernel's count decides: a row is warm or cold by the count right before it. The caches of the disk and of
a hypervisor can be neither dropped nor seen from here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from server.weights.host.page_cache import count_cached
from tests.support.page_cache import drop_pages

_BLOCK = 8 * 1024 * 1024
_TRIES = 3
_WARM, _COLD = 0.999, 0.001

_libc = ctypes.CDLL(None, use_errno=True)


def warm(files: Iterable[Path]) -> float:
    """Read the files until all pages are cached, three times at most; return the cached share."""
    files = tuple(files)
    share = 0.0
    for _ in range(_TRIES):
        _read_all(files)
        if (share := cached_share(files)) >= _WARM:
            break
    return share


def drop(files: Iterable[Path]) -> float:
    """Write the files back and drop their pages, unless mapped; return the share still cached."""
    files = tuple(files)
    share = 1.0
    for _ in range(_TRIES):
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            drop_pages(path)
        if (share := cached_share(files)) <= _COLD:
            break
    return share


def is_warm(share: float) -> bool:
    """Tell whether this share of pages counts as all of them."""
    return share >= _WARM


def is_cold(share: float) -> bool:
    """Tell whether this share of pages counts as none of them."""
    return share <= _COLD


def cached_share(files: Iterable[Path]) -> float:
    """Return the share of the files' pages that is in the page cache now."""
    cached = pages = 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            cached += _cached(descriptor, size)
            pages += -(-size // mmap.PAGESIZE)
        finally:
            os.close(descriptor)
    return cached / pages if pages else 1.0


def _cached(descriptor: int, size: int) -> int:
    try:
        return count_cached(descriptor, 0, size)
    except OSError:  # before Linux 6.5
        return _mincore(descriptor, size)


def _mincore(descriptor: int, size: int) -> int:
    if size == 0:
        return 0
    # Private and writable, since ctypes takes the address of a writable buffer only.
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        try:
            failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), flags)
        finally:
            del start  # the map cannot be closed while its address is held
        if failed:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    return int(np.count_nonzero(np.frombuffer(memoryview(flags), np.uint8) & 1))


def _read_all(files: tuple[Path, ...]) -> None:
    jobs = [(path, at) for path in files for at in range(0, path.stat().st_size, 8 * _BLOCK)]
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        list(pool.map(_read, jobs))


def _read(job: tuple[Path, int]) -> None:
    path, at = job
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        file.seek(at)
        for _ in range(8):
            if not file.readinto(buffer):
                return
