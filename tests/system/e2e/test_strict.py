"""Every object of every kustomization, before a real API server that has Holdfast."""

from __future__ import annotations

import pytest

from tests.support.cluster import Json, kubectl
from tests.support.installation import Holdfast
from tests.support.manifests import EVERYTHING, objects

# The operator's kind, and what belongs into a namespace that a dry run does not make.
_KINDS_ELSEWHERE = {"PodMonitor", "PrometheusRule"}


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_it_applies_strictly(kustomization: str, holdfast: Holdfast, namespace: str) -> None:
    """Server-side dry run with strict validation takes every object, without a warning, over what is installed."""
    found = [_at_home(each, namespace) for each in objects(kustomization) if each["kind"] not in _KINDS_ELSEWHERE]
    how = (
        "--server-side",
        "--force-conflicts",
        "--field-manager=holdfast-e2e",
        "--validate=strict",
        "--dry-run=server",
    )
    told = kubectl("apply", *how, "-f", "-", body=found)
    assert len(told.stdout.splitlines()) == len(found)
    # The examples' models are not in this catalog, which the injector says of a pod.
    expected = ("version difference", "the catalog has no model")
    assert [line for line in told.stderr.splitlines() if not any(each in line for each in expected)] == []


def _at_home(found: Json, namespace: str) -> Json:
    if found["metadata"].get("namespace") not in (None, "holdfast"):
        found["metadata"]["namespace"] = namespace
    return found
