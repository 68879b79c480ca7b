"""Demand: who wants what, how soon, and whose wish cannot be met."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, Catalog, parse_catalog
from cached.core.demand import (
    Demand,
    PodWant,
    Priority,
    PullWant,
    compute_version_demand,
    find_forbidden,
    find_used,
)
from tests.support.demand import compute_demand

A, B = Digest("a" * 64), Digest("b" * 64)
LISTED = f"""
defaults: {{source: "s3://models/{{name}}/{{version}}"}}
models:
  open: {{include: ["*.json"], exclude: ["x*"], pin: true}}
  pinned: {{versions: {{v1: {{digest: "{A}"}}}}}}
  everywhere: {{prefetch: {{versions: [v1]}}}}
  somewhere: {{prefetch: {{versions: [v1, v2], nodeSelector: {{gpu: h100, zone: a}}}}}}
"""


@pytest.fixture
def catalog() -> Catalog:
    return parse_catalog(LISTED, EMPTY_CATALOG).catalog


def pod(name: str, ref: str, pin: Digest | None = None) -> PodWant:
    return PodWant(f"uid-{name}", f"default/{name}", ModelRef.parse(ref), pin)


def pull(ref: str, pin: Digest | None = None) -> PullWant:
    return PullWant(ModelRef.parse(ref), pin)


def names(demand: Demand) -> list[str]:
    return [str(ref) for ref in demand.wants]


def test_prefetch_is_wanted_where_the_selector_matches(catalog: Catalog) -> None:
    """A rule without a selector holds on every node, one with a selector where the node has all of its labels."""
    assert names(compute_demand(catalog, [], [], {}, {})) == ["everywhere@v1"]
    assert names(compute_demand(catalog, [], [], {"gpu": "h100"}, {})) == ["everywhere@v1"]
    labels = {"gpu": "h100", "zone": "a", "other": "x"}
    assert names(compute_demand(catalog, [], [], labels, {})) == ["everywhere@v1", "somewhere@v1", "somewhere@v2"]


def test_a_want_carries_all_it_takes_to_fetch(catalog: Catalog) -> None:
    """Source, filters and the promise to keep come from the catalog; the pod's pin is the want's."""
    want = compute_demand(catalog, [pod("p", "open@v7", A)], [], {}, {}).wants[ModelRef("open", "v7")]
    assert (want.source, want.include, want.exclude, want.keep) == ("s3://models/open/v7", ("*.json",), ("x*",), True)
    assert (want.pin, want.priority, want.reasons) == (A, Priority.WAITING, ("pod default/p",))


def test_many_reasons_make_one_want_at_the_soonest_priority(catalog: Catalog) -> None:
    """All who ask for one version share one want, as soon as the most urgent of them needs it."""
    ref = ModelRef("everywhere", "v1")
    priorities = []
    for pods, pulls in (([], []), ([], [pull("everywhere@v1")] * 2), ([pod("p", "everywhere@v1")], [pull(str(ref))])):
        want = compute_demand(catalog, pods, pulls, {}, {}).wants[ref]
        priorities.append(want.priority)
    assert priorities == [Priority.PREFETCH, Priority.PULL, Priority.WAITING]
    assert want.reasons == ("pod default/p", "pull", "prefetch")


@pytest.mark.parametrize(
    ("ref", "says"),
    [("opne@v1", "nearest name there is open"), ("zzz@v1", "found no 'zzz'"), ("fixed@v9", "found of 'fixed': v1")],
)
def test_what_the_catalog_lacks_is_refused(ref: str, says: str) -> None:
    """A want for a version that the catalog lacks is refused as unknown, with what is there."""
    catalog = parse_catalog(LISTED + "  fixed: {source: 's3://f/', versions: [v1]}\n", EMPTY_CATALOG).catalog
    demand = compute_demand(catalog, [pod("p", ref)], [pull(ref)], {}, {})
    error = demand.refused[ModelRef.parse(ref)]
    assert error.code == "unknown_model"
    assert says in error.message
    assert ModelRef.parse(ref) not in demand.wants


REJECTED = """
models:
  whole: {source: 's3://b/{version}', prefetch: false}
  part:
    source: 's3://b/{version}'
    versions:
      v1: {}
      v2: {digest: abc}
