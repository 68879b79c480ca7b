"""Demand: the versions this node wants, for which pods, pulls and prefetch rules, at which priority.

Law: pure: no I/O, no clock. The same catalog, pods, pulls and labels give the same demand.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, Permanent
from cached.contract.namespaces import ForbiddenNamespace
from cached.contract.reference import ModelRef
from cached.core.catalog import Catalog, CatalogVersion, FetchRequest


class Priority(IntEnum):
    """The priority of a want; lower is more urgent."""

    WAITING = 0  # a waiting pod
    PULL = 1  # `holdfast pull`
    PREFETCH = 2  # a prefetch rule


@dataclass(frozen=True, slots=True, order=True)
class Urgency:
    """The rank of a fetch, the lower one first: its priority, then the `order` in which fetches began."""

    priority: Priority
    order: int


@dataclass(frozen=True, slots=True)
class PodWant:
    """An annotated pod of this node: its uid, `namespace/name`, and the requested version and pin."""

    uid: str
    pod: str
    ref: ModelRef
    pin: Digest | None

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return self.pod.partition("/")[0]


@dataclass(frozen=True, slots=True)
class PullWant:
    """A `holdfast pull` that has not expired."""

    ref: ModelRef
    pin: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Want(FetchRequest):
    """One wanted version with everything its fetch needs. `reasons` are for a person; `keep`: never evict;
    `pin_promised`: the pin comes from the catalog, not from pods or pulls only."""

    pin: Digest | None
    priority: Priority
    reasons: tuple[str, ...]
    keep: bool
    pin_promised: bool = False

    def is_met_by(self, digest: Digest | None, request: str | None) -> bool:
        """Return whether content of `digest`, fetched for `request`, meets this want: a pin by its digest, without a
        pin by the same request. None: no content, or of unknown origin."""
        if self.pin is not None:
            return digest == self.pin
        return digest is not None and request == self.request

    def same_fetch(self, other: Want) -> bool:
        """Return whether a fetch for `other` gives the same bytes or the same failure."""
        return self._fetch() == other._fetch()

    def _fetch(self) -> tuple[object, ...]:
        filters = self.include, self.exclude, self.preset, self.require_loadable
        return self.ref, self.source, self.pin, *filters, self.trust


@dataclass(frozen=True, slots=True)
class Demand:
    """The wants of this node, and the refused versions with the error. No version is in both."""

    wants: Mapping[ModelRef, Want]
    refused: Mapping[ModelRef, Permanent]

    def keeps(self, ref: ModelRef) -> bool:
        """Return whether held content of a refused version stays: its pods run with it, but for those that the catalog
        does not give it to."""
        return ref in self.refused and not isinstance(self.refused[ref], ForbiddenNamespace)


@dataclass(frozen=True, slots=True, order=True)
class _Ask:
    priority: Priority
    reason: str
    pin: Digest | None = field(compare=False)


_PREFETCHED = _Ask(Priority.PREFETCH, "prefetch", None)


@dataclass(frozen=True, slots=True)
class VersionDemand:
    """The demand for one version: a want, a refusal, or neither. `refused_pins`: the errors of pins that cannot be met;
    each concerns only the pods and pulls with that pin. `forbidden`: by namespace, the errors of pods that the catalog
    does not give the model to."""

    want: Want | None
    refused: Permanent | None
    refused_pins: Mapping[Digest, Permanent]
    forbidden: Mapping[str, Permanent]


def compute_version_demand(
    catalog: Catalog,
    ref: ModelRef,
    pods: Iterable[PodWant],
    pulls: Iterable[PullWant],
    failed_pins: Mapping[Digest, Permanent],
    *,
    prefetched: bool,
) -> VersionDemand:
    """Merge the pods, pulls and prefetch rule of one version into one want.

    Refused is a version that the catalog lacks (`unknown_model`), one requested only by pods of namespaces that the
    catalog does not give it to (`forbidden_namespace`), and one requested by pods of which every request pins a digest
    that cannot be met: another than the catalog's, or one of `failed_pins` if the catalog has none. Without a digest in
    the catalog a pin decides if all pods and pulls agree on it.
    """
    pods = list(pods)
    forbidden = _find_all_forbidden(catalog, ref, pods) if pods else {}
    asks = [_Ask(Priority.WAITING, f"pod {pod.pod}", pod.pin) for pod in pods if pod.namespace not in forbidden]
    asks += [_Ask(Priority.PULL, "pull", pull.pin) for pull in pulls]
    if prefetched:
        asks.append(_PREFETCHED)
    if not asks:
        return VersionDemand(None, next(iter(forbidden.values()), None), {}, forbidden)
    entry = catalog.find(ref)
    if entry is None:
        return VersionDemand(None, unknown_model(catalog, ref), {}, forbidden)
    asks.sort()
    wrong = _wrong_pins(entry, asks, failed_pins)
    left = [ask for ask in asks if ask.pin is None or ask.pin not in wrong]
    if left:
        return VersionDemand(_merge(entry, left), None, wrong, forbidden)
    first = asks[0]
    refused = wrong[first.pin] if first.priority is Priority.WAITING and first.pin else None
    return VersionDemand(None, refused, wrong, forbidden)


def _find_all_forbidden(catalog: Catalog, ref: ModelRef, pods: Iterable[PodWant]) -> dict[str, Permanent]:
    found = {pod.namespace: find_forbidden(catalog, ref, pod.namespace) for pod in pods}
    return {namespace: error for namespace, error in sorted(found.items()) if error is not None}


def find_forbidden(catalog: Catalog, ref: ModelRef, namespace: str) -> ForbiddenNamespace | None:
    """Return the error of a pod in `namespace` that the catalog does not give the model `ref.name` to; None where it
    does, and for a model that it lacks."""
    model = catalog.models.get(ref.name)
    if model is None or model.namespaces is None or namespace in model.namespaces:
        return None
    return ForbiddenNamespace(ref, namespace, model.namespaces)


def find_used(
    pods: Iterable[PodWant], models: Mapping[ModelRef, Digest], catalog: Catalog | None
) -> frozenset[ModelRef]:
    """Return the versions of `models` with the digest that some pod wants: that of its pin, else of the catalog, if
    either names one. Pods that the catalog does not give the model to do not count."""
    if catalog is None:
        return frozenset(pod.ref for pod in pods if is_met(pod, models))
    found = frozenset(
        pod.ref for pod in pods if is_met(pod, models) and find_forbidden(catalog, pod.ref, pod.namespace) is None
    )
    promised = {ref: entry.digest for ref in found if (entry := catalog.find(ref)) is not None}
    return frozenset(ref for ref in found if promised.get(ref) in (None, models[ref]))


def count_waiting(pods: Iterable[PodWant], models: Mapping[ModelRef, Digest]) -> int:
    """Return the number of pods whose version is not in `models`, or has another digest than their pin."""
    return len({pod.uid for pod in pods if not is_met(pod, models)})


def count_waiting_by_version(pods: Iterable[PodWant], models: Mapping[ModelRef, Digest]) -> dict[ModelRef, int]:
    """Return for each version the number of the pods that wait for it; none of those for which no pod waits."""
    waiting = {(pod.ref, pod.uid) for pod in pods if not is_met(pod, models)}
    return dict(Counter(ref for ref, _ in waiting))


def is_met(pod: PodWant, models: Mapping[ModelRef, Digest]) -> bool:
    """Return whether a pod's version is in `models`, with the digest of its pin if it has one."""
    digest = models.get(pod.ref)
    return digest is not None and pod.pin in (None, digest)


