"""The pool's keys, in a file that a Secret is mounted as: a key a line, the first one signs.

Law: reads the file again when it changes, so that keys come and rotate without a restart. Says once what is wrong with
it. Never shows a key.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from cached.contract.errors import Permanent
from cached.peers.access import LEAST_KEY_BYTES, MAX_KEYS, PoolKeys

_log = logging.getLogger(__name__)

_MOST_BYTES = 64 * 1024
_REMEDY = f"put 1 to {MAX_KEYS} lines of at least {LEAST_KEY_BYTES} random characters there (`openssl rand -hex 32`)"


class KeyFile:
    """The keys at a path. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._keys: PoolKeys | None = None
        self._trouble = ""

    def read(self) -> PoolKeys:
        """Return the current keys. Raises `Permanent` (`no_pool_key`); once keys were read, a file that cannot be read
        leaves them valid."""
        with self._lock:
            try:
                found = os.stat(self._path)
                stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
                if self._keys is None or stamp != self._stamp:
                    self._keys = _parse(self._path)
                    self._stamp = stamp
            except (OSError, ValueError) as error:
                reason = (error.strerror or "unreadable") if isinstance(error, OSError) else str(error)
                self._say(reason)
                if self._keys is None:
                    raise Permanent("no_pool_key", f"{self._path}: {reason}", _REMEDY) from error
            else:
                self._say("")
            return self._keys

    def has_keys(self) -> bool:
        """Return whether there are keys now."""
        try:
            self.read()
        except Permanent:
            return False
        return True

    def _say(self, trouble: str) -> None:
        """Log what is wrong with the file, or that nothing is any more, once."""
        before, self._trouble = self._trouble, trouble
        if trouble == before:
            return
        if not trouble:
            _log.info("peers: %s has a key of the pool", self._path)
        elif self._keys is None:
            _log.warning("peers: none until there is a key of the pool: %s: %s: %s", self._path, trouble, _REMEDY)
        else:
            _log.warning("peers: the keys that were read stay: %s: %s: %s", self._path, trouble, _REMEDY)


def _parse(path: Path) -> PoolKeys:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"expected at most {_MOST_BYTES} bytes")
    return PoolKeys([line.strip() for line in data.splitlines() if line.strip()])
