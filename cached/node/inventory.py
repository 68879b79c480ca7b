"""The inventory: the node's versions, their manifests, pins, and the time of each one's last use.

Law: in memory, rebuilt from the tree at start; used from the event loop only. A snapshot's last use is stored as the
mtime of its lease file, so that it survives a restart without a database; in memory it is monotonic, so that a jump of
the wall clock changes no order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from cached.contract.digest import Digest
from cached.contract.errors import InvalidReference
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from cached.contract.status import encode
from cached.core.catalog import Catalog
from cached.core.demand import find_used, is_kept
from cached.core.eviction import InventoryEntry
from cached.node.cluster import Cluster
from cached.node.log_once import LogOnce
from cached.store.disk import durable
from cached.store.start.recovery import Recovered
from cached.store.version import fetch_records
from cached.store.version.fetch_records import FetchRecord

_log_once = LogOnce(logging.getLogger(__name__))


class Inventory:
    """The versions of this node. `blobs`: the blobs of each snapshot, bytes by sha256. `links`: the number of snapshots
    that link each blob; threads may read it. `shared`: the blobs of more than one snapshot. `last_used`: monotonic
    seconds. `fetched`: fetch records, without `files`. `kept`: the uids of the pods that read a snapshot when its name
    moved. `drifted`: versions whose source has other content now, and its digest if that is known without a fetch.
    `snapshots_changed`: set whenever a snapshot comes, goes or is put back, until `take_changed_snapshots`."""

    def __init__(self, layout: Layout, recovered: Recovered) -> None:
        self.changes = 0  # of names and snapshots, since the start
        self.models = dict(recovered.models)
        self._names = dict(Counter(self.models.values()))  # the number of names of each named snapshot
        self.manifests = dict(recovered.manifests)
        self.blobs: Mapping[Digest, Mapping[str, int]] = _BlobsBySnapshot(self.manifests)
        self.fetched = dict(recovered.fetched)
        self.kept = dict(recovered.kept)
        self.drifted: dict[ModelRef, Digest | None] = {}
        self.links = recovered.links.copy()
        self.shared = set(self.links.find_above(1))
        self.pins = read_pins(layout)
        self.last_used = _find_last_uses(layout, self.models)
        self.leased: frozenset[Digest] = frozenset()
        self.snapshots_changed = asyncio.Event()
        self._changed_snapshots: set[Digest] = set()
        self.note_changed(self.manifests)

    def add(self, ref: ModelRef, manifest: Manifest, record: FetchRecord) -> None:
        """Add a published version with its fetch record."""
        self.add_snapshot(record.digest, manifest)
        before = self.models.get(ref)
        if before is not None:
            self._remove_name(before)
        self.models[ref] = record.digest
        self.changes += 1
        self._names[record.digest] = self._names.get(record.digest, 0) + 1
        self.fetched[ref] = replace(record, files={})
        self.drifted.pop(ref, None)
        self.last_used[ref] = time.monotonic()

    def adopt(self, ref: ModelRef, source: str) -> None:
        """Add a fetch record to a version of an older release, which has none; `source`: from its status, or empty."""
        self.fetched[ref] = fetch_records.unknown(self.models[ref], source)

    def add_snapshot(self, digest: Digest, manifest: Manifest) -> None:
        """Add a snapshot, whether or not a name points at it."""
        if digest not in self.manifests:
            self.manifests[digest] = manifest
            self.changes += 1
            links = {sha256: self.links.get(sha256, 0) + 1 for sha256 in manifest.blob_sizes()}
            self.links.put_all(links)
            self.shared.update(sha256 for sha256, count in links.items() if count == 2)
            self.note_changed((digest,))

    def mark_used(self, ref: ModelRef) -> None:
        """Set a version's last use to now: a pod wants it."""
        if ref in self.last_used:
            self.last_used[ref] = time.monotonic()

    def last_used_at(self, ref: ModelRef) -> float | None:
        """Return a version's last use in seconds since the epoch, by the current wall clock; None if unknown."""
        used = self.last_used.get(ref)
        if used is not None and self.models[ref] in self.leased:
            return time.time()
        return None if used is None else time.time() - (time.monotonic() - used)

    def remove(self, ref: ModelRef) -> Digest | None:
        """Remove a version; return its digest if no other name points at that snapshot."""
        digest = self.models.pop(ref)
        self.changes += 1
        self._remove_name(digest)
        self.fetched.pop(ref, None)
        self.drifted.pop(ref, None)
        self.last_used.pop(ref, None)
        return None if digest in self._names else digest

    @property
    def digests(self) -> frozenset[Digest]:
        """The named snapshots."""
        return frozenset(self._names)

    def drop_snapshot(self, digest: Digest) -> None:
        """Remove a snapshot."""
        self.changes += 1
        for sha256 in self.manifests.pop(digest).blob_sizes():
            left = self.links[sha256] - 1
            if left == 0:
                del self.links[sha256]
                continue
            self.links[sha256] = left
            if left == 1:
                self.shared.discard(sha256)
        self.note_changed((digest,))

    def note_changed(self, digests: Iterable[Digest]) -> None:
        """Note that snapshots came, went or were put back."""
        self._changed_snapshots.update(digests)
        self.snapshots_changed.set()

    def take_changed_snapshots(self) -> set[Digest]:
        """Return the snapshots that came, went or were put back since the last call."""
        changed, self._changed_snapshots = self._changed_snapshots, set()
        self.snapshots_changed.clear()
        return changed

    def names(self, digest: Digest) -> list[ModelRef]:
        """Return the versions with this digest, sorted."""
        return sorted(ref for ref, each in self.models.items() if each == digest)

    def named(self) -> dict[Digest, list[ModelRef]]:
        """Return each named digest with its versions, in an order that lasts while they do."""
        found: dict[Digest, list[ModelRef]] = {}
        for ref, digest in self.models.items():
            found.setdefault(digest, []).append(ref)
        return found

    def size(self, ref: ModelRef) -> int:
        """Return a version's size in bytes."""
        return self.manifests[self.models[ref]].total_bytes

    def unnamed(self) -> list[Digest]:
        """Return the snapshots without a name: a crash or a failing disk leaves them between two steps."""
        return sorted(self.manifests.keys() - self._names.keys())

    def set_leased(self, leased: frozenset[Digest], used: Collection[Digest], checked: float) -> None:
        """Replace the set of leased snapshots; they are in use, and those in `used` were. `checked`: the monotonic time
        before the check, so that no use counts as later than the mtimes say that `find_leased` set."""
        self.leased = leased
        for ref, digest in self.models.items() if leased or used else ():
            if digest in leased or digest in used:
                self.last_used[ref] = max(self.last_used[ref], checked)

    def _remove_name(self, digest: Digest) -> None:
        self._names[digest] -= 1
        if not self._names[digest]:
            del self._names[digest]


