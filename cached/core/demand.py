"""Demand: which versions this node wants now, for whom, and how soon.

Law: pure: no I/O, no clock. The same catalog, pods, pulls and labels always give the same demand.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, Permanent
from cached.contract.reference import ModelRef
from cached.core.catalog import Catalog, CatalogVersion, request_of


class Priority(IntEnum):
    """How soon a version is wanted; lower is sooner."""

    WAITING = 0  # a pod
    PULL = 1  # a person
    PREFETCH = 2  # nobody yet


@dataclass(frozen=True, slots=True, order=True)
class Urgency:
    """Which fetch comes first, the lower one: by priority, and of equals the one that began first (`order`)."""

    priority: Priority
    order: int


@dataclass(frozen=True, slots=True)
class PodWant:
    """An annotated pod of this node: its uid, `namespace/name`, and the version and pin that it asks for."""

    uid: str
    pod: str
    ref: ModelRef
    pin: Digest | None


@dataclass(frozen=True, slots=True)
class PullWant:
    """A `holdfast pull` that has not run out."""

    ref: ModelRef
    pin: Digest | None


@dataclass(frozen=True, slots=True)
class Want:
    """One version to have, with all that it takes to fetch it. `source` may carry credentials; `reasons` are for a
    person; `keep`: never evicted; `pin_promised`: the pin is the catalog's, and not only of those who ask."""

    ref: ModelRef
    source: str = field(repr=False)
    pin: Digest | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    priority: Priority
    reasons: tuple[str, ...]
    keep: bool
    pin_promised: bool = False

    @property
    def request(self) -> str:
        """The identity of what is asked for: `catalog.request_of` source and filters."""
        return request_of(self.source, self.include, self.exclude)

    def is_met_by(self, digest: Digest | None, request: str | None) -> bool:
        """Tell whether content of `digest`, fetched for `request`, is what is wanted: a pin is met by its digest, no
        pin by what was fetched for the same request. None: there is nothing, or its origin is unknown."""
        if self.pin is not None:
            return digest == self.pin
        return digest is not None and request == self.request

    def same_fetch(self, other: Want) -> bool:
        """Tell whether fetching for `other` gives the same bytes or the same failure."""
        return self._fetch() == other._fetch()

    def _fetch(self) -> tuple[object, ...]:
        return self.ref, self.source, self.pin, self.include, self.exclude


@dataclass(frozen=True, slots=True)
class Demand:
    """What this node wants, and what it was asked for but cannot want, with why. No version is in both.

    `verdicts`: pins that cannot be met, each a matter of those alone who pin so.
    """

    wants: Mapping[ModelRef, Want]
    refused: Mapping[ModelRef, Permanent]
    verdicts: Mapping[tuple[ModelRef, Digest], Permanent] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class _Ask:
    priority: Priority
    reason: str
    pin: Digest | None = field(compare=False)


def compute_demand(
    catalog: Catalog,
    pods: Iterable[PodWant],
    pulls: Iterable[PullWant],
    node_labels: Mapping[str, str],
    failed_pins: Mapping[tuple[ModelRef, Digest], Permanent],
) -> Demand:
    """Merge what pods, pulls and the catalog's prefetch rules ask for into one want for each version.

    Refused are versions that the catalog lacks (`unknown_model`), and versions of which pods ask, and everybody pins a
    digest that cannot be met: another than the catalog has, or one of `failed_pins` where it has none. Without one in
    the catalog a pin decides where all pods and pulls agree.
    """
    by_pods, by_pulls = group_by_version(pods), group_by_version(pulls)
    failed: defaultdict[ModelRef, dict[Digest, Permanent]] = defaultdict(dict)
    for (ref, pin), error in failed_pins.items():
        failed[ref][pin] = error
    prefetched = prefetched_versions(catalog, node_labels)
    wants: dict[ModelRef, Want] = {}
    refused: dict[ModelRef, Permanent] = {}
    verdicts: dict[tuple[ModelRef, Digest], Permanent] = {}
    for ref in sorted({*by_pods, *by_pulls, *prefetched}):
        theirs = by_pods.get(ref, ()), by_pulls.get(ref, ())
        outcome = compute_outcome(catalog, ref, *theirs, failed[ref], prefetched=ref in prefetched)
        if outcome.want is not None:
            wants[ref] = outcome.want
        if outcome.refused is not None:
            refused[ref] = outcome.refused
        verdicts.update({(ref, pin): error for pin, error in outcome.verdicts.items()})
    return Demand(wants, refused, verdicts)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of all that is asked about one version: a want, a refusal, or neither where nobody asks; and the
    verdicts on pins that cannot be met."""

    want: Want | None
    refused: Permanent | None
    verdicts: Mapping[Digest, Permanent]


def compute_outcome(
    catalog: Catalog,
    ref: ModelRef,
    pods: Iterable[PodWant],
    pulls: Iterable[PullWant],
    failed_pins: Mapping[Digest, Permanent],
    *,
    prefetched: bool,
) -> Outcome:
    """What `compute_demand` makes of one version; `failed_pins` are its own."""
    asks = [_Ask(Priority.WAITING, f"pod {pod.pod}", pod.pin) for pod in pods]
    asks += [_Ask(Priority.PULL, "pull", pull.pin) for pull in pulls]
    if prefetched:
        asks.append(_Ask(Priority.PREFETCH, "prefetch", None))
    if not asks:
        return Outcome(None, None, {})
    entry = catalog.find(ref)
    if entry is None:
        return Outcome(None, unknown_model(catalog, ref), {})
    asks.sort()
    wrong = _wrong_pins(entry, asks, failed_pins)
    left = [ask for ask in asks if ask.pin is None or ask.pin not in wrong]
    if left:
        return Outcome(_merge(entry, left), None, wrong)
    waits = asks[0].priority is Priority.WAITING and asks[0].pin is not None
    return Outcome(None, wrong[asks[0].pin] if waits and asks[0].pin is not None else None, wrong)


W = TypeVar("W", PodWant, PullWant)


def group_by_version(wants: Iterable[W]) -> dict[ModelRef, list[W]]:
    """The pods, or the pulls, that want each version."""
    found: defaultdict[ModelRef, list[W]] = defaultdict(list)
    for want in wants:
        found[want.ref].append(want)
    return dict(found)


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


def _has(want: PodWant, here: Mapping[ModelRef, Digest]) -> bool:
    digest = here.get(want.ref)
    return digest is not None and want.pin in (None, digest)


def prefetched_versions(catalog: Catalog, node_labels: Mapping[str, str]) -> frozenset[ModelRef]:
    """The versions that the catalog's prefetch rules want on a node with these labels."""
    return frozenset(_prefetched(catalog, node_labels))


