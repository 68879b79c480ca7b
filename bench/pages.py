"""Put files into the page cache or out of it, and say what came of it.

Law: believes the kernel's count and nothing else: a row is called warm or cold only for what was found right before it.
The disk's own cache, and a hypervisor's, are beyond what can be dropped or seen from here.
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

_BLOCK = 8 * 1024 * 1024
_TRIES = 3
_WARM, _COLD = 0.999, 0.001

_libc = ctypes.CDLL(None, use_errno=True)


def warm(files: Iterable[Path]) -> float:
    """Read the files until all of them are cached, three times at most; returns the share of them that is."""
    files = tuple(files)
    share = 0.0
    for _ in range(_TRIES):
        _read_all(files)
        if (share := cached_share(files)) >= _WARM:
            break
    return share


def drop(files: Iterable[Path]) -> float:
    """Write the files back and drop their pages, which works only while nobody maps them; returns what is left."""
    files = tuple(files)
    share = 1.0
    for _ in range(_TRIES):
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        if (share := cached_share(files)) <= _COLD:
            break
    return share


def is_warm(share: float) -> bool:
    """Whether this share of pages is all of them, as near as matters."""
    return share >= _WARM


def is_cold(share: float) -> bool:
    """Whether this share of pages is none of them, as near as matters."""
    return share <= _COLD


def cached_share(files: Iterable[Path]) -> float:
    """The share of the files' pages that is in the page cache now."""
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
    # Private and writable only for its address to be had: ctypes wants a writable buffer.
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
