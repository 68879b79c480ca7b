"""Read a file to upload, part by part, and detect changes since it was hashed.

Law: sequential, bounded reads; the reading thread hashes. Never follows a symlink, nor waits for a pipe that took a
file's place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from cached.contract.errors import Permanent
from cached.contract.program.plain_files import READ_FLAGS
from cached.publish.destination import PART_BYTES, Upload
from cached.sources.local.tree import file_error


def wrong_bytes(where: str, expected: str, found: str) -> Permanent:
    """Return the error for a destination that has stored other bytes than were sent."""
    return Permanent(
        "stored_wrong",
        f"{where}: sent bytes of sha256 {expected}, the destination has stored sha256 {found}; no manifest was written",
        "publish again; if it goes on, the disk, the store or a proxy before it changes what it is given",
    )


class WrongSum(Exception):
    """Control flow: the destination's own checksum is of other bytes than were sent."""


def unproven(where: str, expected: str) -> Permanent:
    """Return the error for a destination whose own checksum is not that of the bytes that were sent."""
    return Permanent(
        "stored_wrong",
        f"{where}: sent bytes of sha256 {expected}, the destination's own checksum is of other bytes; no manifest was "
        "written",
        "publish again; if it goes on, the store or a proxy before it changes what it is given",
    )


class CheckedReader:
    """One pass over a file's bytes; `finish()` checks them against the manifest."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._sha = hashlib.sha256()
        self._left = upload.entry.size  # for `read_to_end`
        try:
            self._descriptor = os.open(upload.real, READ_FLAGS)
        except OSError as error:
            raise file_error(error, upload.real) from error

    def read(self, length: int) -> bytes:
        """Return the next `length` bytes, after hashing them. Raises `Permanent` if the file ends before."""
        data = self._read(length)
        while len(data) < length and (more := self._read(length - len(data))):
            data += more
        if len(data) < length:
            raise self._changed("it is shorter now")
        self._sha.update(data)
        return data

    def read_to_end(self, length: int) -> bytes:
        """Return the next `length` bytes, and at the last ones do what `finish` does. Raises as both do."""
        data = self.read(length)
        self._left -= len(data)
        if self._left == 0:
            self.finish()
        return data

    def read_parts(self, part_bytes: int = PART_BYTES) -> Iterator[bytes]:
        """Yield the parts of the whole file, each of `part_bytes` but the last one. Raises as `read`, and at the end as
        `finish`: what was yielded says nothing of the manifest's file before."""
        left = self._upload.entry.size
        while left:
            part = self.read(min(part_bytes, left))
            left -= len(part)
            yield part
        self.finish()

    def finish(self) -> None:
        """Raise `Permanent` unless the whole file was read and has the manifest's sha256."""
        if self._read(1):
            raise self._changed("it is longer now")
        if self._sha.hexdigest() != self._upload.entry.sha256:
            raise self._changed(f"expected sha256 {self._upload.entry.sha256}, found {self._sha.hexdigest()}")

    def _read(self, length: int) -> bytes:
        try:
            return os.read(self._descriptor, length)
        except OSError as error:
            raise file_error(error, self._upload.real) from error

    def _changed(self, how: str) -> Permanent:
        return Permanent(
            "changed_while_publishing",
            f"{self._upload.real}: changed after it was hashed: {how}; no manifest was written",
            "publish again once nothing writes to the folder",
        )

    def __enter__(self) -> CheckedReader:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._descriptor)
