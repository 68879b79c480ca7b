"""The bytes of a file that is in Git itself: a pack with one blob, inflated as it is read.

Law: memory does not grow with the file. The bytes are those of the id that was asked for, or an error comes before the
end; the size is the server's word until then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack

from cached.contract.errors import DigestMismatch, HoldfastError, InvalidManifest, Permanent, Transient
from cached.contract.manifest import check_size
from cached.sources.git.pack import BLOB, PackReader
from cached.sources.git.remote import Remote
from cached.transport.connection.cancel import Cancellation

_SEND_AGAIN = "it is fetched again; if it goes on, `git fsck` at the host tells what is broken"


class GitBlobStream:
    """The bytes of the blob `oid` in order. The constructor asks for it; both raise `HoldfastError`. `expected_size`:
    of a listing, None where that had none."""

    def __init__(self, remote: Remote, oid: str, expected_size: int | None, cancellation: Cancellation) -> None:
        self._stack = ExitStack()
        self._rest = memoryview(b"")
        try:
            pack = self._stack.enter_context(remote.pack([oid], (), cancellation))
            self._pieces = _pieces(pack, oid, expected_size, remote.where)
        except BaseException as error:
            self.close()
            if not isinstance(error, HoldfastError):
                raise
            if error.code != "not_found" or not isinstance(error.__cause__, Permanent):
                raise
            problem = f"{error.message}, which was listed"
            raise Transient("source_changed", problem, "the revision is resolved again") from error

    def readinto(self, view: memoryview) -> int:
        """Fill `view` unless the end comes first; return the bytes, 0 only at the clean end."""
        filled = 0
        while filled < len(view):
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            count = min(len(view) - filled, len(self._rest))
            view[filled : filled + count] = self._rest[:count]
            self._rest = self._rest[count:]
            filled += count
        return filled

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._stack.close()


def _pieces(pack: PackReader, oid: str, expected_size: int | None, where: str) -> Iterator[bytes]:
    count = pack.begin()
    entry = pack.next_entry() if count else None
    if entry is None or count != 1 or entry.kind != BLOB:
        raise pack.bad(f"{count} objects where one file was asked for")
    if expected_size not in (None, entry.size):
        raise pack.bad(f"a file of {entry.size} bytes where one of {expected_size} was listed")
    try:
        check_size(oid, entry.size)
    except InvalidManifest as error:
        raise pack.bad("a file of an absurd size") from error
    digest = hashlib.sha1(b"blob %d\0" % entry.size, usedforsecurity=False)
    for piece in pack.inflate(entry.size):
        digest.update(piece)
        yield piece
    if digest.hexdigest() != oid:
        raise DigestMismatch(f"{where}: git blob id", oid, digest.hexdigest(), _SEND_AGAIN)
