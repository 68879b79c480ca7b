"""The file of the start index: its format, and when it is believed.

Law: an index is believed if it is whole and ours, and every folder and record that it speaks of has the stamp that it
had: inode, mtime and ctime, in this boot. No process can set a ctime, and each change of a folder gives it another one:
an index has none that was not older than its own beginning by more than the clock of the file system can hide
(`MARGIN_NS`), and is not written where that clock is too coarse to tell two changes apart. Another boot is a doubt,
since a check of the file system may have changed folders without their times.

Format: a line with the number of the format, a line with the sha256 of all that follows, a line of JSON, then binary in
the machine's byte order: of all blobs, sorted by name, 32 bytes of sha256, 8 of size, 4 of the number of snapshots that
have it; of the files of all snapshots, 32 bytes of sha256 and 8 of size. The number changes whenever the format does,
or what recovery finds.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest, PackedFiles
from cached.contract.program.plain_files import READ_FLAGS
from cached.contract.reference import ModelRef, name_from_path_segment
from cached.contract.status import NO_VERDICT, ModelStatus, Verdict
from cached.core.blob_table import BlobTable
from cached.store.version.fetch_records import FetchRecord

FORMAT = b"holdfast start index 1\n"
MODE = 0o600
MARGIN_NS = 100_000_000  # ten ticks of the slowest kernel clock, which stamps files
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MOST_BYTES = 1 << 30

Stamp = tuple[int, int, int]  # inode, mtime and ctime in nanoseconds
FileStamp = tuple[int, int, int, int]  # the same, and the size


class IndexNotBelieved(Exception):
    """The index is not believed; the message says why."""


@dataclass(frozen=True, slots=True)
class Record:
    """The fetch record of a name, and the stamp of its file."""

    stamp: FileStamp
    record: FetchRecord


@dataclass(frozen=True, slots=True)
class Status:
    """The status file of a published version that says `ready` and no more. `digest`: what its name leads to,
    `verdict`: that of its fetch record."""

    stamp: FileStamp
    digest: Digest
    verdict: Verdict
    pinned: bool
    source: str
    since: str
    updated: str

    def make_status(self, ref: ModelRef, manifest: Manifest) -> ModelStatus:
        """Return the status that the file has."""
        return ModelStatus.of_held(
            ref,
            str(self.digest),
            manifest.total_bytes,
            pinned=self.pinned,
            source=self.source,
            since=self.since,
            updated=self.updated,
            verdict=self.verdict,
        )


@dataclass(frozen=True, slots=True)
class TreeAtRest:
    """What the tree has at rest. `folders`: the stamp of each folder, by its path in the root. `manifest_stamps` and
    `records_stamps`: of each snapshot's manifest, and of its `.holdfast`. `links`: how many snapshots have a blob."""

    folders: Mapping[str, Stamp]
    manifests: Mapping[Digest, Manifest]
    manifest_stamps: Mapping[Digest, FileStamp]
    records_stamps: Mapping[Digest, Stamp]
    models: Mapping[ModelRef, Digest]
    fetched: Mapping[ModelRef, Record]
    statuses: Mapping[ModelRef, Status]
    blobs: BlobTable
    links: BlobTable


@dataclass(frozen=True, slots=True)
class Believed:
    """An index that is believed. `to_sweep`: folders of records that were written to since, for a verified record."""

    contents: TreeAtRest
    to_sweep: tuple[Path, ...]


def stamp(path: str | Path) -> Stamp:
    """Return the stamp of a folder; raises OSError, also if it is none."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(str(path))
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def stamp_file(path: str | Path) -> FileStamp:
    """Return the stamp of a regular file; raises OSError."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path}: no regular file")
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def list_folders(layout: Layout) -> list[str]:
    """Return the folders whose entries recovery reads and an index has, each after its parent, by their paths in the
    root. Not those that every start reads: they are small, or change while nothing else does."""
    public = layout.public
    found = [layout.quarantine, public.snapshots]
    for parent in (layout.blobs, public.models, layout.fetched):
        with os.scandir(parent) as entries:
            below = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        found += [parent, *(parent / name for name in below)]
    top = len(os.fspath(layout.root)) + 1
    return [os.fspath(folder)[top:] for folder in found]