"""


@pytest.mark.parametrize(
    ("ref", "says"),
    [("whole@v1", "line 3: expected `prefetch` to be a mapping"), ("part@v2", "line 8: ")],
)
def test_what_a_rejected_entry_lists_is_refused_with_the_reason(ref: str, says: str) -> None:
    """A want for a version whose entry, or whose model's entry, was rejected says which line of it is wrong and why."""
    demand = compute_demand(parse_catalog(REJECTED, EMPTY_CATALOG).catalog, [pod("p", ref)], [], {}, {})
    error = demand.refused[ModelRef.parse(ref)]
    assert error.code == "unknown_model"
    assert says in error.message
    assert error.remedy == "correct that entry"


def test_a_rejected_entry_that_was_good_stays_in_force() -> None:
    """A model that becomes bad keeps its last good entry: it is wanted, and nothing is said of the rejection."""
    good = parse_catalog(REJECTED.replace(", prefetch: false", ""), EMPTY_CATALOG).catalog
    demand = compute_demand(parse_catalog(REJECTED, good).catalog, [pod("p", "whole@v1")], [], {}, {})
    assert ModelRef("whole", "v1") in demand.wants


LIMITED = "models: {m: {source: 's3://b/{version}', versions: [v1], namespaces: [team-a, team-b]}}"


def test_a_pod_of_another_namespace_wants_nothing() -> None:
    """A model's `namespaces` refuse the pods of all others, with what is allowed; alone they make no want."""
    catalog = parse_catalog(LIMITED, EMPTY_CATALOG).catalog
    demand = compute_demand(catalog, [pod("p", "m@v1")], [], {}, {})
    error = demand.refused[ModelRef("m", "v1")]
    assert error.code == "forbidden_namespace"
    assert "team-a, team-b" in error.message and "'default'" in error.message and "`namespaces`" in error.remedy
    assert not demand.wants and not demand.keeps(ModelRef("m", "v1"))


def test_a_refused_namespace_concerns_nobody_else() -> None:
    """Pods of allowed namespaces, and pulls, want the version as if the refused pod were not there."""
    catalog = parse_catalog(LIMITED, EMPTY_CATALOG).catalog
    ref = ModelRef("m", "v1")
    refused, allowed = pod("p", "m@v1", A), PodWant("uid-q", "team-b/q", ref, None)
    want = compute_demand(catalog, [refused, allowed], [], {}, {}).wants[ref]
    assert (want.reasons, want.pin) == (("pod team-b/q",), None)
    assert compute_demand(catalog, [refused], [pull("m@v1")], {}, {}).wants[ref].reasons == ("pull",)
    found = compute_version_demand(catalog, ref, [refused, allowed], [], {}, prefetched=False)
    assert list(found.forbidden) == ["default"]


def test_a_refused_namespace_uses_nothing() -> None:
    """Content on the node counts as used by the pods that the catalog gives it to, and by no others."""
    catalog = parse_catalog(LIMITED, EMPTY_CATALOG).catalog
    ref = ModelRef("m", "v1")
    assert find_used([pod("p", "m@v1")], {ref: A}, catalog) == frozenset()
    assert find_used([PodWant("uid-q", "team-a/q", ref, None)], {ref: A}, catalog) == {ref}
    assert find_used([pod("p", "m@v1")], {ref: A}, None) == {ref}


def test_a_model_without_namespaces_is_everybodys(catalog: Catalog) -> None:
    """Without the key, and for a model that the catalog lacks, no namespace is refused."""
    for name in ("open", "nowhere"):
        assert find_forbidden(catalog, ModelRef(name, "v1"), "team-z") is None


def test_a_rejected_version_is_refused_as_such() -> None:
    """The refusal of a version whose catalog entry is bad says that it is the entry."""
    catalog = parse_catalog("models: {m: {source: 's3://b/{version}', versions: {v1: []}}}", EMPTY_CATALOG).catalog
    assert "rejected" in compute_demand(catalog, [pod("p", "m@v1")], [], {}, {}).refused[ModelRef("m", "v1")].message


def test_the_catalogs_digest_is_the_pin(catalog: Catalog) -> None:
    """A version with a digest in the catalog is pinned to it, whether or not the pod says so too."""
    for pin in (None, A):
        demand = compute_demand(catalog, [pod("p", "pinned@v1", pin)], [], {}, {})
        assert demand.wants[ModelRef("pinned", "v1")].pin == A


