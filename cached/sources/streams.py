"""The bytes of a file that a source has in memory: an empty one, for which HTTP has no range, or a small one.

Law: a `ByteStream`; asks no server.
"""

from __future__ import annotations


class BytesStream:
    """A stream of `data`."""

    def __init__(self, data: bytes = b"") -> None:
        self._rest = memoryview(data)

    def readinto(self, view: memoryview) -> int:
        """Fill `view` unless the end comes first; return the bytes."""
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """Do nothing."""