def keeps(catalog: Catalog, ref: ModelRef, node_labels: Mapping[str, str] | None) -> bool:
    """Tell whether the catalog keeps a version that nobody may ask for: by `pin: true`, or, while the node's labels are
    not known (None), by a prefetch rule that may turn out to select the node."""
    model = catalog.models.get(ref.name)
    if model is None:
        return False
    return model.pin or (node_labels is None and model.prefetch is not None and ref.version in model.prefetch.versions)


def _prefetched(catalog: Catalog, node_labels: Mapping[str, str]) -> Iterator[ModelRef]:
    for model in catalog.models.values():
        rule = model.prefetch
        if rule is not None and rule.node_selector.items() <= node_labels.items():
            yield from (ModelRef(model.name, version) for version in rule.versions)


def _wrong_pins(
    entry: CatalogVersion, asks: Sequence[_Ask], failed_pins: Mapping[Digest, Permanent]
) -> dict[Digest, Permanent]:
    """The pins that cannot be met. The catalog's digest decides; without one it is what the source was found to have.
    Who pins so is left out, so that one's mistake fails nobody else."""
    wrong: dict[Digest, Permanent] = {}
    for ask in asks:
        if ask.pin is None or ask.pin == entry.digest or ask.pin in wrong:
            continue
        if entry.digest is not None:
            wrong[ask.pin] = _mismatch(entry.ref, f"{entry.digest} (the catalog's digest)", ask.pin, ask.reason)
        elif ask.pin in failed_pins:
            wrong[ask.pin] = failed_pins[ask.pin]
    return wrong


def _merge(entry: CatalogVersion, asks: Sequence[_Ask]) -> Want:
    pin = entry.digest
    if pin is None and len({ask.pin for ask in asks if ask.priority is not Priority.PREFETCH}) == 1:
        pin = next((ask.pin for ask in asks if ask.pin is not None), None)
    # Else some pin and some do not, or they pin differently, and nobody can say who is right: the version is what the
    # source has, and each one compares for himself, as above.
    return Want(
        ref=entry.ref,
        source=entry.source,
        pin=pin,
        include=entry.include,
        exclude=entry.exclude,
        priority=asks[0].priority,
        reasons=tuple(dict.fromkeys(ask.reason for ask in asks)),
        keep=entry.keep,
        pin_promised=entry.digest is not None,
    )


def _mismatch(ref: ModelRef, expected: str, found: Digest, reason: str) -> Permanent:
    return DigestMismatch(
        f"{ref}: pins that cannot both be met",
        expected,
        f"{found} (the pin of {reason})",
        "correct the pin that is wrong, or ask for another version",
    )


def unknown_model(catalog: Catalog, ref: ModelRef) -> Permanent:
    """The refusal of a version that the catalog lacks, with what is nearest to it."""
    model = catalog.models.get(ref.name)
    if model is None:
        close = difflib.get_close_matches(ref.name, catalog.models, n=1)
        hint = f"; the nearest name there is {close[0]}" if close else ""
        message = f"{ref}: expected the model in the catalog, found no {ref.name!r} among {len(catalog.models)}{hint}"
    elif ref.version in model.rejected:
        message = f"{ref}: expected a good entry in the catalog, found one that was rejected"
    else:
        listed = ", ".join(sorted(model.versions)[:10]) or "none"
        message = f"{ref}: expected the version in the catalog, found of {ref.name!r}: {listed}"
    return Permanent(
        "unknown_model",
        message,
        "add it to the catalog (the daemon's log names entries that were rejected), or ask for one that is there",
    )
