"""Files in this process's memory, from which tensors on the CPU are made: mapped, or copied.

Law: a map is the files' own pages, which all processes of a node share. Pages are loaded on access; on a file system
with large folios (ext4, xfs, btrfs of current kernels) that costs next to nothing, and loading them all beforehand made
the sum of loading and reading slower where it was measured, on those and on tmpfs.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from cached.contract.program import limits
from server.weights.errors import WeightsError
from server.weights.format.checkpoint import Checkpoint, Located, WeightFile
from server.weights.host.page_cache import count_cached, read_ahead
from server.weights.host.reader import read_exactly
from server.weights.settings import PAGE, Backend

_SAMPLES, _SAMPLE_BYTES = 64, PAGE


class HostBytes(NamedTuple):
    """The bytes of a tensor: `buffer` from `offset` on. A reference to the buffer keeps the bytes."""

    buffer: mmap.mmap | bytearray
    offset: int


class HostMap:
    """The files of a checkpoint in this process's memory. Its bytes outlive it, and the checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = checkpoint.files
        self._maps = [_map(file) for file in checkpoint.files]

    def find_bytes(self, located: Located) -> HostBytes:
        """Return the bytes of a tensor, as the page cache has them."""
        return HostBytes(self._maps[located.file], located.entry.begin)

    def read_ahead(self, located: Iterable[Located]) -> None:
        """Have the kernel read the uncached bytes of these tensors from disk, in a thread. The checkpoint is open.

        A thread, as a request takes as long as a read once the disk's queue is full. None where everything is cached,
        as the requests were seen to slow down the readers of those bytes.
        """
        spans: dict[int, tuple[int, int]] = {}
        for file, entry in located:
            low, high = spans.get(file, (entry.begin, entry.end))
            spans[file] = min(low, entry.begin), max(high, entry.end)
        opened = {file: self._files[file].descriptor for file in spans}
        uncached = [(os.dup(opened[file]), *span) for file, span in spans.items() if _is_uncached(opened[file], *span)]
        if uncached:
            ahead = threading.Thread(target=_read_ahead, args=(uncached,), name="holdfast-ahead", daemon=True)
            if not limits.start_threads([ahead]):  # the pages are loaded on access
                for descriptor, _, _ in uncached:
                    os.close(descriptor)


class HostCopies:
    """Copies of the bytes of a checkpoint's files, made one by one while the checkpoint is open."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = checkpoint.files

    def find_bytes(self, located: Located) -> HostBytes:
        """Read the bytes of a tensor; raises `Permanent` where the file is shorter now."""
        entry = located.entry
        copied = bytearray(entry.end - entry.begin)
        read_exactly(self._files[located.file], memoryview(copied), entry.begin)
        return HostBytes(copied, 0)


# The bytes of a checkpoint on the CPU.
HostFiles: TypeAlias = HostMap | HostCopies


def open_host_files(checkpoint: Checkpoint, backend: Backend) -> HostFiles:
    """Return the bytes of an open checkpoint in the way that `backend` says."""
    return HostMap(checkpoint) if backend is Backend.MMAP else HostCopies(checkpoint)


def _read_ahead(spans: list[tuple[int, int, int]]) -> None:
    """Read by descriptor, not by `mmap.madvise`, which holds the interpreter's lock while it waits for the disk."""
    for descriptor, low, high in spans:
        try:
            read_ahead(descriptor, low, high)
        except OSError:  # a file system without it: its pages are loaded on access
            continue
        finally:
            os.close(descriptor)


def _is_uncached(descriptor: int, begin: int, end: int) -> bool:
    """Whether any of some evenly spread places is not cached: counting every page takes 10 ms per gigabyte."""
    step = max(_SAMPLE_BYTES, (end - begin) // _SAMPLES)
    try:
        return any(count_cached(descriptor, at, min(end, at + _SAMPLE_BYTES)) == 0 for at in range(begin, end, step))
    except OSError:  # the kernel does not report it
        return True


def _map(file: WeightFile) -> mmap.mmap:
    try:
        # Private and writable: torch has no read-only tensors, and a stray write then costs a page of ours instead of
        # a segmentation fault, and never reaches the file.
        return mmap.mmap(file.descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError) as error:
        raise WeightsError(
            "unreadable", f"{file.path}: cannot be mapped: {error}", "check memory and the mount"
        ) from error
