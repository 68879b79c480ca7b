"""Page-aligned buffers, made once and lent out: what bounds the daemon's memory whatever a model's size.

Law: anonymous mappings, because O_DIRECT asks for page alignment and `bytearray` does not promise it. Last in, first
out, so that only as many pages are ever touched as were needed at once.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class BufferPool:
    """`count` buffers of `size` bytes each."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self._free = [memoryview(mmap.mmap(-1, size)) for _ in range(count)]
        self._available = threading.Condition()

    def take(self) -> memoryview:
        """Borrow a buffer, waiting until one is free. Give it back with `give`."""
        with self._available:
            while not self._free:
                self._available.wait()
            return self._free.pop()

    def give(self, buffer: memoryview) -> None:
        """Return a borrowed buffer."""
        with self._available:
            self._free.append(buffer)
            self._available.notify()

    @contextmanager
    def lent(self) -> Iterator[memoryview]:
        """Borrow a buffer for a `with` block."""
        buffer = self.take()
        try:
            yield buffer
        finally:
            self.give(buffer)