def _find_last_uses(layout: Layout, models: Mapping[ModelRef, Digest]) -> dict[ModelRef, float]:
    """Return the last uses from the files' mtimes; a future time, after a clock was set back, counts as now."""
    models_here, snapshots = os.fspath(layout.public.models), os.fspath(layout.public.snapshots)
    found, clock, now = {}, time.monotonic(), time.time()
    for ref, digest in models.items():
        used = os.lstat(f"{models_here}/{ref.path_segment}/{ref.version}").st_mtime
        with contextlib.suppress(FileNotFoundError):
            used = max(used, os.lstat(_lease_path(snapshots, digest)).st_mtime)
        found[ref] = clock - max(0.0, now - used)
    return found


def _lease_path(snapshots: str, digest: Digest) -> str:
    """Return `SnapshotLayout.lease` as text: paths as objects cost a start more than the calls."""
    return f"{snapshots}/{digest.hex}/.holdfast/lease"


class _Blobs(Mapping[str, int]):
    """The blobs of one snapshot, bytes by sha256, unpacked when they are asked for: nearly all plans need none."""

    __slots__ = ("_manifest", "_unpacked")

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._unpacked: dict[str, int] | None = None

    def _unpack(self) -> dict[str, int]:
        if self._unpacked is None:
            self._unpacked = self._manifest.blob_sizes()
        return self._unpacked

    def __getitem__(self, sha256: str) -> int:
        return self._unpack()[sha256]

    def __iter__(self) -> Iterator[str]:
        return iter(self._unpack())

    def __len__(self) -> int:
        return len(self._unpack())


class _BlobsBySnapshot(Mapping[Digest, Mapping[str, int]]):
    """The blobs of every snapshot of `manifests`, as those change."""

    def __init__(self, manifests: Mapping[Digest, Manifest]) -> None:
        self._manifests = manifests

    def __getitem__(self, digest: Digest) -> Mapping[str, int]:
        return _Blobs(self._manifests[digest])

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._manifests)

    def __len__(self) -> int:
        return len(self._manifests)


def list_entries(
    inventory: Inventory, refs: Collection[ModelRef], cluster: Cluster, catalog: Catalog | None
) -> list[InventoryEntry]:
    """Return those of the versions `refs` that this node has, for the planner."""
    here = {ref: inventory.models[ref] for ref in refs if ref in inventory.models}
    asked = find_used((pod for pod in cluster.users() if pod.ref in here), here, catalog)
    return [
        InventoryEntry(
            ref=ref,
            digest=digest,
            blobs=inventory.blobs[digest],
            last_used=inventory.last_used[ref],
            in_use=digest in inventory.leased or not cluster.synced,
            wanted=ref in asked,
            keep=ref in inventory.pins or (catalog is not None and is_kept(catalog, ref, cluster.labels)),
            request=inventory.fetched[ref].request,
        )
        for ref, digest in here.items()
    ]


def find_leased(layout: Layout, digests: Iterable[Digest], used: Collection[Digest]) -> frozenset[Digest]:
    """Return the leased ones of these snapshots, and set the mtimes of their lease files, and of those in `used`, to
    now. Blocking."""
    held, snapshots = set(), os.fspath(layout.public.snapshots)
    for digest in digests:
        path = _lease_path(snapshots, digest)
        try:
            if lease.is_held(path):
                held.add(digest)
            if digest in held or digest in used:
                os.utime(path)
        except FileNotFoundError:
            continue  # evicted during the call
        except OSError as error:  # without an answer it counts as leased; the mtime is optional
            _log_once.log_error(f"lease {path}", error.strerror or str(error))
            held.add(digest)
        else:
            _log_once.log_recovery(f"lease {path}")
    return frozenset(held)


def read_pins(layout: Layout) -> set[ModelRef]:
    """Return the versions pinned by `holdfast pin`; raises `Permanent` (`bad_root`) if the file is invalid."""
    try:
        listed = json.loads(layout.pins.read_bytes())
        return {ModelRef.parse(text) for text in listed["pins"]}
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError, InvalidReference) as error:
        raise durable.refuse_root(
            f"{layout.pins}: not a list of pins: {error}", "delete the file and pin again with `holdfast pin`"
        ) from error


def write_pins(layout: Layout, pins: Iterable[ModelRef]) -> None:
    """Write the pins durably; raises `Transient`."""
    with durable.disk_errors(f"writing {layout.pins}"):
        durable.replace(layout.pins, encode({"pins": sorted(str(ref) for ref in pins)}), 0o600)
