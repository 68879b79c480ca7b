"""The planner: what to do next, given what is wanted, what is held, what is under way, and the space.

Law: pure: no I/O, no clock, and no memory: what was done before is in the `Situation`. Planning the same situation
again gives the same steps, so a step that was not carried out comes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.demand import Demand, Priority, Urgency, Want
from cached.core.eviction import Holding, by_age, choose_victims, over_watermark, short_of
from cached.core.space import Shortage, SpaceUse, Stake

EvictionReason = Literal["watermark", "space"]

_POD = Priority.WAITING


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the flight of `ref`: nobody wants it any more, or not from there."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Forget:
    """The failure or refusal of `ref` is settled no more: its want is gone, or met."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell whoever asks for `ref` that this can never be."""

    ref: ModelRef
    error: Permanent


@dataclass(frozen=True, slots=True)
class Evict:
    """Withdraw and delete the version `ref`, as long as it is `digest`."""

    ref: ModelRef
    digest: Digest
    reason: EvictionReason


@dataclass(frozen=True, slots=True)
class GiveWay:
    """Call the fetch of `ref` off, with all it has on the disk, for one that is more urgent; later it starts over."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class LetPass:
    """No room can be made for the fetch of `ref` now: those after it need not wait for that."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Reprioritize:
    """Go on with the flight of `want.ref`, at the priority of `want`."""

    want: Want


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to fetch `want`."""

    want: Want


VersionStep = Cancel | Forget | Refuse | Reprioritize | Start
SpaceStep = Evict | GiveWay | LetPass


@dataclass(frozen=True, slots=True)
class _Fetch:
    """A fetch under way as an occupant of space: it keeps its blobs from being deleted, and gives all back when it
    goes."""

    ref: ModelRef
    blobs: Mapping[str, int]


_Occupant = Holding | _Fetch


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a plan depends on.

    `active`: what is being fetched, as it was wanted when last told. `settled`: what failed permanently with the want
    it failed for, or was refused with the error that was told; it is tried again when the want changes, or when the
    caller leaves it out. `lacking`: the fetches that wait for space, the most urgent first and of equals the one that
    asked first, and what each of them needs. `stakes`: of those in `active`, where space is short.
    """

    demand: Demand
    holdings: Collection[Holding]
    active: Mapping[ModelRef, Want]
    settled: Mapping[ModelRef, Want | Permanent]
    space: SpaceUse
    lacking: Mapping[ModelRef, Shortage]
    stakes: Mapping[ModelRef, Stake]
    high_watermark: float
    low_watermark: float


@dataclass(frozen=True, slots=True)
class Versions:
    """What is known of some versions, whatever the space: fields as in `Situation`; `met`: those that are here as they
    are wanted, and need not be resolved again.

    What one version needs depends on no other: whoever knows which ones changed plans those, and not all of a node.
    """

    demand: Demand
    met: Collection[ModelRef]
    active: Mapping[ModelRef, Want]
    settled: Mapping[ModelRef, Want | Permanent]


def plan(situation: Situation) -> tuple[VersionStep | SpaceStep, ...]:
    """The steps to take, in order: first what gives back, last what takes, sooner wants before later ones."""
    wants = situation.demand.wants
    met = {
        holding.ref
        for holding in situation.holdings
        if holding.ref in wants and wants[holding.ref].is_met_by(holding.digest, holding.request)
    }
    versions = Versions(situation.demand, met, situation.active, situation.settled)
    return (*_give_back(versions), *plan_space(situation), *_take(versions))


def plan_versions(versions: Versions) -> tuple[VersionStep, ...]:
    """The steps that these versions need, in the order of `plan`; none of them evicts."""
    return (*_give_back(versions), *_take(versions))


def _give_back(versions: Versions) -> Iterator[VersionStep]:
    yield from _cancels(versions)
    yield from _forgets(versions)
    yield from _refusals(versions)


def _take(versions: Versions) -> Iterator[VersionStep]:
    yield from _priorities(versions)
    yield from _starts(versions)


def protected(holdings: Iterable[Holding], demand: Demand, lacking: Collection[ModelRef]) -> list[Holding]:
    """The holdings, wanted also where the demand has them, even if the fetch was refused: somebody asks for them.

    What is here under a wanted name, and is to be resolved again, stays meanwhile, unless its own fetch is among those
    that lack space.
    """
    return [_protected(holding, demand, lacking) for holding in holdings]


def _cancels(versions: Versions) -> Iterator[Cancel]:
    for ref, flying in sorted(versions.active.items(), key=lambda item: item[0]):
        want = versions.demand.wants.get(ref)
        if want is None or not want.same_fetch(flying):
            yield Cancel(ref)


def _forgets(versions: Versions) -> Iterator[Forget]:
    for ref in sorted(versions.settled):
        missing = ref in versions.demand.wants and ref not in versions.met
        if not missing and ref not in versions.demand.refused:
            yield Forget(ref)


