"""Have the kernel read weights from disk while Python imports the libraries that serve them, which takes as long.

Law: standard library only, as it starts before torch is imported; no byte enters this process. An error here is
ignored: the load itself reads, and reports it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from cached.contract.errors import HoldfastError
from cached.contract.program import limits
from server.weights.format.listing import list_shards
from server.weights.host import memory
from server.weights.host.page_cache import read_ahead

_LOG = logging.getLogger(__name__)
_SHARE = 0.5  # of the free memory: more would evict bytes just read, and those of other processes


class ReadAhead:
    """Reads the weights in `folders`, one folder after the other, into the page cache."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._left: set[Path] = set()
        limits.start_threads([threading.Thread(target=self._run, args=(folders,), name="holdfast-ahead", daemon=True)])

    def leave(self, folder: Path) -> None:
        """Stop reading a folder: its load has begun, and reads uncached bytes past the cache."""
        self._left.add(folder)

    def _run(self, folders: Sequence[Path]) -> None:
        try:
            room = memory.free_bytes() * _SHARE
        except OSError as error:
            _LOG.debug("weights are not read ahead: the free memory is unknown: %s", error)
            return
        for folder in folders:
            try:
                room -= self._read(folder, room)
            except (OSError, HoldfastError) as error:  # for example an adapter, which has no model's weights
                _LOG.debug("weights are not read ahead: %s", error)

    def _read(self, folder: Path, room: float) -> int:
        """Read a folder ahead if it fits `room` bytes; return the bytes it takes."""
        files = list_shards(folder).paths
        size = sum(path.stat().st_size for path in files)
        if size > room:
            return 0
        for path in files:
            with path.open("rb", buffering=0) as file:
                descriptor = file.fileno()
                read_ahead(descriptor, 0, os.fstat(descriptor).st_size, lambda: folder not in self._left)
        return size
