"""What this node holds: versions, their manifests, pins, and when each was last used.

Law: in memory, rebuilt from the tree at start; used from the event loop only. The last use of a snapshot is kept as
the mtime of its lease file, so that it outlives the daemon without a database; here it is on the monotonic clock, so
that a wall clock that jumps changes no order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from cached.contract import lease
from cached.contract.digest import Digest
from cached.contract.errors import InvalidReference
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import encode
from cached.core.catalog import Catalog
from cached.core.demand import keeps, used
from cached.core.eviction import Holding
from cached.node.cluster import Surroundings
from cached.node.log_once import Saying
from cached.store import fetched
from cached.store.disk import durable
from cached.store.fetched import FetchRecord
from cached.store.recovery import Recovered

_saying = Saying(logging.getLogger(__name__))


class Holdings:
    """The versions of this node. `blobs`: what each snapshot links, bytes by sha256. `links`: how many snapshots link
    each; threads may look it up. `last_used`: monotonic seconds. `fetched`: what each version was fetched for; the
    files are left to the disk. `drifted`: versions whose source was seen to have other content since, and its digest
    where that is known without a fetch."""

    def __init__(self, layout: Layout, recovered: Recovered) -> None:
        self._layout = layout
        self.models = dict(recovered.models)
        self.manifests = dict(recovered.manifests)
        self.blobs = {digest: manifest.blob_sizes() for digest, manifest in self.manifests.items()}
        self.fetched = dict(recovered.fetched)
        self.drifted: dict[ModelRef, Digest | None] = {}
        self.links = Counter(sha256 for sizes in self.blobs.values() for sha256 in sizes)
        self.pins = read_pins(layout)
        self.last_used = {ref: self._used_before(ref, digest) for ref, digest in self.models.items()}
        self.leased: frozenset[Digest] = frozenset()

    def add(self, ref: ModelRef, manifest: Manifest, record: FetchRecord) -> None:
        """A version was published, fetched as `record` says."""
        self.add_snapshot(record.digest, manifest)
        self.models[ref] = record.digest
        self.fetched[ref] = replace(record, files={})
        self.drifted.pop(ref, None)
        self.last_used[ref] = time.monotonic()

    def adopt(self, ref: ModelRef, source: str) -> None:
        """A version has no record, since an older release published it, from `source` as far as its status told."""
        self.fetched.setdefault(ref, fetched.unknown(self.models[ref], source))

    def add_snapshot(self, digest: Digest, manifest: Manifest) -> None:
        """A snapshot is there, whether or not a name points at it."""
        if digest not in self.manifests:
            self.manifests[digest] = manifest
            self.blobs[digest] = manifest.blob_sizes()
            self.links.update(self.blobs[digest].keys())

    def used(self, ref: ModelRef) -> None:
        """A pod of this node wants the version now."""
        if ref in self.last_used:
            self.last_used[ref] = time.monotonic()

    def used_at(self, ref: ModelRef) -> float | None:
        """When a version was last used, in seconds since the epoch as the clock is set now."""
        used = self.last_used.get(ref)
        return None if used is None else time.time() - (time.monotonic() - used)

    def remove(self, ref: ModelRef) -> Digest | None:
        """A version's name is gone; returns its digest where no other name points there any more."""
        digest = self.models.pop(ref)
        self.fetched.pop(ref, None)
        self.drifted.pop(ref, None)
        self.last_used.pop(ref, None)
        return None if digest in self.models.values() else digest

    def drop_snapshot(self, digest: Digest) -> None:
        """A snapshot is gone."""
        del self.manifests[digest]
        self.links.subtract(blobs := self.blobs.pop(digest).keys())
        for sha256 in [sha256 for sha256 in blobs if not self.links[sha256]]:
            del self.links[sha256]

    def names(self, digest: Digest) -> list[ModelRef]:
        """The versions that have this content."""
        return sorted(ref for ref, each in self.models.items() if each == digest)

    def named(self) -> dict[Digest, list[ModelRef]]:
        """Each content that has a name, in the order of the digests, and the versions that have it."""
        found: dict[Digest, list[ModelRef]] = {digest: [] for digest in sorted(set(self.models.values()))}
        for ref in sorted(self.models):
            found[self.models[ref]].append(ref)
        return found

    def size(self, ref: ModelRef) -> int:
        """A version's size in bytes."""
        return self.manifests[self.models[ref]].total_bytes

    def unnamed(self) -> list[Digest]:
        """Snapshots that no name points at: what a crash, or a disk that fails, leaves between two steps."""
        return sorted(set(self.manifests) - set(self.models.values()))

    def saw_leases(self, leased: frozenset[Digest]) -> None:
        """Somebody holds these snapshots' leases now."""
        self.leased = leased
        now = time.monotonic()
        for ref, digest in self.models.items():
            if digest in leased:
                self.last_used[ref] = now

    def _used_before(self, ref: ModelRef, digest: Digest) -> float:
        """What the files say; a time that is yet to come, after a clock was set back, says no more than now."""
        used = os.lstat(self._layout.public.model_link(ref)).st_mtime
        with contextlib.suppress(FileNotFoundError):
            used = max(used, os.lstat(self._layout.public.snapshot(digest).lease).st_mtime)
        return time.monotonic() - max(0.0, time.time() - used)


def as_holdings(held: Holdings, around: Surroundings, catalog: Catalog | None) -> list[Holding]:
    """What this node holds, as the planner sees it."""
    asked = used(around.pods(), held.models, catalog)
    return [_as_holding(held, ref, around, catalog, wanted=ref in asked) for ref in held.models]


def find_holding(held: Holdings, ref: ModelRef, around: Surroundings, catalog: Catalog | None) -> Holding | None:
    """One of them; None where it is not here."""
    if ref not in held.models:
        return None
    asked = used((pod for pod in around.pods() if pod.ref == ref), held.models, catalog)
    return _as_holding(held, ref, around, catalog, wanted=ref in asked)


def _as_holding(
    held: Holdings, ref: ModelRef, around: Surroundings, catalog: Catalog | None, *, wanted: bool
) -> Holding:
    digest = held.models[ref]
    return Holding(
        ref=ref,
        digest=digest,
        blobs=held.blobs[digest],
        last_used=held.last_used[ref],
        in_use=digest in held.leased or not around.synced,
        wanted=wanted,
        keep=ref in held.pins or (catalog is not None and keeps(catalog, ref, around.labels)),
        request=held.fetched[ref].request,
    )


def look_at_leases(layout: Layout, digests: Iterable[Digest]) -> frozenset[Digest]:
    """Which of these snapshots are in use now; notes the use in the lease file's mtime. Blocking."""
    held = set()
    for digest in digests:
        path = layout.public.snapshot(digest).lease
        try:
            if lease.is_held(path):
                held.add(digest)
                os.utime(path)
        except FileNotFoundError:
            continue  # evicted meanwhile
        except OSError as error:  # whoever cannot tell takes it for used; and the time is a help, not a must
            _saying.trouble(f"lease {path}", error.strerror or str(error))
            held.add(digest)
        else:
            _saying.fine(f"lease {path}")
    return frozenset(held)


def read_pins(layout: Layout) -> set[ModelRef]:
    """The versions that `holdfast pin` keeps."""
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
    """Keep the pins durably; raises `Transient`."""
    try:
        durable.replace(layout.pins, encode({"pins": sorted(str(ref) for ref in pins)}), 0o600)
    except OSError as error:
        raise durable.disk_error(error, f"writing {layout.pins}") from error
