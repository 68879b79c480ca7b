"""A stream that a source makes, with the interface of an HTTP body.

Law: reads only, from the first byte to the end. A download that it breaks off begins again at the first byte.
"""

from __future__ import annotations

from cached.transport.connection.cancel import Cancellation
from cached.transport.target import StreamTarget


class StreamBody:
    """All bytes of a file, of unknown length until the end. The constructor and `readinto` raise `HoldfastError`."""

    start = 0
    length: int | None = None
    total: int | None = None

    def __init__(self, target: StreamTarget, cancellation: Cancellation) -> None:
        self._stream = target.open(cancellation)
        self._cancellation = cancellation
        self.received = 0

    def readinto(self, view: memoryview) -> int:
        """Fill `view` unless the stream ends first; return the number of bytes, 0 at the end."""
        filled = 0
        while filled < len(view):
            self._cancellation.check()
            count = self._stream.readinto(view[filled:])
            if count == 0:
                break
            filled += count
            self.received += count
        return filled

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def __enter__(self) -> StreamBody:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