def test_a_pin_against_the_catalog_is_refused_with_both_digests(catalog: Catalog) -> None:
    """Where all who ask pin another digest than the catalog's, nothing is fetched and both are named."""
    demand = compute_demand(catalog, [pod("p", "pinned@v1", B)], [pull("pinned@v1", B)], {}, {})
    error = demand.refused[ModelRef("pinned", "v1")]
    assert isinstance(error, DigestMismatch)
    assert error.code == "digest_mismatch"
    for part in (str(A), str(B), "pod default/p"):
        assert part in error.message


def test_one_pods_wrong_pin_fails_no_other_pod(catalog: Catalog) -> None:
    """A pod that agrees with the catalog gets its version, though another pod pins a different digest."""
    demand = compute_demand(catalog, [pod("wrong", "pinned@v1", B), pod("right", "pinned@v1")], [], {}, {})
    want = demand.wants[ModelRef("pinned", "v1")]
    assert (want.pin, want.reasons) == (A, ("pod default/right",))
    assert not demand.refused


@pytest.mark.parametrize("pins", [(A, B), (A, None), (None, A), (A, B, None)])
def test_nobodys_pin_decides_for_others(catalog: Catalog, pins: tuple[Digest | None, ...]) -> None:
    """Where the catalog does not decide and those who ask do not agree, the version is wanted as the source has it:
    no pod's pin fails another pod, or changes what it gets."""
    pods = [pod(f"p{number}", "open@v1", pin) for number, pin in enumerate(pins)]
    demand = compute_demand(catalog, pods, [], {}, {})
    want = demand.wants[ModelRef("open", "v1")]
    assert want.pin is None
    assert want.reasons == tuple(f"pod default/p{number}" for number in range(len(pins)))
    assert compute_demand(catalog, pods[:1], [pull("open@v1", B)], {}, {}).wants[want.ref].pin is None


def test_a_pin_that_all_share_decides(catalog: Catalog) -> None:
    """Where all pods and pulls that ask pin the same digest, nothing else will do for them; a prefetch has no say."""
    pods = [pod("p", "everywhere@v1", B), pod("q", "everywhere@v1", B)]
    demand = compute_demand(catalog, pods, [pull("everywhere@v1", B)], {}, {})
    assert demand.wants[ModelRef("everywhere", "v1")].pin == B


def test_same_fetch_is_about_the_bytes(catalog: Catalog) -> None:
    """Another priority or reason leaves a fetch as it is; another pin makes it another."""
    ref = ModelRef("everywhere", "v1")
    prefetch = compute_demand(catalog, [], [], {}, {}).wants[ref]
    waiting = compute_demand(catalog, [pod("p", str(ref))], [], {}, {}).wants[ref]
    pinned = compute_demand(catalog, [pod("p", str(ref), A)], [], {}, {}).wants[ref]
    assert prefetch.same_fetch(waiting)
    assert not prefetch.same_fetch(pinned)


refs = st.sampled_from(["open@v1", "open@v2", "pinned@v1", "everywhere@v1", "missing@v1"]).map(ModelRef.parse)
pins = st.sampled_from([None, None, A, B])
pods = st.lists(st.builds(PodWant, st.just("u"), st.sampled_from(["n/p", "n/q"]), refs, pins), max_size=6)


@given(pods, st.lists(st.builds(PullWant, refs, pins), max_size=3))
def test_order_does_not_matter(pods: list[PodWant], pulls: list[PullWant]) -> None:
    """The demand depends on who asks, not on the order, and every version asked for is either wanted or refused."""
    catalog = parse_catalog(LISTED, EMPTY_CATALOG).catalog
    demand = compute_demand(catalog, pods, pulls, {}, {})
    again = compute_demand(catalog, reversed(pods), reversed(pulls), {}, {})
    assert demand.wants == again.wants
    assert {ref: e.code for ref, e in demand.refused.items()} == {ref: e.code for ref, e in again.refused.items()}
    assert not demand.wants.keys() & demand.refused.keys()
    asked = {pod.ref for pod in pods} | {pull.ref for pull in pulls} | {ModelRef("everywhere", "v1")}
    assert demand.wants.keys() | demand.refused.keys() | {ref for ref, _ in demand.refused_pins} == asked
