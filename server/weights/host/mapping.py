"""Tensors on the CPU: views of the files' own pages, which all processes of a node share.

Law: copies only the few tensors whose offset their dtype does not allow. Pages are loaded on access; on a file system
with large folios (ext4, xfs, btrfs of current kernels) that costs next to nothing, and loading them all beforehand made
the sum of loading and reading slower where it was measured, on those and on tmpfs.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable

import torch

from cached.contract.errors import Permanent
from cached.contract.program import limits
from server.weights.format.checkpoint import Checkpoint, Located, WeightFile
from server.weights.format.dtypes import resolve
from server.weights.host.page_cache import count_cached, read_ahead
from server.weights.settings import PAGE

_SAMPLES, _SAMPLE_BYTES = 64, PAGE


class HostMap:
    """The files of a checkpoint in this process's memory. Its tensors outlive it, and the checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = checkpoint.files
        self._maps = [_map(file) for file in checkpoint.files]

    def view(self, name: str, located: Located) -> torch.Tensor:
        """Return the tensor `name`; raises `Permanent` where torch lacks its dtype."""
        entry = located.entry
        dtype, shape = resolve(name, entry)
        size = entry.end - entry.begin
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        found = self._maps[located.file]
        if entry.begin % dtype.itemsize == 0:
            return torch.frombuffer(found, dtype=dtype, count=size // dtype.itemsize, offset=entry.begin).view(shape)
        # Legal, though no known writer does it; kernels need aligned elements, so these few bytes are copied.
        raw = torch.frombuffer(found, dtype=torch.uint8, count=size, offset=entry.begin)
        return raw.clone().view(dtype).view(shape)

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
        raise Permanent(
            "unreadable", f"{file.path}: cannot be mapped: {error}", "check memory and the mount"
        ) from error
