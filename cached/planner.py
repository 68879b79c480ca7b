"""The planner: what to do next, given what is wanted, what is held, what is under way, and the space.

Law: pure: no I/O, no clock, and no memory: what was done before is in the `Situation`. Planning the same situation
again gives the same steps, so a step that was not carried out comes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.demand import Demand, Want
from cached.eviction import Holding, choose_victims, over_watermark, short_of
from cached.ledger import SpaceUse

EvictionReason = Literal["watermark", "space"]


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
class Reprioritize:
    """Go on with the flight of `want.ref`, at the priority of `want`."""

    want: Want


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to fetch `want`."""

    want: Want


Step = Cancel | Forget | Refuse | Evict | Reprioritize | Start


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a plan depends on.

    `active`: what is being fetched, as it was wanted when last told. `settled`: what failed permanently with the want
    it failed for, or was refused with the error that was told; it is tried again when the want changes, or when the
    caller leaves it out. `needed_bytes`: the reservation that the first of the waiting fetches was refused with
    `NoSpace`; 0 where none waits.
    """

    demand: Demand
    holdings: Collection[Holding]
    active: Mapping[ModelRef, Want]
    settled: Mapping[ModelRef, Want | Permanent]
    space: SpaceUse
    needed_bytes: int
    high_watermark: float
    low_watermark: float


def plan(situation: Situation) -> tuple[Step, ...]:
    """The steps to take, in order: first what gives back, last what takes, sooner wants before later ones."""
    held = {holding.ref: holding.digest for holding in situation.holdings}
    missing = [want for want in situation.demand.wants.values() if not _meets(held.get(want.ref), want)]
    return (
        *_cancels(situation),
        *_forgets(situation, {want.ref for want in missing}),
        *_refusals(situation),
        *_evictions(situation),
        *_priorities(situation),
        *_starts(situation, missing),
    )


def _meets(digest: Digest | None, want: Want) -> bool:
    return digest is not None and want.pin in (None, digest)


def _cancels(situation: Situation) -> Iterator[Cancel]:
    for ref, flying in sorted(situation.active.items(), key=lambda item: item[0]):
        want = situation.demand.wants.get(ref)
        if want is None or not want.same_fetch(flying):
            yield Cancel(ref)


def _forgets(situation: Situation, missing: Collection[ModelRef]) -> Iterator[Forget]:
    for ref in sorted(situation.settled):
        if ref not in missing and ref not in situation.demand.refused:
            yield Forget(ref)


def _refusals(situation: Situation) -> Iterator[Refuse]:
    for ref, error in sorted(situation.demand.refused.items(), key=lambda item: item[0]):
        told = situation.settled.get(ref)
        if not isinstance(told, Permanent) or (told.code, told.message) != (error.code, error.message):
            yield Refuse(ref, error)


def _evictions(situation: Situation) -> Iterator[Evict]:
    holdings = [_protected(holding, situation) for holding in situation.holdings]
    over = over_watermark(situation.space, situation.high_watermark, situation.low_watermark)
    victims = choose_victims(holdings, over).victims
    yield from (Evict(victim.ref, victim.digest, "watermark") for victim in victims)
    short = short_of(situation.space, situation.needed_bytes)
    for_space = choose_victims(holdings, short)
    if for_space.freed >= short:  # else it would empty the cache and still not fit
        gone = {victim.ref for victim in victims}
        yield from (Evict(v.ref, v.digest, "space") for v in for_space.victims if v.ref not in gone)


def _protected(holding: Holding, situation: Situation) -> Holding:
    """The holding, wanted also where the demand has it, even if the fetch of it was refused: somebody asks for it."""
    want = situation.demand.wants.get(holding.ref)
    asked = holding.ref in situation.demand.refused or (want is not None and _meets(holding.digest, want))
    return replace(holding, wanted=holding.wanted or asked)


def _priorities(situation: Situation) -> Iterator[Reprioritize]:
    for ref, flying in sorted(situation.active.items(), key=lambda item: item[0]):
        want = situation.demand.wants.get(ref)
        if want is not None and want.same_fetch(flying) and want.priority is not flying.priority:
            yield Reprioritize(want)


def _starts(situation: Situation, missing: Collection[Want]) -> Iterator[Start]:
    for want in sorted(missing, key=lambda w: (w.priority, w.ref)):
        known = situation.active.get(want.ref, situation.settled.get(want.ref))
        if not isinstance(known, Want) or not want.same_fetch(known):
            yield Start(want)
