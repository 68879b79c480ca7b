"""The choice of versions to evict: least recently used first, none that is in use, wanted or kept.

Law: pure. Frees nothing itself; the caller determines which versions are in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Protocol, TypeVar

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.core.space import SpaceUse


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """A published version. `blobs`: bytes by sha256. `last_used`: seconds on a monotonic clock. `in_use`: by a lease or
    a pod, or unknown. `wanted`: in the demand. `keep`: pinned against eviction. `prefetched`: wanted by a prefetch rule
    only. `request`: the hash of its fetch request (`catalog.hash_request`); None: unknown."""

    ref: ModelRef
    digest: Digest
    blobs: Mapping[str, int]
    last_used: float
    in_use: bool
    wanted: bool
    keep: bool
    prefetched: bool = False
    request: str | None = None

    @property
    def evictable(self) -> bool:
        """Whether this version may be evicted."""
        return not (self.in_use or self.wanted or self.keep or self.prefetched)

    @property
    def evictable_for_pod(self) -> bool:
        """Whether this version may be evicted for a waiting pod only."""
        return self.prefetched and not (self.in_use or self.wanted or self.keep)


class Occupant(Protocol):
    """A user of disk space, which frees what it shares with no other. `blobs`: bytes by sha256."""

    @property
    def blobs(self) -> Mapping[str, int]: ...


T = TypeVar("T", bound=Occupant)


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """Occupants that go together, in order, and the bytes this frees, which may be fewer than needed."""

    victims: tuple[T, ...]
    freed: int


def list_freed(victims: Iterable[Occupant], occupants: Collection[Occupant]) -> list[int]:
    """Return the bytes that each of `victims`, which are among `occupants`, frees when they go one after the other: its
    blobs that no remaining occupant shares."""
    links = _count_links(occupants)
    freed = []
    for victim in victims:
        links.subtract(victim.blobs.keys())
        freed.append(_unlinked_bytes(victim, links))
    return freed


def by_age(entries: Iterable[InventoryEntry]) -> list[InventoryEntry]:
    """Sort the least recently used first."""
    return sorted(entries, key=lambda entry: (entry.last_used, entry.ref))


def choose_victims(candidates: Sequence[T], occupants: Collection[Occupant], need_bytes: int) -> Choice[T]:
    """Choose candidates in their order until they free `need_bytes`, none that is not needed for that. If all of them
    free less, choose all that free any bytes."""
    if need_bytes <= 0:
        return Choice((), 0)  # most plans: skips the count of every blob of the node
    links = _count_links(occupants)
    freed = 0
    chosen: list[T] = []
    for occupant in candidates:
        if freed >= need_bytes:
            break
        chosen.append(occupant)
        links.subtract(occupant.blobs.keys())
        freed += _unlinked_bytes(occupant, links)
    # Blobs are shared, and the last choice may free many: drop the choices that are not needed, in reverse order.
    enough = min(freed, need_bytes)
    needed: list[T] = []
    for occupant in reversed(chosen):
        gain = _unlinked_bytes(occupant, links)
        if freed - gain >= enough:
            links.update(occupant.blobs.keys())
            freed -= gain
        else:
            needed.append(occupant)
    return Choice(tuple(reversed(needed)), freed)


def count_excess(use: SpaceUse, high: float, low: float) -> int:
    """Return the bytes to free, by the kubelet's rule for images: none up to the `high` share of the capacity, above
    it down to the `low` one. Includes bytes of other users of the file system, excludes bytes already dying."""
    full = max(use.used + use.reserved, use.capacity - use.free - use.dying)
    return 0 if full <= high * use.capacity else full - int(low * use.capacity)


def count_shortfall(use: SpaceUse, needed_bytes: int) -> int:
    """Return the bytes to free so that `needed_bytes` can be reserved once the dying bytes are deleted."""
    return max(0, needed_bytes - (use.budget - use.used - use.reserved))


def _count_links(occupants: Iterable[Occupant]) -> Counter[str]:
    """Return how many occupants have each blob."""
    return Counter(chain.from_iterable(occupant.blobs for occupant in occupants))


def _unlinked_bytes(occupant: Occupant, links: Counter[str]) -> int:
    return sum(size for sha, size in occupant.blobs.items() if links[sha] == 0)
