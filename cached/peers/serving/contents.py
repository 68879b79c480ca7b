"""What this node serves: ranges of committed blobs, sent by the kernel, and the manifests of its snapshots.

Law: read-only. A blob is served from its name in the store alone: a partial or quarantined one has none. What a range
brought into the page cache leaves it again: the memory is the models'.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import MAX_MANIFEST_BYTES
from cached.contract.program.plain_files import NotAPlainFile, open_plain, read_plain
from cached.peers import bundles
from cached.store.blob import blobs

CHUNK_BYTES = 4 * 1024 * 1024  # of a range: sent by one call, and asked about as one whether it is in the page cache
_RECORDS_BYTES = 256 * 1024  # of small blobs: read, then sent
_NO_PROBE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@dataclass(frozen=True, slots=True)
class OpenRange:
    """The bytes `[start, end)` of an open file of `size` bytes."""

    descriptor: int
    start: int
    end: int
    size: int


class Partials(Protocol):
    """The blobs that this node fetches now."""

    def find_checked(self, blob: str, start: int, end: int) -> int | None:
        """Return the size of a blob of which this node has the bytes `[start, end)`, checked; None if it has not."""

    def list_have(self, version: str) -> bytes | None:
        """Return the bitmap of the pieces of a version that this node has or fetches; None if it does neither."""

    def read_chain(self, version: str) -> bytes | None:
        """Return the chaining values of a version, None unless all are known here."""

    def want_digests(self, version: str) -> bool:
        """Tell the sha256 of the pieces of a version: a node cannot check them otherwise; return False for one that is
        not here."""


class NoPartials:
    """Of a node that serves committed blobs only."""

    def find_checked(self, blob: str, start: int, end: int) -> int | None:
        """Return None: nothing is fetched."""

    def list_have(self, version: str) -> bytes | None:
        """Return None: nothing is fetched."""

    def read_chain(self, version: str) -> bytes | None:
        """Return None: nothing is fetched."""

    def want_digests(self, version: str) -> bool:  # noqa: ARG002
        """Return False: nothing is fetched."""
        return False


class Contents:
    """The blobs and snapshots under a root, and the checked pieces of `partials`."""

    def __init__(self, layout: Layout, partials: Partials) -> None:
        self._layout = layout
        self._partials = partials

    def list_have(self, version: str) -> bytes | None:
        """Return the bitmap of the pieces of a version that this node fetches; None if it fetches no such version."""
        return self._partials.list_have(version)

    def read_chain(self, version: str) -> bytes | None:
        """Return the chaining values of a version that this node has or fetches; None unless all are known."""
        return self._partials.read_chain(version)

    def want_digests(self, version: str) -> bool:
        """Have the sha256 of a version's pieces told; return False for one that is not here."""
        return self._partials.want_digests(version)

    @contextlib.contextmanager
    def open_range(self, blob: str, start: int, end: int) -> Iterator[OpenRange | None]:
        """Open a committed blob (its sha256 as hex), at most to its end, or checked pieces of one that is fetched; None
        if they are not here. Raises OSError for a disk error."""
        size = self._partials.find_checked(blob, start, end)
        descriptor = _open_file(self._layout.blob(blob))
        if descriptor is not None:
            size = os.fstat(descriptor).st_size
        elif size is not None:  # it may have been committed in between: then its folder is gone, and it is asked again
            descriptor = _open_file(self._layout.ingest / blob / "data")
        if descriptor is None or size is None:
            yield None
            return
        try:
            yield OpenRange(descriptor, start, min(end, size), size) if start < size else None
        finally:
            os.close(descriptor)

    def has_snapshot(self, digest: Digest) -> bool:
        """Return whether the snapshot of a manifest is here."""
        return self._layout.public.snapshot(digest).manifest.is_file()

    def find_small(self, sha256s: Iterable[str]) -> list[tuple[str, int]]:
        """Return those of these blobs that are here and fit in one bundle, with their sizes in bytes."""
        sizes = ((sha256, blobs.size(self._layout, sha256)) for sha256 in sha256s)
        return list(bundles.fill((sha256, size) for sha256, size in sizes if size is not None))

    def read_small(self, found: Iterable[tuple[str, int]]) -> Iterator[tuple[bytes, int]]:
        """Yield the records of a bundle of these blobs, many at a time, and how many bytes of blobs are in them. Raises
        OSError where one of them is gone. Read, not sent by sendfile(2): for most of them the calls cost more than the
        copy, and each small write would be a packet."""
        records, size = bytearray(), 0
        for blob, length in found:
            data = read_plain(self._layout.blob(blob))
            if len(data) != length:
                raise OSError(errno.EIO, "the blob has another size now")
            records += bundles.encode_record(blob, length) + data
            size += length
            if len(records) >= _RECORDS_BYTES:
                yield bytes(records), size
                records, size = bytearray(), 0
        if records:
            yield bytes(records), size

    def read_manifest(self, digest: Digest) -> bytes | None:
        """Return the canonical bytes of a snapshot's manifest; None if it is not here, or is not what its name says."""
        try:
            with open(open_plain(self._layout.public.snapshot(digest).manifest), "rb") as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, NotAPlainFile):
            return None
        return data if sha256(data).hexdigest() == digest.hex else None


def _open_file(path: Path) -> int | None:
    """Open a regular file; None if it is none, or not there."""
    try:
        return open_plain(path)
    except (FileNotFoundError, NotADirectoryError, NotAPlainFile):
        return None


def send_chunk(connection: socket.socket, opened: OpenRange, offset: int, length: int) -> None:
    """Send bytes of an open range by sendfile(2), on a blocking socket with the kernel's own timeout. Raises OSError:
    of the connection (BlockingIOError: the client does not read), of the disk, or EIO where the file has become
    shorter."""
    while length > 0:
        sent = os.sendfile(connection.fileno(), opened.descriptor, offset, length)
        if sent == 0:
            raise OSError(errno.EIO, "the blob ended early")
        offset += sent
        length -= sent


class PageCacheManners:
    """Drops the chunks of a range from the page cache that were not in it when this began."""

    def __init__(self, opened: OpenRange) -> None:
        self._opened = opened
        # A probe that finds nothing starts readahead (seen on Linux 6.18), which would answer the next one.
        os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._foreign = [at for at in range(opened.start, opened.end, CHUNK_BYTES) if _is_cached(opened.descriptor, at)]
        os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def drop_behind(self) -> None:
        """Drop what this range brought in; pages that a pod maps stay."""
        kept = set(self._foreign)
        for at in range(self._opened.start, self._opened.end, CHUNK_BYTES):
            if at not in kept:
                length = min(CHUNK_BYTES, self._opened.end - at)
                os.posix_fadvise(self._opened.descriptor, at, length, os.POSIX_FADV_DONTNEED)


def _is_cached(descriptor: int, offset: int) -> bool:
    """Return whether the page at `offset` is in the page cache; also where the file system cannot tell (preadv2(2))."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_PROBE:
            return True
        raise
