"""Page-aligned buffers, allocated once and reused, which bound the daemon's memory whatever a model's size.

Law: one anonymous mapping, because O_DIRECT requires page alignment and `bytearray` does not guarantee it; in huge
pages if the kernel has them, which saves a page table walk for every 4 KiB copied. Last in, first out, so that only as
many pages are touched as were in use at once. The kernel gets the pages back when nothing is fetched.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_HUGE_PAGE = 2 * 1024 * 1024


class BufferPool:
    """`count` buffers of `size` bytes each, a multiple of the page size."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self._count = count
        self._touched = False
        self._region = region = mmap.mmap(-1, count * size + _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages uses small ones
            region.madvise(mmap.MADV_HUGEPAGE)
        first = -ctypes.addressof(ctypes.c_char.from_buffer(region)) % _HUGE_PAGE
        whole = memoryview(region)
        self._free = [whole[at : at + size] for at in range(first, first + count * size, size)]
        self._available = threading.Condition()

    def take(self) -> memoryview:
        """Borrow a buffer, waiting until one is free. The caller returns it with `give`."""
        with self._available:
            while not self._free:
                self._available.wait()
            self._touched = True
            return self._free.pop()

    def give(self, buffer: memoryview) -> None:
        """Return a borrowed buffer."""
        with self._available:
            self._free.append(buffer)
            self._available.notify()

    @property
    def holds_pages(self) -> bool:
        """Whether buffers were lent since the last `release`."""
        return self._touched

    def release(self) -> None:
        """Give the pages of all buffers back to the kernel, unless one is lent; the next `take` gets zeroed ones."""
        with self._available:
            if len(self._free) == self._count:
                self._region.madvise(mmap.MADV_DONTNEED)
                self._touched = False

    @contextmanager
    def lent(self) -> Iterator[memoryview]:
        """Borrow a buffer for a `with` block."""
        buffer = self.take()
        try:
            yield buffer
        finally:
            self.give(buffer)
