"""One partial blob: its bytes, and which of them are durable. Resumes where the record says, and only there.

Law: bytes count only once `record` has synced them and then written them down, in that order. O_DIRECT where the file
system takes it: at 4 MiB it writes 2.7 GB/s for 0.04 CPU seconds a GB on an NVMe-backed ext4, a sixth of what the page
cache costs, and leaves the node's memory to the models.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from cached.contract.layout import Layout
from cached.contract.manifest import MAX_FILE_BYTES
from cached.contract.status import encode
from cached.store import durable
from cached.store.ranges import Ranges

ALIGNMENT = 4096  # what O_DIRECT asks of offset, length and memory; the page size of every machine we run on
_STATE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class IngestKey:
    """What identifies a partial blob: `id` names its folder, `validator` must be unchanged to resume.

    `size` in bytes, None where the source does not say.
    """

    id: str
    validator: str
    size: int | None


class Ingest:
    """An open partial blob. `write` and `record` may be called from several threads; close it when done."""

    def __init__(self, folder: Path, key: IngestKey) -> None:
        self.key = key
        self.folder = folder
        self._record_lock = threading.Lock()
        state = _read_state(folder)
        resumable = (
            state is not None
            and key.size is not None
            and state.size == key.size
            and key.validator  # without one, nothing says that it is still the same object
            and state.validator == key.validator
            and (folder / "data").exists()
        )
        if not resumable:
            _remove(folder)
        durable.make_dir(folder, durable.PRIVATE_DIR_MODE)
        self._recorded = Ranges(state.done if resumable and state is not None else ())
        self._write_fd, self._read_fd, self.direct = self._open()
        try:
            if not resumable and key.size is not None:
                durable.preallocate(self._write_fd, key.size)
        except OSError as error:
            self.discard()
            raise durable.disk_error(error, f"reserving {key.size} bytes in {folder}") from error

    def recorded(self) -> list[tuple[int, int]]:
        """The ranges that are durable and written down."""
        with self._record_lock:
            return list(self._recorded)

    def write(self, buffer: memoryview, length: int, offset: int) -> None:
        """Write the first `length` bytes of a page-aligned `buffer` at `offset`, a multiple of ALIGNMENT.

        With O_DIRECT a last piece is padded with zeros up to ALIGNMENT (`buffer` must have the room);
        `finish` cuts the file to size.
        """
        if self.direct and length % ALIGNMENT:
            padded = (length + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
            buffer[length:padded] = bytes(padded - length)
            length = padded
        try:
            while length > 0:
                written = os.pwrite(self._write_fd, buffer[:length], offset)
                buffer, length, offset = buffer[written:], length - written, offset + written
        except OSError as error:
            raise durable.disk_error(error, f"writing {self.folder / 'data'}") from error

    def read(self, buffer: memoryview, offset: int) -> int:
        """Read back into a page-aligned `buffer` from `offset`, a multiple of ALIGNMENT; returns bytes read."""
        try:
            return os.preadv(self._read_fd, [buffer], offset)
        except OSError as error:
            raise durable.disk_error(error, f"reading {self.folder / 'data'}") from error

    def record(self, ranges: list[tuple[int, int]]) -> None:
        """Make the bytes of `ranges`, all written before this call, durable; then write that down."""
        with self._record_lock:
            for start, end in ranges:
                self._recorded.add(start, end)
            state = {
                "done": [list(r) for r in self._recorded],
                "size": self.key.size,
                "validator": self.key.validator,
            }
            try:
                os.fdatasync(self._write_fd)
                durable.replace(self.folder / "state.json", encode(state), _STATE_MODE)
            except OSError as error:
                raise durable.disk_error(error, f"recording {self.folder}") from error

    def finish(self, size: int) -> Path:
        """Cut the file to `size` bytes, make it read-only and durable, close it; returns its path."""
        try:
            os.ftruncate(self._write_fd, size)
            os.fchmod(self._write_fd, durable.READ_ONLY_MODE)
            os.fsync(self._write_fd)
        except OSError as error:
            raise durable.disk_error(error, f"finishing {self.folder / 'data'}") from error
        self.close()
        return self.folder / "data"

    def discard(self) -> None:
        """Delete the bytes and the record."""
        self.close()
        _remove(self.folder)

    def close(self) -> None:
        """Close the files. What was recorded stays for the next time."""
        for descriptor in (self._write_fd, self._read_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._write_fd = self._read_fd = -1

    def _open(self) -> tuple[int, int, bool]:
        data = self.folder / "data"
        flags = os.O_CREAT | os.O_CLOEXEC
        try:
            try:
                write_fd = os.open(data, os.O_WRONLY | os.O_DIRECT | flags, 0o600)
                return write_fd, os.open(data, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC), True
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                write_fd = os.open(data, os.O_WRONLY | flags, 0o600)
                return write_fd, os.open(data, os.O_RDONLY | os.O_CLOEXEC), False
        except OSError as error:
            raise durable.disk_error(error, f"opening {data}") from error


def committed_as(layout: Layout, ingest_id: str) -> str | None:
    """The sha256 that a finished ingest of unknown digest turned out to have, if it finished."""
    state = _read_state(layout.ingest / ingest_id)
    return state.committed if state is not None else None


def note_committed(layout: Layout, key: IngestKey, sha256: str) -> None:
    """Remember durably which blob a source's file became, until its version is published."""
    folder = layout.ingest / key.id
    durable.make_dir(folder, durable.PRIVATE_DIR_MODE)
    state: dict[str, object] = {"committed": sha256, "done": [], "size": key.size, "validator": key.validator}
    durable.replace(folder / "state.json", encode(state), _STATE_MODE)


def forget(layout: Layout, ingest_id: str) -> None:
    """Remove an ingest's folder and all in it; one that is gone is left so."""
    _remove(layout.ingest / ingest_id)


def allocated_bytes(folder: Path) -> int:
    """What an ingest's data takes on the disk, in bytes."""
    try:
        return os.lstat(folder / "data").st_blocks * 512
    except FileNotFoundError:
        return 0


@dataclass(frozen=True, slots=True)
class _State:
    size: int | None
    validator: str
    done: tuple[tuple[int, int], ...]
    committed: str | None


def _read_state(folder: Path) -> _State | None:
    """Read a record; None where there is none, or one that is no record: then nothing is trusted."""
    try:
        document = json.loads((folder / "state.json").read_bytes())
        size = document["size"]
        limit = MAX_FILE_BYTES if size is None else int(size)
        done = tuple((int(start), int(end)) for start, end in document["done"])
        if any(not 0 <= start < end <= limit or start % ALIGNMENT for start, end in done):
            return None
        return _State(size, str(document["validator"]), done, document.get("committed"))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _remove(folder: Path) -> None:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return
    for name in names:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
    durable.fsync_dir(folder.parent)
