"""Ask the scheduler for nodes that hold the weights already.

Law: pure: adds to what the pod asks for and never takes anything away. Only nodes whose label says `ready` count, so
an unpinned version, whose digest nobody knows here, asks for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cached.contract.digest import Digest
from cached.contract.labels import READY, weights_label

_WEIGHT = 100  # the most there is: a fetch of minutes outweighs what else nodes differ in
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"

Json = dict[str, Any]


def prefer(affinity: Json | None, digests: Sequence[Digest]) -> Json:
    """`affinity` with a preference for nodes that hold each of `digests`: the more of them, the better."""
    node = dict((affinity or {}).get("nodeAffinity") or {})
    terms = [{"weight": _WEIGHT, "preference": {"matchExpressions": [_holds(digest)]}} for digest in digests]
    node[_PREFERRED] = [*(node.get(_PREFERRED) or ()), *terms]
    return {**(affinity or {}), "nodeAffinity": node}


def require(affinity: Json | None, digests: Sequence[Digest]) -> Json:
    """`affinity` that no node satisfies which does not hold all of `digests`."""
    node = dict((affinity or {}).get("nodeAffinity") or {})
    holding = [_holds(digest) for digest in digests]
    terms = (node.get(_REQUIRED) or {}).get("nodeSelectorTerms")
    if terms:
        # Terms are alternatives, so each gets the condition. One that asks for nothing matches no node, and with a
        # condition in it would match some.
        both = [_and(term, holding) if _asks(term) else term for term in terms]
    else:
        both = [{"matchExpressions": holding}]
    node[_REQUIRED] = {"nodeSelectorTerms": both}
    return {**(affinity or {}), "nodeAffinity": node}


def _and(term: Json, expressions: Sequence[Json]) -> Json:
    return {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), *expressions]}


def _asks(term: Json) -> bool:
    return bool(term.get("matchExpressions") or term.get("matchFields"))


def _holds(digest: Digest) -> Json:
    return {"key": weights_label(digest), "operator": "In", "values": [READY]}
