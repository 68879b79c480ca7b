"""The planner: the next steps, from the demand, the held versions, the running fetches, and the disk space.

Law: pure: no I/O, no clock, no memory. The same `Situation` gives the same steps, so the next plan repeats a step that
was not carried out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.demand import Demand, Priority, Urgency, Want
from cached.core.eviction import InventoryEntry, by_age, choose_victims, count_excess, count_shortfall
from cached.core.space import FetchSpace, Shortage, SpaceUse

EvictionReason = Literal["watermark", "space"]


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
class _FetchOccupant:
    """A running fetch as an occupant: it protects its blobs, and its preemption frees all its space."""

    ref: ModelRef
    blobs: Mapping[str, int]


_SpaceUser = InventoryEntry | _FetchOccupant


@dataclass(frozen=True, slots=True)
class Situation:
    """All inputs of a plan of the disk space.

    `fetching`: the running fetches with their want as last updated, and `fetch_space` of each if space is short.
    `shortages`: the needs of the fetches blocked on disk space, the most urgent first, then the oldest.
    """

    demand: Demand
    inventory: Collection[InventoryEntry]
    fetching: Mapping[ModelRef, Want]
    space: SpaceUse
    shortages: Mapping[ModelRef, Shortage]
    fetch_space: Mapping[ModelRef, FetchSpace]
    high_watermark: float
    low_watermark: float


def plan_versions(
    demand: Demand,
    met: Collection[ModelRef],
    fetching: Mapping[ModelRef, Want],
    failed: Mapping[ModelRef, Want | Permanent],
) -> tuple[VersionStep, ...]:
    """Return the steps of some versions, without evictions: first those that release resources, then fetches by
    urgency. The steps of one version depend on no other, so a caller may plan the changed versions only.

    `met`: those that are on the node as wanted, without a pending refresh. `failed`: permanent failures with their
    want, and refusals with the reported error; a retry starts when the want changes or the caller removes the entry.
    """
    cancels: list[VersionStep] = []
    changed: list[VersionStep] = []
    for ref, running in sorted(fetching.items(), key=lambda item: item[0]):
        want = demand.wants.get(ref)
        if want is None or not want.same_fetch(running):
            cancels.append(Cancel(ref))
        elif want.priority is not running.priority:
            changed.append(Reprioritize(want))
    missing = [want for want in demand.wants.values() if want.ref not in met]
    unmet = {*demand.refused, *(want.ref for want in missing)}
    forgets = [Forget(ref) for ref in sorted(failed) if ref not in unmet]
    refusals = []
    for ref, error in sorted(demand.refused.items(), key=lambda item: item[0]):
        told = failed.get(ref)
        if not isinstance(told, Permanent) or (told.code, told.message) != (error.code, error.message):
            refusals.append(Refuse(ref, error))
    for want in sorted(missing, key=lambda want: (want.priority, want.ref)):
        known = fetching.get(want.ref, failed.get(want.ref))
        if not isinstance(known, Want) or not want.same_fetch(known):
            changed.append(StartFetch(want))
    return (*cancels, *forgets, *refusals, *changed)


def plan_space(situation: Situation) -> Iterator[SpaceStep]:
    """Yield the steps that free space, if it is short."""
    over = count_excess(situation.space, situation.high_watermark, situation.low_watermark)
    if over == 0 and not situation.shortages:
        return
    versions = [mark_protected(entry, situation.demand, situation.shortages) for entry in situation.inventory]
    # A fetch that only claims a committed blob has no size for it.
    known = [*(entry.blobs for entry in versions), *(held.blobs for held in situation.fetch_space.values())]
    sizes = {sha256: size for blobs in known for sha256, size in blobs.items() if size}
    fetches = {ref: _as_occupant(ref, held, sizes) for ref, held in situation.fetch_space.items()}
    everything: list[_SpaceUser] = [*versions, *fetches.values()]
    free = by_age(entry for entry in versions if entry.evictable)
    victims = choose_victims(free, everything, over).victims
    yield from (Evict(victim.ref, victim.digest, "watermark") for victim in victims)
    for ref, short in situation.shortages.items():
        for_pod = situation.fetching[ref].priority is Priority.WAITING
        spare = by_age(entry for entry in versions if entry.evictable_for_pod) if for_pod else []
        less_urgent = [fetches[other] for other in _find_less_urgent(situation, ref)]
        chosen = _choose_for_shortage(situation, short, [*free, *less_urgent, *spare], everything)
        if chosen is not None:
            yield from (Preempt(each.ref) for each in chosen if isinstance(each, _FetchOccupant))
            gone = {victim.ref for victim in victims}
            evicted = (each for each in chosen if isinstance(each, InventoryEntry) and each.ref not in gone)
            yield from (Evict(each.ref, each.digest, "space") for each in evicted)
            return  # a later plan computes the shortage of the next one then
        yield AllowOthers(ref)


def mark_protected(entry: InventoryEntry, demand: Demand, short_of_space: Collection[ModelRef]) -> InventoryEntry:
    """Mark a version in the demand as wanted or prefetched, also one whose fetch was refused. Content under a wanted
    name that is resolved again is kept until then, unless its own fetch is in `short_of_space`."""
    want = demand.wants.get(entry.ref)
    met = want is not None and (
        want.is_met_by(entry.digest, entry.request)
        or (want.pin in (None, entry.digest) and entry.ref not in short_of_space)
    )
    if want is not None and met and want.priority is Priority.PREFETCH:
        return replace(entry, prefetched=True)
    return replace(entry, wanted=entry.wanted or met or demand.keeps(entry.ref))


def _as_occupant(ref: ModelRef, held: FetchSpace, sizes: Mapping[str, int]) -> _FetchOccupant:
    downloads = {f"download {id_}": size for id_, size in held.reserved.items()}
    partials = {f"partial {id_}": size for id_, size in held.left.items()}
    blobs = {sha256: sizes.get(sha256, 0) for sha256 in held.blobs}
    return _FetchOccupant(ref, {**blobs, **downloads, **partials})


def _find_less_urgent(situation: Situation, ref: ModelRef) -> list[ModelRef]:
    """Return the fetches to preempt for that of `ref`, the least urgent first: those of a lower priority, and those of
    its own priority that began to lack space after it."""
    fetching = situation.fetching.items()
    urgencies = {other: Urgency(want.priority, order) for order, (other, want) in enumerate(fetching)}
    blocked = list(situation.shortages)
    later = blocked[blocked.index(ref) + 1 :]
    priority = situation.fetching[ref].priority
    less = [other for other, each in urgencies.items() if each.priority > priority or other in later]
    return sorted(less, key=urgencies.__getitem__, reverse=True)


def _choose_for_shortage(
    situation: Situation, short: Shortage, candidates: Sequence[_SpaceUser], everything: Sequence[_SpaceUser]
) -> list[_SpaceUser] | None:
    """Return the candidates to evict or preempt for `short`; None if all of them free too little, so that none goes."""
    kept = {id_: size for held in situation.fetch_space.values() for id_, size in held.left.items()}
    need = count_shortfall(situation.space, short.bytes + sum(kept.values())) if short.bytes else 0
    chosen = choose_victims(candidates, everything, need)
    need_files = short.files - situation.space.files_free
    if chosen.freed < need:
        return None
    if need_files <= 0:
        return list(chosen.victims)
    each_one = [replace(each, blobs=dict.fromkeys(each.blobs, 1)) for each in everything]
    for_files = choose_victims([one for one in each_one if _among(one, candidates)], each_one, need_files)
    if for_files.freed < need_files:
        return None
    return [one for one in candidates if _among(one, chosen.victims) or _among(one, for_files.victims)]


def _among(one: _SpaceUser, occupants: Collection[_SpaceUser]) -> bool:
    return any(type(one) is type(each) and one.ref == each.ref for each in occupants)
