"""Tensors on the CPU: views of the files' own pages, which all processes of a node share.

Law: makes no copy but of the few tensors whose offset their dtype does not allow. Pages come when they are touched; on
a file system with large folios (ext4, xfs, btrfs of current kernels) that costs next to nothing, and making them all
come beforehand made the sum of loading and reading slower where it was measured, on those and on tmpfs.
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
from server.weights.format.dtypes import of
from server.weights.host.page_cache import count_cached, read_ahead
from server.weights.settings import PAGE

_PLACES, _LOOK = 64, PAGE


class HostMap:
    """The files of a checkpoint in this process's memory. Its tensors outlive it, and the checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = checkpoint.files
        self._maps = [_map(file) for file in checkpoint.files]

    def tensor(self, name: str, located: Located) -> torch.Tensor:
        """The tensor `name`; raises `Permanent` where torch has none of its dtype."""
        entry = located.entry
        dtype, shape = of(name, entry)
        size = entry.end - entry.begin
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        found = self._maps[located.file]
        if entry.begin % dtype.itemsize == 0:
            return torch.frombuffer(found, dtype=dtype, count=size // dtype.itemsize, offset=entry.begin).view(shape)
        # Legal, though no writer we know does it; kernels want aligned elements, so these few bytes are copied.
        raw = torch.frombuffer(found, dtype=torch.uint8, count=size, offset=entry.begin)
        return raw.clone().view(dtype).view(shape)

    def read_ahead(self, located: Iterable[Located]) -> None:
        """Have the kernel read what these tensors lack from disk, and go on meanwhile. The checkpoint is open still.

        In a thread of its own: once the disk's queue is full, asking takes as long as reading. Not where everything is
        cached: asking all the same was seen to slow down who touches the bytes meanwhile.
        """
        spans: dict[int, tuple[int, int]] = {}
        for file, entry in located:
            low, high = spans.get(file, (entry.begin, entry.end))
            spans[file] = min(low, entry.begin), max(high, entry.end)
        opened = {file: self._files[file].descriptor for file in spans}
        lacking = [(os.dup(opened[file]), *span) for file, span in spans.items() if _lacks(opened[file], *span)]
        if lacking:
            ahead = threading.Thread(target=_read_ahead, args=(lacking,), name="holdfast-ahead", daemon=True)
            if not limits.start_some([ahead]):  # the pages come when they are touched
                for descriptor, _, _ in lacking:
                    os.close(descriptor)


def _read_ahead(spans: list[tuple[int, int, int]]) -> None:
    """By descriptors, not by `mmap.madvise`, which holds the interpreter's lock while it waits for the disk's queue."""
    for descriptor, low, high in spans:
        try:
            read_ahead(descriptor, low, high)
        except OSError:  # a file system that cannot: its pages come when they are touched
            continue
        finally:
            os.close(descriptor)


def _lacks(descriptor: int, begin: int, end: int) -> bool:
    """Whether any of some places, evenly spread, is not cached: counting every page takes 10 ms for each gigabyte."""
    step = max(_LOOK, (end - begin) // _PLACES)
    try:
        return any(count_cached(descriptor, at, min(end, at + _LOOK)) == 0 for at in range(begin, end, step))
    except OSError:  # the kernel does not say
        return True


def _map(file: WeightFile) -> mmap.mmap:
    try:
        # Private and writable, though nobody writes: torch has no read-only tensors, and a stray write then costs
        # a page of ours instead of a segmentation fault, and never reaches the file.
        return mmap.mmap(file.descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError) as error:
        raise Permanent(
            "unreadable", f"{file.path}: cannot be mapped: {error}", "check memory and the mount"
        ) from error
