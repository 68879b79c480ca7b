"""Which pods have what they want, and how long they wait: from the first pod's want of a version until it is here.

Law: keeps times and pods' uids, decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.core.catalog import Catalog
from cached.core.demand import PodWant


def used(wants: Iterable[PodWant], here: Mapping[ModelRef, Digest], catalog: Catalog | None) -> frozenset[ModelRef]:
    """The versions that are here as some pod wants them: as the digest it pins, or else the catalog, if either does."""
    found = frozenset(want.ref for want in wants if _has(want, here))
    if catalog is None:
        return found
    promised = {ref: entry.digest for ref in found if (entry := catalog.find(ref)) is not None}
    return frozenset(ref for ref in found if promised.get(ref) in (None, here[ref]))


def waiting(wants: Iterable[PodWant], here: Mapping[ModelRef, Digest]) -> int:
    """How many pods want what is not here."""
    return len({want.uid for want in wants if not _has(want, here)})


class Waits:
    """The pods of this node, and the versions that they wait for."""

    def __init__(self) -> None:
        self._since: dict[ModelRef, float] = {}  # on the monotonic clock
        self._seen: frozenset[tuple[str, ModelRef]] = frozenset()

    def look(self, wants: Iterable[PodWant], here: Collection[ModelRef]) -> frozenset[ModelRef]:
        """Note what pods want now, given what is here; returns the versions that a new pod wants."""
        now = time.monotonic()
        seen = frozenset((want.uid, want.ref) for want in wants)
        new = frozenset(ref for _, ref in seen - self._seen)
        wanted = {ref for _, ref in seen}
        self._seen = seen
        self._since = {ref: since for ref, since in self._since.items() if ref in wanted}
        for ref in wanted.difference(here):
            self._since.setdefault(ref, now)
        return new

    def over(self, here: Collection[ModelRef]) -> list[float]:
        """The waits, in seconds, for versions that are here now; they are forgotten."""
        now = time.monotonic()
        return [now - self._since.pop(ref) for ref in [ref for ref in self._since if ref in here]]


def _has(want: PodWant, here: Mapping[ModelRef, Digest]) -> bool:
    digest = here.get(want.ref)
    return digest is not None and want.pin in (None, digest)
