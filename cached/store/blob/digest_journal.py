"""The digests that were found out by fetching: which blob each object of unknown sha256 became.

Law: an entry is durable before its blob gets its name, so a restart neither fetches such an object again nor sweeps its
blob. An entry is kept until its version is published or no longer wanted.

Format: `private/digests.jsonl`, one JSON object a line, `{"id": <ingest id>, "sha256": <64 hex digits>}`, appended and
synced once for a group of blobs. Later lines win. A truncated line is ignored; an entry that was forgotten is still
true, and the next sweep removes it. A sweep deletes a file without entries.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from cached.contract.digest import is_hex
from cached.store.blob.json_lines import read_objects
from cached.store.disk import durable

_MODE = 0o600
_SLACK = 4096  # forgotten lines beyond which the file is rewritten


class DigestJournal:
    """Entries in memory and in the file. Thread-safe; only `find`, `ids_of` and `ids` never block on the disk."""

    def __init__(self, path: Path, entries: Mapping[str, str]) -> None:
        """`entries`: sha256 by ingest id, as `read` and recovery found them."""
        self._path = path
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # held during disk writes: `find` never takes it
        self._digests: dict[str, str] = {}
        self._ids: dict[str, set[str]] = {}
        self._lines = len(entries)
        for id_, sha256 in entries.items():
            self._add(id_, sha256)

    def find(self, id_: str) -> str | None:
        """Return the sha256 of the object with this ingest id, None if unknown."""
        with self._lock:
            return self._digests.get(id_)

    def ids_of(self, sha256: str) -> frozenset[str]:
        """Return the ingest ids of the objects with this content."""
        with self._lock:
            return frozenset(self._ids.get(sha256, ()))

    def record(self, entries: Mapping[str, str]) -> None:
        """Add sha256 by ingest id, durably; raises `HoldfastError`, and then none of them is added."""
        if not entries:
            return
        with self._writing:
            with self._lock:  # before the write: a sweep may ask before the blob has its name
                for id_, sha256 in entries.items():
                    self._add(id_, sha256)
            try:
                self._append(entries)
            except OSError as error:
                with self._lock:
                    for id_ in entries:
                        self._drop(id_)
                raise durable.disk_error(error, f"writing {self._path}") from error

    def forget(self, ids: Iterable[str]) -> None:
        """Remove entries from memory. Their lines, which do no harm, go with `tidy` or when there are too many; raises
        `HoldfastError` if the file cannot be rewritten."""
        with self._writing:
            with self._lock:
                for id_ in ids:
                    self._drop(id_)
            self._rewrite(_SLACK + len(self._digests))

    def tidy(self) -> None:
        """Remove forgotten entries from the file; raises `HoldfastError`."""
        with self._writing:
            self._rewrite(0)

    def ids(self) -> list[str]:
        """Return every ingest id that has an entry."""
        with self._lock:
            return list(self._digests)

    def _append(self, entries: Mapping[str, str]) -> None:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            fresh = True
        except FileExistsError:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            fresh = False
        try:
            # End a line that a crash or a full disk truncated.
            durable.write_all(descriptor, (b"" if fresh else b"\n") + _encode(entries))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fresh:
            durable.fsync_dir(self._path.parent)
        self._lines += len(entries)

    def _rewrite(self, slack: int) -> None:
        """Rewrite the file if it has more than `slack` lines without an entry; call with `_writing` held."""
        with self._lock:
            if self._lines - len(self._digests) <= slack:
                return
            rest = dict(self._digests)
        with durable.disk_errors(f"writing {self._path}"):
            if rest:
                durable.replace(self._path, _encode(rest), _MODE)
            else:
                durable.unlink(self._path)
        self._lines = len(rest)

    def _add(self, id_: str, sha256: str) -> None:
        self._drop(id_)
        self._digests[id_] = sha256
        self._ids.setdefault(sha256, set()).add(id_)

    def _drop(self, id_: str) -> None:
        sha256 = self._digests.pop(id_, None)
        if sha256 is not None:
            self._ids[sha256].discard(id_)
            if not self._ids[sha256]:
                del self._ids[sha256]


def read(path: Path) -> dict[str, str]:
    """Return the entries of the file, sha256 by ingest id; skip invalid lines. Raises OSError."""
    entries: dict[str, str] = {}
    for document in read_objects(path):
        id_, sha256 = document.get("id"), document.get("sha256")
        if isinstance(id_, str) and isinstance(sha256, str) and is_hex(id_) and is_hex(sha256):
            entries[id_] = sha256
    return entries


def _encode(entries: Mapping[str, str]) -> bytes:
    return "".join(f'{{"id": "{id_}", "sha256": "{sha256}"}}\n' for id_, sha256 in entries.items()).encode()
