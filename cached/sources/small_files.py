"""Small files of another source, read whole: the indexes that a resolver finds there.

Law: bounded, and read as the daemon reads a file: by the address that its source gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import Describing, Source
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import LocalTarget, StreamTarget, Target, local_validator

_MISSING = "not_found"


@dataclass(slots=True)
class SmallFiles:
    """The files of `source`, which the caller closes; `client` reads those at an HTTP address."""

    source: Source
    client: HttpClient
    listing: Listing | None = None  # of a source that cannot find files by their names

    async def find(self, paths: Sequence[str]) -> dict[str, RemoteFile]:
        """Return those of `paths` that are there. Raises as `Source.resolve`, or with the problem of one of them."""
        if isinstance(self.source, Describing):
            self.listing = await self.source.find(paths)
        elif self.listing is None:
            self.listing = await self.source.resolve()
        wanted, found = set(paths), {}
        for file in self.listing.files:
            if file.path not in wanted or (file.problem is not None and file.problem.code == _MISSING):
                continue
            if file.problem is not None:
                raise file.problem
            found[file.path] = file
        return found

    async def read(self, file: RemoteFile, limit_bytes: int) -> bytes:
        """Return the bytes of a file. Raises as `Source.locate`, and `Permanent` (`too_large`) beyond `limit_bytes`."""
        if file.size is not None and file.size > limit_bytes:
            raise self._too_large(file, limit_bytes)
        target = await self.source.locate(file)
        data = await call_in_thread(lambda cancellation: self._read(target, limit_bytes, cancellation))
        if len(data) > limit_bytes:
            raise self._too_large(file, limit_bytes)
        return data

    def _read(self, target: Target, limit_bytes: int, cancellation: Cancellation) -> bytes:
        if isinstance(target, LocalTarget):
            return _read_local(target, limit_bytes)
        if isinstance(target, StreamTarget):
            return _read_stream(target, limit_bytes, cancellation)
        return self.client.fetch(target, limit_bytes, cancellation).body

    def _too_large(self, file: RemoteFile, limit_bytes: int) -> HoldfastError:
        problem = f"{self.source.display}: expected at most {limit_bytes} bytes of {file.path[:200]!r}, found more"
        return Permanent("too_large", problem, "check that it is the index that it should be")


def _read_local(target: LocalTarget, limit_bytes: int) -> bytes:
    try:
        with open(target.path, "rb", buffering=0) as opened:
            if local_validator(target.path.stat()) != target.validator:
                problem = f"{target.path}: expected the file as it was listed, found another one"
                raise Transient("source_changed", problem, "it is listed and read again")
            return opened.read(limit_bytes + 1)
    except OSError as error:
        raise Transient("unreadable", f"{target.path}: {error.strerror}", "check the disk, and its rights") from error


def _read_stream(target: StreamTarget, limit_bytes: int, cancellation: Cancellation) -> bytes:
    stream = target.open(cancellation)
    try:
        data = bytearray()
        while len(data) <= limit_bytes:
            part = bytearray(64 * 1024)
            count = stream.readinto(memoryview(part))
            data += part[:count]
            if count < len(part):
                break
        return bytes(data)
    finally:
        stream.close()
