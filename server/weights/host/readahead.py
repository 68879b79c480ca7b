"""Have the kernel fetch weights from the disk while Python imports what will serve them, which takes as long.

Law: standard library only, for it begins before torch is imported; no byte comes into this process. What goes wrong
here is no failure: the load reads for itself, and says what is wrong.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from cached.contract.errors import HoldfastError
from cached.contract.program import limits
from server.weights.format.safetensors import list_shards
from server.weights.host import memory
from server.weights.host.page_cache import read_ahead

_LOG = logging.getLogger(__name__)
_SHARE = 0.5  # of the memory that is free: more would push out what was just read, and what others need


class ReadAhead:
    """The weights in `folders`, one folder after the other, on their way into the page cache."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._left: set[Path] = set()
        limits.start_some([threading.Thread(target=self._run, args=(folders,), name="holdfast-ahead", daemon=True)])

    def leave(self, folder: Path) -> None:
        """Go no further in a folder: it is being loaded, past the cache where its bytes are not there yet."""
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
            except (OSError, HoldfastError) as error:  # an adapter, for one, has no weights of a model
                _LOG.debug("weights are not read ahead: %s", error)

    def _read(self, folder: Path, room: float) -> int:
        """Read a folder ahead if `room` bytes hold it; returns how many it takes of them."""
        files = list_shards(folder).paths
        size = sum(path.stat().st_size for path in files)
        if size > room:
            return 0
        for path in files:
            self._read_file(path, folder)
        return size

    def _read_file(self, path: Path, folder: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            read_ahead(descriptor, 0, size, lambda: folder not in self._left)
        finally:
            os.close(descriptor)
