"""Which versions to evict: least recently used first, and only what nobody uses, wants or keeps.

Law: pure. Decides and frees nothing itself; who counts as using a version is the caller's to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.core.space import SpaceUse


@dataclass(frozen=True, slots=True)
class Holding:
    """A published version. `blobs`: bytes by sha256. `last_used`: seconds on a clock that never goes back. `in_use`: a
    lease, or a pod, or nobody knows. `wanted`: the demand has it. `keep`: pinned against eviction. `prefetched`: a
    prefetch wants it, and nobody else. `request`: what it was fetched for (`catalog.request_of`); None: unknown."""

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
        """Tell whether this may go."""
        return not (self.in_use or self.wanted or self.keep or self.prefetched)

    @property
    def yields_to_pods(self) -> bool:
        """Tell whether this may go for a pod that waits, and for nothing less."""
        return self.prefetched and not (self.in_use or self.wanted or self.keep)


class Occupant(Protocol):
    """What takes space of the disk, and gives it back when it goes, as far as no other one shares it. `blobs`: bytes by
    sha256."""

    @property
    def ref(self) -> ModelRef: ...

    @property
    def blobs(self) -> Mapping[str, int]: ...


T = TypeVar("T", bound=Occupant)


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """What is to go together, in order, and the bytes that frees: fewer than needed where there is no more."""

    victims: tuple[T, ...]
    freed: int


def reclaimable(victims: Collection[Holding], holdings: Collection[Holding]) -> int:
    """The bytes that evicting `victims` frees: blobs that no surviving holding shares."""
    gone = {victim.ref for victim in victims}
    kept = {sha for holding in holdings if holding.ref not in gone for sha in holding.blobs}
    return sum(size for sha, size in _all_blobs(victims).items() if sha not in kept)


def by_age(holdings: Iterable[Holding]) -> list[Holding]:
    """Least recently used first."""
    return sorted(holdings, key=lambda h: (h.last_used, h.ref))


def choose_victims(candidates: Sequence[T], holdings: Collection[Occupant], need_bytes: int) -> Choice[T]:
    """Choose of the candidates, in their order, until they free `need_bytes`, and none that is not needed for that.
    Where all of them together free less, all that free anything."""
    if need_bytes <= 0:
        return Choice((), 0)  # without a look at every blob of the node, as most plans are made when nothing is short
    links = Counter(sha for holding in holdings for sha in holding.blobs)
    freed = 0
    chosen: list[T] = []
    for holding in candidates:
        if freed >= need_bytes:
            break
        chosen.append(holding)
        freed += _unlink(holding, links)
    # Blobs are shared, and the last one chosen may free much: take back what is not needed, in the reverse order.
    enough = min(freed, need_bytes)
    needed: list[T] = []
    for holding in reversed(chosen):
        gain = sum(size for sha, size in holding.blobs.items() if links[sha] == 0)
        if freed - gain >= enough:
            links.update(holding.blobs.keys())
            freed -= gain
        else:
            needed.append(holding)
    return Choice(tuple(reversed(needed)), freed)


def over_watermark(use: SpaceUse, high: float, low: float) -> int:
    """The bytes to free, as the kubelet frees images: none up to the `high` share of the capacity, beyond it down to
    the `low` one. What others took from the file system counts; what is dying already does not."""
    full = max(use.used + use.reserved, use.capacity - use.free - use.dying)
    return 0 if full <= high * use.capacity else full - int(low * use.capacity)


def short_of(use: SpaceUse, needed_bytes: int) -> int:
    """The bytes to free so that `needed_bytes` can be reserved once what is dying is gone."""
    return max(0, needed_bytes - (use.budget - use.used - use.reserved))


def _unlink(holding: Occupant, links: Counter[str]) -> int:
    links.subtract(holding.blobs.keys())
    return sum(size for sha, size in holding.blobs.items() if links[sha] == 0)


def _all_blobs(holdings: Collection[Holding]) -> dict[str, int]:
    return {sha: size for holding in holdings for sha, size in holding.blobs.items()}
