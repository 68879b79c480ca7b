"""A local file (also NFS or a mounted volume) with the interface of an HTTP body.

Law: reads only; detects a file that changed since its listing, before and after each range. A link or a pipe in its
place is neither followed nor waited for.
"""

from __future__ import annotations

import errno
import os

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.program import limits
from cached.contract.program.plain_files import READ_FLAGS
from cached.transport.target import LocalTarget, local_validator


class LocalBody:
    """`length` bytes of a file from `start`. The constructor and `readinto` raise `HoldfastError`."""

    def __init__(self, target: LocalTarget, offset: int, length: int | None) -> None:
        try:
            self.descriptor = os.open(target.path, READ_FLAGS)
        except OSError as error:
            raise _local_error(error, target) from error
        self._target = target
        self._validator = target.validator
        try:
            found = self.check_unchanged()
        except HoldfastError:
            self.close()
            raise
        self.start = offset
        self.total: int | None = found.st_size
        self.length: int | None = found.st_size - offset if length is None else length
        self._position = offset
        self._end = offset + self.length
        os.posix_fadvise(self.descriptor, offset, self.length, os.POSIX_FADV_SEQUENTIAL)

    def readinto(self, view: memoryview) -> int:
        """Fill `view` unless the range ends first; return the number of bytes read, 0 at the end."""
        wanted = min(len(view), self._end - self._position)
        filled = 0
        while filled < wanted:
            try:
                count = os.preadv(self.descriptor, [view[filled:wanted]], self._position)
            except OSError as error:
                raise _local_error(error, self._target) from error
            if count == 0:
                problem = f"{self._target.path}: ended at byte {self._position}, expected {self._end}"
                raise Transient("bad_response", problem, "")
            filled += count
            self._position += count
        if self._position == self._end:
            self.check_unchanged()  # nor while it was read
        return filled

    @property
    def received(self) -> int:
        """The number of bytes read so far, also by a `readinto` that raised."""
        return self._position - self.start

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> LocalBody:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_unchanged(self) -> os.stat_result:
        """Return the open file's stat; raises `HoldfastError` if it differs from the listing or the first call."""
        try:
            found = os.fstat(self.descriptor)
        except OSError as error:
            raise _local_error(error, self._target) from error
        self._validator = self._validator or local_validator(found)
        if local_validator(found) != self._validator:
            raise _changed(self._target, f"expected {self._validator}, found {local_validator(found)}")
        return found


def _changed(target: LocalTarget, how: str) -> Transient:
    problem = f"{target.path}: changed since it was listed ({how})"
    return Transient("source_changed", problem, "publish a changed model as a new version")


def _local_error(error: OSError, target: LocalTarget) -> HoldfastError:
    if isinstance(error, FileNotFoundError):
        return Permanent("not_found", f"{target.path}: no such file", "check the source's path and its mount")
    if isinstance(error, PermissionError):
        return Permanent("forbidden", f"{target.path}: {error.strerror}", "let the daemon's user read the source")
    if error.errno == errno.ELOOP:
        return _changed(target, "it is a symlink now")
    short = limits.find_limit_error(error, f"opening {target.path}")
    if short is not None:
        return short
    return Transient("read", f"{target.path}: {error.strerror or error}", "check the file system the source is on")
