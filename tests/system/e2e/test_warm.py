"""Pods on a node that has their weights already."""

from __future__ import annotations

import pytest

from tests.support.cluster import Pod, create, wait_for
from tests.support.cluster_times import process_started_at, said_at
from tests.support.installation import GATE, MAIN, Holdfast, Origin, annotated, pod_object
from tests.system.e2e.conftest import Models


@pytest.fixture(scope="module")
def node(holdfast: Holdfast, origin: Origin, namespace: str, models: Models) -> str:
    """A node that has the model `warm@1`."""
    origin.publish(models["warm"], "1")
    first = Pod(namespace, "warm-first")
    create(pod_object(first, annotated(models["warm"], "1")))
    name: str = first.wait_running(MAIN)["spec"]["nodeName"]
    first.delete()
    return name


@pytest.mark.parametrize("number", range(5))
def test_another_pod_starts_at_once(
    number: int, node: str, namespace: str, models: Models, figures: dict[str, list[float]]
) -> None:
    """A pod on a warm node waits for nothing: its gate opens at its first look, and it is told so."""
    pod = Pod(namespace, f"warm-{number}")
    create(pod_object(pod, annotated(models["warm"], "1"), node))
    try:
        pod.wait_phase("Running")
        wait_for("the Event WeightsReady", lambda: pod.events("WeightsReady"))
        assert pod.events("WeightsFetching") == []
        assert pod.events("WeightsReady")[0].endswith("was on this node already")
        opened, started = said_at(pod, GATE, " open after "), process_started_at(pod, MAIN)
        assert opened < started
        figures.setdefault("warm node: gate open → main container's process started", []).append(started - opened)
    finally:
        pod.delete()
