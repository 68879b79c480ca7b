"""The planner: the next steps, from the demand, the held versions, the running fetches, and the disk space.

Law: pure: no I/O, no clock, no memory. The same `Situation` gives the same steps, so the next plan repeats a step that
was not carried out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.demand import Demand, Priority, Urgency, Want
from cached.core.eviction import InventoryEntry, by_age, choose_victims, count_excess, count_shortfall
from cached.core.space import FetchSpace, Shortage, SpaceUse

EvictionReason = Literal["watermark", "space"]

_POD = Priority.WAITING


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the fetch of `ref`: it is no longer wanted, or not from that source."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Forget:
    """Forget the failure or refusal of `ref`: its want is gone, or met."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Refuse:
    """Report to all pods and pulls of `ref` that it can never be fetched."""

    ref: ModelRef
    error: Permanent


@dataclass(frozen=True, slots=True)
class Evict:
    """Withdraw and delete the version `ref` if its digest is `digest`."""

    ref: ModelRef
    digest: Digest
    reason: EvictionReason


@dataclass(frozen=True, slots=True)
class Preempt:
    """Preempt the fetch of `ref` and delete its partial blobs, for a more urgent fetch; it starts over later."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class AllowOthers:
    """No space can be freed for the fetch of `ref` now: the fetches after it need not wait for it."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Reprioritize:
    """Continue the fetch of `want.ref` at the priority of `want`."""

    want: Want


@dataclass(frozen=True, slots=True)
class StartFetch:
    """Start the fetch of `want`."""

    want: Want


VersionStep = Cancel | Forget | Refuse | Reprioritize | StartFetch
SpaceStep = Evict | Preempt | AllowOthers


@dataclass(frozen=True, slots=True)
class _Fetch:
    """A running fetch as an occupant: it protects its blobs, and its preemption frees all its space."""

    ref: ModelRef
    blobs: Mapping[str, int]


_Occupant = InventoryEntry | _Fetch


@dataclass(frozen=True, slots=True)
class Situation:
    """All inputs of a plan of the disk space.

    `active`: the running fetches with their want as last updated. `lacking`: the fetches blocked on disk space, the
    most urgent first, then the oldest, and what each of them needs. `stakes`: of those in `active`, if space is short.
    """

    demand: Demand
    holdings: Collection[InventoryEntry]
    active: Mapping[ModelRef, Want]
    space: SpaceUse
    lacking: Mapping[ModelRef, Shortage]
    stakes: Mapping[ModelRef, FetchSpace]
    high_watermark: float
    low_watermark: float


@dataclass(frozen=True, slots=True)
class Versions:
    """The state of some versions, without the space: fields as in `Situation`; `met`: those that are on the node as
    wanted, without a pending recheck. `settled`: permanent failures with their want, and refusals with the reported
    error; a retry starts when the want changes or the caller removes the entry. The steps of one version depend on no
    other, so a caller may plan the changed versions only."""

    demand: Demand
    met: Collection[ModelRef]
    active: Mapping[ModelRef, Want]
    settled: Mapping[ModelRef, Want | Permanent]


def plan_versions(versions: Versions) -> tuple[VersionStep, ...]:
    """Return the steps of these versions, without evictions: first those that release resources, then fetches by
    urgency."""
    return (
        *_cancels(versions),
        *_forgets(versions),
        *_refusals(versions),
        *_priorities(versions),
        *_starts(versions),
    )


def mark_protected(
    holdings: Iterable[InventoryEntry], demand: Demand, lacking: Collection[ModelRef]
) -> list[InventoryEntry]:
    """Mark the versions in the demand as wanted or prefetched, also those whose fetch was refused. Content under a
    wanted name that is resolved again is kept until then, unless its own fetch is in `lacking`."""
    return [_protected(holding, demand, lacking) for holding in holdings]


def _cancels(versions: Versions) -> Iterator[Cancel]:
    for ref, active in sorted(versions.active.items(), key=lambda item: item[0]):
        want = versions.demand.wants.get(ref)
        if want is None or not want.same_fetch(active):
            yield Cancel(ref)


def _forgets(versions: Versions) -> Iterator[Forget]:
    for ref in sorted(versions.settled):
        missing = ref in versions.demand.wants and ref not in versions.met
        if not missing and ref not in versions.demand.refused:
            yield Forget(ref)


def _refusals(versions: Versions) -> Iterator[Refuse]:
    for ref, error in sorted(versions.demand.refused.items(), key=lambda item: item[0]):
        known = versions.settled.get(ref)
        if not isinstance(known, Permanent) or (known.code, known.message) != (error.code, error.message):
            yield Refuse(ref, error)


