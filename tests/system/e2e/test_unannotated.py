"""Pods that ask for nothing, and the injector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Pod, create, kubectl, metric, select, wait_for
from tests.support.installation import MAIN, Holdfast, annotated, dry_run, pod_object
from tests.system.e2e.conftest import Models


def test_they_do_not_reach_the_webhook(holdfast: Holdfast, namespace: str, models: Models) -> None:
    """Other pods are not reviewed by any injector, and one that is annotated is, once."""
    before = _reviews(holdfast)
    for number in range(5):
        plain = dry_run(pod_object(Pod(namespace, f"plain-{number}"), {"example.com/holdfast.dev": "no"}))
        assert plain.returncode == 0, plain.stderr
        assert "holdfast-gate" not in plain.stdout
    assert _reviews(holdfast) == before
    asked = dry_run(pod_object(Pod(namespace, "asks"), annotated(models["warm"], "1")))
    assert "holdfast-gate" in asked.stdout
    assert _reviews(holdfast) == before + 1


def test_a_badly_written_one_is_refused(holdfast: Holdfast, namespace: str) -> None:
    """A pod with bad annotations is not created, and its maker is told what to write."""
    refused = dry_run(pod_object(Pod(namespace, "bad"), {"holdfast.dev/model": "no version"}))
    assert refused.returncode != 0
    assert "holdfast.dev/" in refused.stderr


@pytest.fixture
def no_injector(holdfast: Holdfast) -> Iterator[None]:
    """Not one injector."""
    kubectl("scale", "deployment", "-n", "holdfast", "holdfast-injector", "--replicas=0")
    try:
        wait_for("no injector", lambda: not select("pods", "holdfast", "app.kubernetes.io/name=holdfast-injector"))
        yield
    finally:
        kubectl("scale", "deployment", "-n", "holdfast", "holdfast-injector", "--replicas=2")
        holdfast.apply()


def test_they_do_not_depend_on_it(no_injector: None, namespace: str, models: Models) -> None:
    """While no injector runs an annotated pod is refused, and every other pod starts."""
    asks = pod_object(Pod(namespace, "asks"), annotated(models["warm"], "1"))
    wait_for("an annotated pod is refused", lambda: dry_run(asks).returncode != 0)
    plain = Pod(namespace, "plain")
    create(pod_object(plain))
    plain.wait_running(MAIN)
    plain.delete()


def _reviews(holdfast: Holdfast) -> float:
    return metric(holdfast.injector_metrics(), "holdfast_injector_reviews_total")
