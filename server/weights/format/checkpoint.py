"""The files of a checkpoint, opened once: the same descriptors serve the header check and the reads.

Law: opens for reading only. A file that is replaced stays the one that was checked; a change in place is detected.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from server.weights.errors import WeightsError
from server.weights.format.listing import ShardListing, list_shards
from server.weights.format.safetensors import Header, TensorEntry, open_file, read_header

_THREADS = 8

# A file, several files, a model's folder (`listing.py` says which of its files), or a listing of one.
Source: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | ShardListing"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One open file and its header."""

    path: Path
    descriptor: int
    size: int
    mtime_ns: int
    header: Header

    def check(self) -> None:
        """Raise `Permanent` (`weights_changed`) where the file changed since its header was read."""
        now = os.fstat(self.descriptor)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise WeightsError(
                "weights_changed",
                f"{self.path}: expected {self.size} bytes last changed at {self.mtime_ns} ns, found "
                f"{now.st_size} bytes changed at {now.st_mtime_ns} ns: it was written to while it was loaded",
                "load it again, from a snapshot that no process writes to",
            )


class Located(NamedTuple):
    """A tensor's file and its entry there."""

    file: int
    entry: TensorEntry


class Checkpoint:
    """Open files, and their tensors by name in the order of the files and of their bytes. Close it, or use `with`."""

    def __init__(self, files: list[WeightFile], listing: ShardListing) -> None:
        self.files = files
        self.tensors = {
            name: Located(number, files[number].header.tensors[name])
            for name, number in listing.locate([file.header for file in files]).items()
        }

    @property
    def path(self) -> Path:
        """The file, or the folder of several."""
        first = self.files[0].path
        return first if len(self.files) == 1 else first.parent

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Raise `Permanent` (`weights_changed`) where a file changed since its header was read."""
        for file in self.files:
            file.check()

    def close(self) -> None:
        for file in self.files:
            os.close(file.descriptor)
        self.files = []


def open_checkpoint(source: Source) -> Checkpoint:
    """Open and check every file of `source`; raises `Permanent`."""
    listing = _list(source)
    paths = list(listing.paths)
    if not paths or len(set(paths)) < len(paths):
        raise WeightsError("no_weights", f"expected one or more different files, found {paths}", "name each file once")
    files = _open_all(paths)
    try:
        return Checkpoint(files, listing)
    except BaseException:
        for file in files:
            os.close(file.descriptor)
        raise


def _list(source: Source) -> ShardListing:
    if isinstance(source, ShardListing):
        return source
    if not isinstance(source, str | os.PathLike):
        return ShardListing([Path(item) for item in source])
    path = Path(source)
    return list_shards(path) if path.is_dir() else ShardListing([path])


def _open_all(paths: list[Path]) -> list[WeightFile]:
    if len(paths) == 1:
        return [_open(paths[0])]
    with ThreadPoolExecutor(min(_THREADS, len(paths))) as pool:  # cold headers wait for the disk in parallel
        futures = [pool.submit(_open, path) for path in paths]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        for future in futures:
            if future.exception() is None:
                os.close(future.result().descriptor)
        raise errors[0]
    return [future.result() for future in futures]


def _open(path: Path) -> WeightFile:
    descriptor = open_file(path)
    try:
        # The header only: reading ahead would fetch tensors that are not wanted, or that are read past the cache.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        header = read_header(path, descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NORMAL)
        status = os.fstat(descriptor)
        return WeightFile(path, descriptor, status.st_size, status.st_mtime_ns, header)
    except BaseException:
        os.close(descriptor)
        raise