def read_boot() -> str:
    """Return the id of this boot; raises OSError."""
    return _BOOT.read_text().strip()


def encode(contents: TreeAtRest, device: int, begun_ns: int) -> bytes:
    """Return the bytes of the file. `begun_ns`: the file system's time before the first stamp was taken."""
    digests = sorted(contents.manifests)
    numbers = {digest: number for number, digest in enumerate(digests)}
    packed = [contents.manifests[digest].packed for digest in digests]
    path_sets = {paths: number for number, paths in enumerate(dict.fromkeys(each.paths for each in packed))}
    names = []
    for ref in sorted(contents.models):
        noted, status = contents.fetched.get(ref), contents.statuses.get(ref)
        record = None if noted is None else _encode(noted)
        told = None
        if status is not None:
            told = [list(status.stamp), status.pinned, status.source, status.since, status.updated]
        names.append([ref.path_segment, ref.version, numbers[contents.models[ref]], record, told])
    hashes, sizes = contents.blobs.pack()
    head = {
        "boot": read_boot(),
        "byte_order": sys.byteorder,
        "device": device,
        "begun_ns": begun_ns,
        "folders": {path: list(seen) for path, seen in contents.folders.items()},
        "snapshots": [digest.hex for digest in digests],
        "manifest_stamps": [list(contents.manifest_stamps[digest]) for digest in digests],
        "records_stamps": [list(contents.records_stamps[digest]) for digest in digests],
        "path_sets": [list(paths) for paths in path_sets],
        "paths": [path_sets[each.paths] for each in packed],
        "names": names,
        "blobs": len(sizes),
    }
    body = b"".join(
        (
            json.dumps(head, ensure_ascii=True, separators=(",", ":")).encode(),
            b"\n",
            hashes,
            sizes.tobytes(),
            array("I", contents.links.align(contents.blobs)).tobytes(),
            *(each.hashes for each in packed),
            *(each.sizes.tobytes() for each in packed),
        )
    )
    return FORMAT + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def load(layout: Layout) -> Believed | None:
    """Return the index if it is believed, None if there is none; raises `IndexNotBelieved`."""
    try:
        data = _read(layout.start_index)
        if data is None:
            return None
        head, binary = _check(data)
        contents = _decode(head, binary)
        return _compare(layout, head, contents)
    except OSError as error:
        raise IndexNotBelieved(f"{error.filename or layout.start_index}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise IndexNotBelieved(f"it cannot be read: {error!r}"[:200]) from error
    except HoldfastError as error:
        raise IndexNotBelieved(f"it cannot be read: {error}"[:200]) from error


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if found.st_mode != stat.S_IFREG | MODE or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise IndexNotBelieved("it is not a file that the daemon made")
        if found.st_size > _MOST_BYTES:
            raise IndexNotBelieved("it is too large")
        return file.readall()


def _check(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the two parts of a whole index of this format and boot; raises `IndexNotBelieved`."""
    if not data.startswith(FORMAT):
        raise IndexNotBelieved("it has another format, of another release")
    at = len(FORMAT) + 65
    body = memoryview(data)[at:]
    if data[len(FORMAT) : at] != hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise IndexNotBelieved("its checksum is wrong: it was cut or changed")
    end = data.index(b"\n", at)
    head = json.loads(data[at:end])
    if head["byte_order"] != sys.byteorder:
        raise IndexNotBelieved("another machine wrote it")
    if head["boot"] != read_boot():
        raise IndexNotBelieved("another boot wrote it")
    return head, memoryview(data)[end + 1 :]


def _decode(head: dict[str, Any], binary: memoryview) -> TreeAtRest:
    count, parts = head["blobs"], _Parts(binary)
    blobs = BlobTable.unpack(parts.take(32 * count), parts.take_numbers("Q", count))
    links = blobs.renumber(array("Q", parts.take_numbers("I", count)))
    path_sets = [tuple(map(sys.intern, paths)) for paths in head["path_sets"]]
    paths = [path_sets[number] for number in head["paths"]]
    hashes = [bytes(parts.take(32 * len(each))) for each in paths]
    packed = [
        PackedFiles(each, parts.take_numbers("Q", len(each)), hashed)
        for each, hashed in zip(paths, hashes, strict=True)
    ]
    parts.check_end()
    digests = [Digest(digits) for digits in head["snapshots"]]
    models: dict[ModelRef, Digest] = {}
    fetched: dict[ModelRef, Record] = {}
    segments: dict[str, str] = {}
    statuses: dict[ModelRef, Status] = {}
    for segment, version, number, noted, told in head["names"]:
        name = segments.get(segment) or segments.setdefault(segment, name_from_path_segment(segment))
        ref = ModelRef(name, version)
        models[ref] = digests[number]
        if noted is not None:
            fetched[ref] = _decode_record(models[ref], noted)
        if told is not None:
            seen, pinned, source, since, updated = told
            verdict = fetched[ref].record.verdict if noted is not None else NO_VERDICT
            statuses[ref] = Status(tuple(seen), models[ref], verdict, pinned, source, since, updated)
    return TreeAtRest(
        folders={path: tuple(seen) for path, seen in head["folders"].items()},
        manifests=dict(zip(digests, map(Manifest.unpack, packed), strict=True)),
        manifest_stamps=dict(zip(digests, map(tuple, head["manifest_stamps"]), strict=True)),
        records_stamps=dict(zip(digests, map(tuple, head["records_stamps"]), strict=True)),
        models=models,
        fetched=fetched,
        statuses=statuses,
        blobs=blobs,
        links=links,
    )


class _Parts:
    """The binary part, taken from its beginning."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, size: int) -> memoryview:
        taken, self._data = self._data[:size], self._data[size:]
        if len(taken) != size:
            raise IndexNotBelieved("it is too short")
        return taken

    def take_numbers(self, kind: str, count: int) -> array[int]:
        numbers = array(kind)
        numbers.frombytes(self.take(numbers.itemsize * count))
        return numbers

    def check_end(self) -> None:
        if self._data:
            raise IndexNotBelieved("it is too long")


def _encode(noted: Record) -> list[Any]:
    record = noted.record
    verdict = None if record.verdict == NO_VERDICT else record.verdict.document()
    return [list(noted.stamp), record.request, record.source, record.revision, record.resolved_at, verdict]


def _decode_record(digest: Digest, noted: list[Any]) -> Record:
    seen, request, source, revision, resolved_at, verdict = noted
    found = NO_VERDICT if verdict is None else Verdict.parse(verdict)
    return Record(tuple(seen), FetchRecord(digest, request, source, revision, resolved_at, {}, found))


def _compare(layout: Layout, head: dict[str, Any], contents: TreeAtRest) -> Believed:
    """Raise `IndexNotBelieved` unless every stamp is what it was."""
    root = os.fspath(layout.root)
    if os.lstat(layout.private).st_dev != head["device"]:
        raise IndexNotBelieved("the root is on another file system")
    if time.time_ns() < head["begun_ns"]:
        raise IndexNotBelieved("the clock was set back")
    for path, seen in contents.folders.items():
        if stamp(f"{root}/{path}") != seen:
            raise IndexNotBelieved(f"{path} changed")
    for ref, noted in contents.fetched.items():
        if stamp_file(f"{root}/private/fetched/{ref.path_segment}/{ref.version}.json") != noted.stamp:
            raise IndexNotBelieved(f"the fetch record of {ref} changed")
    to_sweep = []
    for digest, seen in contents.records_stamps.items():
        folder = f"{root}/public/snapshots/{digest.hex}/.holdfast"
        if stamp_file(f"{folder}/manifest.json") != contents.manifest_stamps[digest]:
            raise IndexNotBelieved(f"the manifest of snapshot {digest} changed")
        if stamp(folder) != seen:
            to_sweep.append(Path(folder))
    return Believed(contents, tuple(to_sweep))


def iterate_stamps(contents: TreeAtRest) -> Iterator[Iterable[int]]:
    """Yield every stamp, for a look at their times."""
    yield from contents.folders.values()
    yield from contents.manifest_stamps.values()
    yield from contents.records_stamps.values()
    yield from (noted.stamp for noted in contents.fetched.values())
