"""What this node holds: versions, their manifests, pins, and when each was last used.

Law: in memory, rebuilt from the tree at start; used from the event loop only. The last use of a snapshot is kept as
the mtime of its lease file, so that it outlives the daemon without a database.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable

from cached.contract import lease
from cached.contract.digest import Digest
from cached.contract.errors import InvalidReference
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import encode
from cached.store import durable
from cached.store.recovery import Recovered

_log = logging.getLogger(__name__)


class Holdings:
    """The versions of this node. `blobs`: what each snapshot links, bytes by sha256."""

    def __init__(self, layout: Layout, recovered: Recovered) -> None:
        self._layout = layout
        self.models = dict(recovered.models)
        self.manifests = dict(recovered.manifests)
        self.blobs = {digest: manifest.blob_sizes() for digest, manifest in self.manifests.items()}
        self.pins = read_pins(layout)
        self.last_used = {ref: self._used_before(ref, digest) for ref, digest in self.models.items()}
        self.leased: frozenset[Digest] = frozenset()

    def add(self, ref: ModelRef, digest: Digest, manifest: Manifest) -> None:
        """A version was published."""
        self.models[ref] = digest
        self.manifests[digest] = manifest
        self.blobs[digest] = manifest.blob_sizes()
        self.last_used[ref] = time.time()

    def used(self, ref: ModelRef) -> None:
        """A pod of this node wants the version now."""
        if ref in self.last_used:
            self.last_used[ref] = time.time()

    def remove(self, ref: ModelRef) -> Digest | None:
        """A version's name is gone; returns its digest where no other name points there any more."""
        digest = self.models.pop(ref)
        self.last_used.pop(ref, None)
        return None if digest in self.models.values() else digest

    def drop_snapshot(self, digest: Digest) -> None:
        """A snapshot is gone."""
        del self.manifests[digest], self.blobs[digest]

    def names(self, digest: Digest) -> list[ModelRef]:
        """The versions that have this content."""
        return sorted(ref for ref, each in self.models.items() if each == digest)

    def size(self, ref: ModelRef) -> int:
        """A version's size in bytes."""
        return self.manifests[self.models[ref]].total_bytes

    def unnamed(self) -> list[Digest]:
        """Snapshots that no name points at: what a crash between two steps leaves."""
        return sorted(set(self.manifests) - set(self.models.values()))

    def saw_leases(self, leased: frozenset[Digest]) -> None:
        """Somebody holds these snapshots' leases now."""
        self.leased = leased
        now = time.time()
        for ref, digest in self.models.items():
            if digest in leased:
                self.last_used[ref] = now

    def _used_before(self, ref: ModelRef, digest: Digest) -> float:
        link = os.lstat(self._layout.public.model_link(ref)).st_mtime
        try:
            return max(link, os.lstat(self._layout.public.snapshot(digest).lease).st_mtime)
        except FileNotFoundError:
            return link


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
            _log.warning("cannot look at the lease %s: %s", path, error.strerror or error)
            held.add(digest)
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
