"""Notes of committed blobs that no snapshot links yet: each as it was when its sha256 was computed.

Law: a blob's name alone proves nothing: a copied or restored root may have other bytes under it. A snapshot's verified
record takes a note's place. So an entry is kept until its blob is published, or gone; nothing is synced, and a lost
entry costs a hash.

Format: `private/hashed.jsonl`, one JSON object a line, `{"sha256", "ino", "size", "mtime_ns", "verified_at"}`. Later
lines win, invalid ones are ignored. There is no file without entries.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from cached.contract.digest import is_hex
from cached.contract.layout import Layout
from cached.contract.snapshot.verified import VerifiedFile
from cached.contract.status import timestamp
from cached.store.blob.json_lines import read_objects
from cached.store.disk import durable

_log = logging.getLogger(__name__)

_MODE = 0o600
_SLACK = 4096  # forgotten lines beyond which the file is rewritten


class HashNotes:
    """Entries in memory and in the file. Thread-safe; only `find` never blocks on the disk."""

    def __init__(self, path: Path, entries: Mapping[str, VerifiedFile]) -> None:
        """`entries`: by sha256, as `read` returned them."""
        self._path = path
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # held during disk writes: `find` never takes it
        self._entries = dict(entries)
        self._lines = len(entries)

    def find(self, sha256: str) -> VerifiedFile | None:
        """Return the blob as it was when it was hashed, None if that is not noted."""
        with self._lock:
            return self._entries.get(sha256)

    def note(self, layout: Layout, sha256s: Iterable[str]) -> None:
        """Note blobs that were committed just now, of bytes that had this sha256. Raises `HoldfastError`."""
        verified_at = timestamp(time.time())
        blobs = os.fspath(layout.blobs)  # as text: paths as objects cost more than the calls
        with durable.disk_errors("looking at committed blobs"):
            looked = ((sha256, os.lstat(f"{blobs}/{sha256[:2]}/{sha256}")) for sha256 in sha256s)
            self.add({sha256: VerifiedFile.of(found, verified_at) for sha256, found in looked})

    def add(self, entries: Mapping[str, VerifiedFile]) -> None:
        """Add entries by sha256. Where the file cannot be written they are in memory only."""
        if not entries:
            return
        with self._writing:
            with self._lock:
                self._entries.update(entries)
            try:
                self._append(entries)
            except OSError as error:
                _log.warning("%s: %s; after a restart these blobs are hashed again", self._path, error.strerror)

    def forget(self, sha256s: Iterable[str]) -> None:
        """Remove entries. Raises `HoldfastError` if the file cannot be rewritten."""
        with self._writing:
            with self._lock:
                for sha256 in sha256s:
                    self._entries.pop(sha256, None)
                left = len(self._entries)
                if not self._lines or (left and self._lines - left <= _SLACK):
                    return
                rest = dict(self._entries)
            with durable.disk_errors(f"writing {self._path}"):
                if rest:
                    durable.replace_volatile(self._path, _encode(rest), _MODE)
                else:
                    self._path.unlink(missing_ok=True)
            self._lines = len(rest)

    def _append(self, entries: Mapping[str, VerifiedFile]) -> None:
        with durable.opened(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE) as descriptor:
            # The first byte ends a line that a crash or a full disk truncated.
            durable.write_all(descriptor, b"\n" + _encode(entries))
        self._lines += len(entries)


def read(path: Path) -> dict[str, VerifiedFile]:
    """Return the entries of the file, by sha256. Raises OSError."""
    entries: dict[str, VerifiedFile] = {}
    for e in read_objects(path):
        try:
            sha256, seen = e["sha256"], VerifiedFile(e["ino"], e["size"], e["mtime_ns"], e["verified_at"])
        except KeyError:
            continue
        if isinstance(sha256, str) and is_hex(sha256):
            entries[sha256] = seen
    return entries


def _encode(entries: Mapping[str, VerifiedFile]) -> bytes:
    return "".join(
        f'{{"sha256": "{sha256}", "ino": {seen.ino}, "size": {seen.size}, "mtime_ns": {seen.mtime_ns}, '
        f'"verified_at": "{seen.verified_at}"}}\n'
        for sha256, seen in entries.items()
    ).encode()
