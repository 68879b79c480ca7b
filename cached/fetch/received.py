"""Blobs that a client sends over a connection, one after the other, in place of a source.

Law: blocking, on a thread of its own. Each blob is hashed as it is written, and committed only with the sha256 that it
was announced as; its space was reserved before. Small blobs are committed in groups, as those of a fetch are.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping

from cached.contract.archive.import_stream import DONE, LineReader
from cached.contract.digest import is_hex
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent
from cached.contract.layout import ingest_id
from cached.fetch.attempt import AttemptResources
from cached.fetch.blob import Verified
from cached.fetch.downloads import DownloadSpace
from cached.fetch.small_attempt import SMALL_BYTES
from cached.store.blob import blobs
from cached.store.blob.group_commit import PendingBlob, read_back
from cached.store.blob.ingest import Ingest, IngestKey, allocated_bytes, forget
from cached.store.disk import durable
from cached.store.disk.verity import seal

_KIND = "import"  # the label `source` of metrics
_REMEDY = "the archive is damaged: copy it again, or export it again with `holdfast export`"


def received_id(sha256: str, transfer: str) -> str:
    """Return the id of the partial blob of a blob that a client sends in one `transfer`: not that of a download of the
    same blob, or of another client's."""
    return ingest_id(_KIND, sha256, transfer)


class ReceivedBlobs:
    """Receives the blobs `sizes` of one `transfer`, bytes by sha256, each into its one of `spaces`, whose bytes are
    reserved. `count` is called with the bytes of each piece."""

    def __init__(
        self,
        resources: AttemptResources,
        transfer: str,
        sizes: Mapping[str, int],
        spaces: Mapping[str, DownloadSpace],
        count: Callable[[int], None],
    ) -> None:
        self._resources = resources
        self._transfer = transfer
        self._waiting = dict(sizes)
        self._spaces = spaces
        self._count = count
        self._changed = threading.Condition()
        self._committing = 0
        self._failure: BaseException | None = None

    def receive(self, stream: LineReader) -> None:
        """Receive and commit all blobs, until the client says that it is done. Raises `HoldfastError` and OSError; of
        the blobs those that were committed stay, and nothing else."""
        try:
            while (line := stream.read_line(1024)) != DONE:
                size = self._waiting.pop(line, None) if is_hex(line) else None
                if size is None:
                    raise Permanent(
                        "bad_request", f"expected a needed blob, found {line[:80]!r}", "send what is needed"
                    )
                if size <= SMALL_BYTES:
                    self._receive_small(stream, line, size)
                else:
                    self._receive_large(stream, line, size)
        finally:
            self._wait_for_commits()
        if self._failure is not None:
            raise self._failure
        if self._waiting:
            raise Permanent("bad_request", f"{len(self._waiting)} blobs were not sent", "send all that are needed")

    def _receive_small(self, stream: LineReader, sha256: str, size: int) -> None:
        data = bytearray(size)
        self._fill(stream, memoryview(data))
        _compare(sha256, hashlib.sha256(data).hexdigest())
        temporary = durable.temporary_beside(self._resources.layout.ingest / "any")
        with durable.disk_errors(f"writing {temporary}"):
            durable.write_volatile(temporary, data, durable.READ_ONLY_MODE)
        with self._changed:
            self._committing += 1
        self._resources.group_commit.submit(PendingBlob(sha256, temporary, sha256, None, self._committed))

    def _committed(self, pending: PendingBlob, failure: BaseException | None) -> None:
        if pending.placed:
            size = blobs.size(self._resources.layout, pending.sha256) or 0
            self._spaces[pending.sha256].settle(Verified(pending.sha256, size, pending.fresh), 0)
        with self._changed:
            self._failure = self._failure or failure
            self._committing -= 1
            self._changed.notify()

    def _wait_for_commits(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._committing)

    def _receive_large(self, stream: LineReader, sha256: str, size: int) -> None:
        layout, id_ = self._resources.layout, received_id(sha256, self._transfer)
        ingest = Ingest(layout.ingest / id_, IngestKey(id_, "", size))
        try:
            self._spaces[sha256].grow(size)  # counts what the file system has allocated by now
            self._write(stream, ingest, sha256, size)
            finished = ingest.finish(size)
            if seal(finished, self._resources.sealing):
                read_back(sha256, finished, sha256, lambda _size: None)
            fresh = blobs.place(layout, finished, sha256)
        except BaseException:
            self._discard(ingest, sha256)
            raise
        self._spaces[sha256].settle(Verified(sha256, size, fresh), 0)
        if fresh:
            self._resources.notes.note(layout, [sha256])
        blobs.sync(layout, finished, sha256)
        forget(layout, id_)

    def _discard(self, ingest: Ingest, sha256: str) -> None:
        """Delete a partial blob; where the disk refuses that, the next sweep does it."""
        try:
            ingest.discard()
        except HoldfastError:
            ingest.close()
        self._spaces[sha256].settle(None, allocated_bytes(ingest.folder))

    def _write(self, stream: LineReader, ingest: Ingest, sha256: str, size: int) -> None:
        hasher, offset = hashlib.sha256(), 0
        with self._resources.buffers.lent() as buffer:
            while offset < size:
                piece = buffer[: min(len(buffer), size - offset)]
                self._fill(stream, piece)
                hasher.update(piece)
                ingest.write(buffer, len(piece), offset)
                offset += len(piece)
        _compare(sha256, hasher.hexdigest())

    def _fill(self, stream: LineReader, piece: memoryview) -> None:
        if self._failure is not None:
            raise self._failure
        self._count(len(piece))
        while piece:
            piece = piece[stream.read_into(piece) :]


def _compare(expected: str, found: str) -> None:
    if found != expected:
        raise DigestMismatch("sha256 of a file of the archive", expected, found, _REMEDY)