def _refusals(versions: Versions) -> Iterator[Refuse]:
    for ref, error in sorted(versions.demand.refused.items(), key=lambda item: item[0]):
        told = versions.settled.get(ref)
        if not isinstance(told, Permanent) or (told.code, told.message) != (error.code, error.message):
            yield Refuse(ref, error)


def plan_space(situation: Situation) -> Iterator[SpaceStep]:
    """The steps that make room, where it is short."""
    over = over_watermark(situation.space, situation.high_watermark, situation.low_watermark)
    if over == 0 and not situation.lacking:
        return
    holdings = protected(situation.holdings, situation.demand, situation.lacking)
    sizes = _sizes(holdings, situation.stakes.values())
    fetches = {ref: _as_occupant(ref, stake, sizes) for ref, stake in situation.stakes.items()}
    everything: list[_Occupant] = [*holdings, *fetches.values()]
    free = by_age(h for h in holdings if h.evictable)
    victims = choose_victims(free, everything, over).victims
    yield from (Evict(victim.ref, victim.digest, "watermark") for victim in victims)
    for ref, short in situation.lacking.items():
        spare = by_age(h for h in holdings if h.yields_to_pods) if situation.active[ref].priority is _POD else []
        yielding = [fetches[other] for other in _less_urgent(situation, ref)]
        chosen = _make_room(situation, short, [*free, *yielding, *spare], everything)
        if chosen is not None:
            yield from (GiveWay(each.ref) for each in chosen if isinstance(each, _Fetch))
            gone = {victim.ref for victim in victims}
            evicted = (each for each in chosen if isinstance(each, Holding) and each.ref not in gone)
            yield from (Evict(each.ref, each.digest, "space") for each in evicted)
            return  # what the next one lacks then, a later plan finds out
        yield LetPass(ref)


def _protected(holding: Holding, demand: Demand, lacking: Collection[ModelRef]) -> Holding:
    want = demand.wants.get(holding.ref)
    met = want is not None and (
        want.is_met_by(holding.digest, holding.request)
        or (want.pin in (None, holding.digest) and holding.ref not in lacking)
    )
    if want is not None and met and want.priority is Priority.PREFETCH:
        return replace(holding, prefetched=True)
    return replace(holding, wanted=holding.wanted or met or holding.ref in demand.refused)


def _sizes(holdings: Iterable[Holding], stakes: Iterable[Stake]) -> dict[str, int]:
    """The blobs that are here, with their sizes: who only promised itself one does not know that it is."""
    known = [holding.blobs for holding in holdings] + [stake.blobs for stake in stakes]
    return {sha256: size for blobs in known for sha256, size in blobs.items() if size}


def _as_occupant(ref: ModelRef, stake: Stake, sizes: Mapping[str, int]) -> _Fetch:
    flights = {f"flight {id_}": size for id_, size in stake.reserved.items()}
    partials = {f"partial {id_}": size for id_, size in stake.left.items()}
    blobs = {sha256: sizes.get(sha256, 0) for sha256 in stake.blobs}
    return _Fetch(ref, {**blobs, **flights, **partials})


def _less_urgent(situation: Situation, ref: ModelRef) -> list[ModelRef]:
    """The fetches that give way to that of `ref`, the least urgent first: those of a lower priority, and of its own
    those that ask for space themselves, and asked later."""
    urgencies = {other: Urgency(want.priority, order) for order, (other, want) in enumerate(situation.active.items())}
    asked = list(situation.lacking)
    later = asked[asked.index(ref) + 1 :]
    priority = situation.active[ref].priority
    less = [other for other, each in urgencies.items() if each.priority > priority or other in later]
    return sorted(less, key=urgencies.__getitem__, reverse=True)


def _make_room(
    situation: Situation, short: Shortage, candidates: Sequence[_Occupant], everything: Sequence[_Occupant]
) -> list[_Occupant] | None:
    """What goes so that so much is free; None where all the candidates are not enough, as then none is worth it."""
    kept = {id_: size for stake in situation.stakes.values() for id_, size in stake.left.items()}
    need = short_of(situation.space, short.bytes + sum(kept.values())) if short.bytes else 0
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
    for ref, flying in sorted(versions.active.items(), key=lambda item: item[0]):
        want = versions.demand.wants.get(ref)
        if want is not None and want.same_fetch(flying) and want.priority is not flying.priority:
            yield Reprioritize(want)


def _starts(versions: Versions) -> Iterator[Start]:
    missing = [want for want in versions.demand.wants.values() if want.ref not in versions.met]
    for want in sorted(missing, key=lambda w: (w.priority, w.ref)):
        known = versions.active.get(want.ref, versions.settled.get(want.ref))
        if not isinstance(known, Want) or not want.same_fetch(known):
            yield Start(want)
