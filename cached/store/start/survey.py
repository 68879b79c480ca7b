"""Write the start index while the store is at rest.

Law: changes nothing but the index. It is written only of a tree in which recovery would find nothing to do, read from
the disk and not from memory, between two equal looks at every stamp; all of its folders are synced before it gets its
name, so that a start that believes it need not sync them again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import NO_VERDICT
from cached.store.disk import durable
from cached.store.disk.root import is_on_network
from cached.store.start import index, recovery
from cached.store.version.fetch_records import FetchRecord

_LOOKS = 3  # at a tree that changed a moment ago
_COARSE_NS = 1_000_000  # a clock whose times are all multiples of it cannot tell two changes apart


class NotAtRest(Exception):
    """The index is not written; the message says why."""


def write_index(layout: Layout, known: Mapping[Digest, Manifest], deadline: float) -> bool:
    """Write the index, unless the present one is right; return whether it was written. `known`: manifests that were
    parsed before. Raises `NotAtRest`, also at `deadline` (monotonic seconds), and OSError."""
    with contextlib.suppress(index.IndexNotBelieved):
        if index.load(layout) is not None:
            return False
    if is_on_network(layout.root):
        raise NotAtRest("a network file system does not tell of each change")
    temporary = durable.temporary_beside(layout.start_index, layout.start_index.name)
    with durable.opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, index.MODE) as descriptor:
        try:
            contents, begun_ns = _look_until_quiet(layout, known, descriptor, deadline)
            durable.write_all(descriptor, index.encode(contents, os.fstat(descriptor).st_dev, begun_ns))
            os.fsync(descriptor)
            os.rename(temporary, layout.start_index)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    durable.fsync_dir(layout.private)
    return True


def _look_until_quiet(
    layout: Layout, known: Mapping[Digest, Manifest], descriptor: int, deadline: float
) -> tuple[index.TreeAtRest, int]:
    """Return what the tree has, and the file system's time before it was looked at."""
    for _ in range(_LOOKS):
        os.fchmod(descriptor, index.MODE)  # its ctime is the file system's time now
        begun_ns = os.fstat(descriptor).st_ctime_ns
        contents = _look(layout, known, deadline)
        newest = max(max(each[1:3]) for each in map(tuple, index.iterate_stamps(contents)))
        if begun_ns % _COARSE_NS == 0:
            raise NotAtRest("the file system's times are too coarse to tell two changes apart")
        if newest < begun_ns - index.MARGIN_NS:
            return contents, begun_ns
        if newest > begun_ns + index.MARGIN_NS:
            raise NotAtRest("a folder has a time that is yet to come")
        time.sleep(2 * index.MARGIN_NS / 1e9)
    raise NotAtRest("the store keeps changing")


@dataclass(frozen=True, slots=True)
class _Stamps:
    """The stamps of the tree; of snapshots by the digits of their digest, of fetch records by their version."""

    folders: dict[str, index.Stamp]
    manifests: dict[str, index.FileStamp]
    records_folders: dict[str, index.Stamp]
    fetched: dict[ModelRef, index.FileStamp]


def _take_stamps(layout: Layout) -> _Stamps:
    folders = {path: index.stamp(layout.root / path) for path in index.list_folders(layout)}
    snapshots = {name: layout.public.snapshot(Digest(name)) for name in recovery.list_snapshots(layout)}
    return _Stamps(
        folders,
        {name: index.stamp_file(snapshot.manifest) for name, snapshot in snapshots.items()},
        {name: index.stamp(snapshot.manifest.parent) for name, snapshot in snapshots.items()},
        {ref: index.stamp_file(layout.fetch_record(ref)) for ref in recovery.list_records(layout)},
    )


def _look(layout: Layout, known: Mapping[Digest, Manifest], deadline: float) -> index.TreeAtRest:
    """Return what the tree has; raises `NotAtRest` where recovery would find something to do."""
    stamps = _take_stamps(layout)
    _check_time(deadline)
    manifests, damaged = recovery.read_snapshots(layout, known)
    if damaged:
        raise NotAtRest(f"snapshot {damaged[0]} is damaged")
    if second := recovery.find_second_names(layout):
        raise NotAtRest(f"blob {second[0]} is in quarantine too")
    _check_time(deadline)
    blobs = recovery.measure_blobs(layout)
    _check_time(deadline)
    links = recovery.count_links(manifests)
    if incomplete := recovery.find_incomplete(manifests, links, blobs):
        raise NotAtRest(f"a blob of snapshot {incomplete[0]} is missing")
    models = recovery.list_names(layout)
    for ref, digest in models.items():
        if digest not in manifests:
            raise NotAtRest(f"{ref} leads to no snapshot")
    if unnamed := [ref for ref in stamps.fetched if ref not in models]:
        raise NotAtRest(f"there is a fetch record of {unnamed[0]}, which is not here")
    records = {ref: recovery.read_record(layout, ref, models[ref]) for ref in stamps.fetched}
    _check_time(deadline)
    if leftovers := [path for folder in _list_swept(layout, stamps) for path in recovery.list_temporary(folder)]:
        raise NotAtRest(f"{leftovers[0]} is left over")
    for folder in recovery.list_synced(layout):
        _check_time(deadline)
        durable.fsync_dir(folder)
    if _take_stamps(layout) != stamps:
        raise NotAtRest("the store changed")
    return index.TreeAtRest(
        folders=stamps.folders,
        manifests=manifests,
        manifest_stamps={Digest(name): seen for name, seen in stamps.manifests.items()},
        records_stamps={Digest(name): seen for name, seen in stamps.records_folders.items()},
        models=models,
        fetched={ref: index.Record(stamps.fetched[ref], record) for ref, record in records.items()},
        statuses=_read_statuses(layout, models, records, manifests),
        blobs=blobs,
        links=links,
    )


def _read_statuses(
    layout: Layout,
    models: Mapping[ModelRef, Digest],
    records: Mapping[ModelRef, FetchRecord],
    manifests: Mapping[Digest, Manifest],
) -> dict[ModelRef, index.Status]:
    """Return the status files that say `ready` and no more. Each is read by a start whose file has another stamp: they
    change while nothing else does."""
    statuses = {}
    for ref, digest in models.items():
        path = os.fspath(layout.public.model_status(ref))
        verdict = records[ref].verdict if ref in records else NO_VERDICT
        with contextlib.suppress(OSError, HoldfastError):
            seen = index.stamp_file(path)
            found = recovery.read_status(path)
            told = found.status
            noted = index.Status(seen, digest, verdict, told.pinned, told.source, told.since, told.updated)
            if found.is_exact and noted.make_status(ref, manifests[digest]) == told:
                statuses[ref] = noted
    return statuses


def _list_swept(layout: Layout, stamps: _Stamps) -> list[Path]:
    """Return the folders of the index that recovery sweeps."""
    records = [layout.public.snapshot(Digest(name)).manifest.parent for name in stamps.records_folders]
    return [*(layout.root / path for path in stamps.folders), *records]


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise NotAtRest("it takes too long")