def prefetched_versions(catalog: Catalog, node_labels: Mapping[str, str]) -> frozenset[ModelRef]:
    """Return the versions that the catalog prefetches on a node with these labels."""
    return frozenset(
        model.versions[version].ref if version in model.versions else ModelRef(model.name, version)
        for model in catalog.models.values()
        if model.node_selector.items() <= node_labels.items()
        for version in model.prefetch
    )


def is_kept(catalog: Catalog, ref: ModelRef, node_labels: Mapping[str, str] | None) -> bool:
    """Return whether the catalog keeps a version without a want: by `pin: true`, or, while the node's labels are
    unknown (None), by a prefetch rule that may select the node."""
    model = catalog.models.get(ref.name)
    if model is None:
        return False
    return model.pin or (node_labels is None and ref.version in model.prefetch)


def _wrong_pins(
    entry: CatalogVersion, asks: Sequence[_Ask], failed_pins: Mapping[Digest, Permanent]
) -> dict[Digest, Permanent]:
    """Return the errors of pins that cannot be met, by the catalog's digest, else by the source's content. Their
    requests are left out of the want, so that one wrong pin fails no other request."""
    wrong: dict[Digest, Permanent] = {}
    for ask in asks:
        if ask.pin is None or ask.pin == entry.digest or ask.pin in wrong:
            continue
        if entry.digest is not None:
            wrong[ask.pin] = DigestMismatch(
                f"{entry.ref}: pins that cannot both be met",
                f"{entry.digest} (the catalog's digest)",
                f"{ask.pin} (the pin of {ask.reason})",
                "correct the pin that is wrong, or ask for another version",
            )
        elif ask.pin in failed_pins:
            wrong[ask.pin] = failed_pins[ask.pin]
    return wrong


def _merge(entry: CatalogVersion, asks: Sequence[_Ask]) -> Want:
    pin = entry.digest
    if pin is None and len({ask.pin for ask in asks if ask.priority is not Priority.PREFETCH}) == 1:
        pin = next((ask.pin for ask in asks if ask.pin is not None), None)
    # Else the requests disagree on the pin, and none is known to be right: the version is the source's content, and
    # `_wrong_pins` then judges each pin by it.
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
        preset=entry.preset,
        require_loadable=entry.require_loadable,
        trust=entry.trust,
        link=entry.link,
    )


def unknown_model(catalog: Catalog, ref: ModelRef) -> Permanent:
    """Return the error of a version that the catalog lacks: why its entry was rejected, else with the closest entry."""
    model, bad = catalog.models.get(ref.name), catalog.find_rejection(ref)
    if bad is not None:
        found = f"one that is rejected, line {bad.line}: {bad.reason}"
        message = f"{ref}: expected a good entry in the catalog, found {found}"
        return Permanent("unknown_model", message, "correct that entry")
    if model is None:
        close = difflib.get_close_matches(ref.name, catalog.models, n=1)
        hint = f"; the nearest name there is {close[0]}" if close else ""
        message = f"{ref}: expected the model in the catalog, found no {ref.name!r} among {len(catalog.models)}{hint}"
    else:
        listed = ", ".join(sorted(model.versions)[:10]) or "none"
        message = f"{ref}: expected the version in the catalog, found of {ref.name!r}: {listed}"
    return Permanent("unknown_model", message, "add it to the catalog, or ask for one that is there")