def plan_space(situation: Situation) -> Iterator[SpaceStep]:
    """Yield the steps that free space, if it is short."""
    over = count_excess(situation.space, situation.high_watermark, situation.low_watermark)
    if over == 0 and not situation.lacking:
        return
    holdings = mark_protected(situation.holdings, situation.demand, situation.lacking)
    sizes = _sizes(holdings, situation.stakes.values())
    fetches = {ref: _as_occupant(ref, stake, sizes) for ref, stake in situation.stakes.items()}
    everything: list[_Occupant] = [*holdings, *fetches.values()]
    free = by_age(h for h in holdings if h.evictable)
    victims = choose_victims(free, everything, over).victims
    yield from (Evict(victim.ref, victim.digest, "watermark") for victim in victims)
    for ref, short in situation.lacking.items():
        spare = by_age(h for h in holdings if h.evictable_for_pod) if situation.active[ref].priority is _POD else []
        yielding = [fetches[other] for other in _less_urgent(situation, ref)]
        chosen = _choose_for_shortage(situation, short, [*free, *yielding, *spare], everything)
        if chosen is not None:
            yield from (Preempt(each.ref) for each in chosen if isinstance(each, _Fetch))
            gone = {victim.ref for victim in victims}
            evicted = (each for each in chosen if isinstance(each, InventoryEntry) and each.ref not in gone)
            yield from (Evict(each.ref, each.digest, "space") for each in evicted)
            return  # a later plan computes what the next one then lacks
        yield AllowOthers(ref)


def _protected(holding: InventoryEntry, demand: Demand, lacking: Collection[ModelRef]) -> InventoryEntry:
    want = demand.wants.get(holding.ref)
    met = want is not None and (
        want.is_met_by(holding.digest, holding.request)
        or (want.pin in (None, holding.digest) and holding.ref not in lacking)
    )
    if want is not None and met and want.priority is Priority.PREFETCH:
        return replace(holding, prefetched=True)
    return replace(holding, wanted=holding.wanted or met or holding.ref in demand.refused)


def _sizes(holdings: Iterable[InventoryEntry], stakes: Iterable[FetchSpace]) -> dict[str, int]:
    """Return the sizes of the committed blobs; a fetch that only claims one has no size for it."""
    known = [holding.blobs for holding in holdings] + [stake.blobs for stake in stakes]
    return {sha256: size for blobs in known for sha256, size in blobs.items() if size}


def _as_occupant(ref: ModelRef, stake: FetchSpace, sizes: Mapping[str, int]) -> _Fetch:
    downloads = {f"flight {id_}": size for id_, size in stake.reserved.items()}
    partials = {f"partial {id_}": size for id_, size in stake.left.items()}
    blobs = {sha256: sizes.get(sha256, 0) for sha256 in stake.blobs}
    return _Fetch(ref, {**blobs, **downloads, **partials})


def _less_urgent(situation: Situation, ref: ModelRef) -> list[ModelRef]:
    """Return the fetches to preempt for that of `ref`, the least urgent first: those of a lower priority, and those of
    its own priority that began to lack space after it."""
    urgencies = {other: Urgency(want.priority, order) for order, (other, want) in enumerate(situation.active.items())}
    asked = list(situation.lacking)
    later = asked[asked.index(ref) + 1 :]
    priority = situation.active[ref].priority
    less = [other for other, each in urgencies.items() if each.priority > priority or other in later]
    return sorted(less, key=urgencies.__getitem__, reverse=True)


def _choose_for_shortage(
    situation: Situation, short: Shortage, candidates: Sequence[_Occupant], everything: Sequence[_Occupant]
) -> list[_Occupant] | None:
    """Return the candidates to evict or preempt for `short`; None if all of them free too little, so that none goes."""
    kept = {id_: size for stake in situation.stakes.values() for id_, size in stake.left.items()}
    need = count_shortfall(situation.space, short.bytes + sum(kept.values())) if short.bytes else 0
    chosen = choose_victims(candidates, everything, need)
    need_files = short.files - situation.space.files_free
    if chosen.freed < need:
        return None
    if need_files <= 0:
        return list(chosen.victims)
    each_one = [replace(holding, blobs=dict.fromkeys(holding.blobs, 1)) for holding in everything]
    for_files = choose_victims([one for one in each_one if _among(one, candidates)], each_one, need_files)
    if for_files.freed < need_files:
        return None
    return [one for one in candidates if _among(one, chosen.victims) or _among(one, for_files.victims)]


def _among(one: _Occupant, occupants: Collection[_Occupant]) -> bool:
    return any(type(one) is type(each) and one.ref == each.ref for each in occupants)


def _priorities(versions: Versions) -> Iterator[Reprioritize]:
    for ref, active in sorted(versions.active.items(), key=lambda item: item[0]):
        want = versions.demand.wants.get(ref)
        if want is not None and want.same_fetch(active) and want.priority is not active.priority:
            yield Reprioritize(want)


def _starts(versions: Versions) -> Iterator[StartFetch]:
    missing = [want for want in versions.demand.wants.values() if want.ref not in versions.met]
    for want in sorted(missing, key=lambda w: (w.priority, w.ref)):
        known = versions.active.get(want.ref, versions.settled.get(want.ref))
        if not isinstance(known, Want) or not want.same_fetch(known):
            yield StartFetch(want)
