"""`--tracing otlp` of the daemon: a real receiver gets the trace of a pod's cold start."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.joined import Joined, joined, ref
from tests.support.otlp import Receiver, Span, receiver

MIB = 1024 * 1024
A, B = ref("a"), ref("b")


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Receiver]:
    with receiver(tmp_path) as running:
        yield running


def traced(folder: Path, collector: Receiver, **more: str) -> AbstractContextManager[Joined]:
    variables = [f"{name}={value}" for name, value in collector.environment(**more).items()]
    return joined(folder, "--tracing", "otlp", under=("env", *variables))


def test_a_cold_start_is_one_trace(tmp_path: Path, collector: Receiver) -> None:
    """The trace's id is the pod's uid; below its root, from the pod's binding to its open gate, are the steps of the
    fetch, in order, with model, version and source; a pod that came when the weights were there has no steps."""
    with traced(tmp_path, collector, OTEL_RESOURCE_ATTRIBUTES="cluster=c1", OTEL_EXPORTER_OTLP_HEADERS="key=v") as node:
        node.catalog(a=node.entry("a", 3 * MIB))
        node.daemon.start("--max-bandwidth", "8MiB/s")
        uid = node.pod("first", "a")
        (root,) = collector.wait("cold start")
        mine = [span for span in collector.spans() if span["trace"] == uid.replace("-", "")]
        assert [span["name"] for span in mine] == ["cold start", "resolve", "fetch", "verify", "publish", "gate open"]
        assert {span["parent"] for span in mine if span is not root and span["name"] != "cold start"} == {root["id"]}
        assert root["id"] == hashlib.sha256(f"cold start {root['trace']}".encode()).hexdigest()[:16]
        assert root["parent"] == "" and not any(span["failed"] for span in mine)
        assert root["attributes"] == {
            "k8s.pod.uid": uid,
            "k8s.pod.name": "first",
            "k8s.namespace.name": "default",
            "holdfast.models": "m@a",
            "holdfast.cold": True,
        }
        for span in mine[1:5]:
            assert (span["attributes"]["holdfast.model"], span["attributes"]["holdfast.version"]) == ("m", "a")
            assert root["start"] <= span["start"] <= span["end"] <= root["end"]
        fetch = mine[2]["attributes"]
        assert (fetch["holdfast.source"], fetch["holdfast.bytes"], fetch["holdfast.blobs"]) == ("file://", 3 * MIB, 1)
        assert root["resource"]["service.name"] == "holdfast-daemon"
        assert (root["resource"]["k8s.node.name"], root["resource"]["cluster"]) == ("node1", "c1")
        assert root["headers"]["key"] == "v"

        second = node.pod("second", "a")
        (_, warm) = collector.wait("cold start", lambda found: len(found) == 2)
        assert warm["trace"] == second.replace("-", "") and warm["attributes"]["holdfast.cold"] is False
        steps = {span["name"] for span in collector.spans() if span["trace"] == warm["trace"]}
        assert steps == {"cold start", "gate open"}


def test_what_fails_and_who_leaves_is_in_the_trace(tmp_path: Path, collector: Receiver) -> None:
    """A step that failed has its error, and a pod that is gone before its gate opens ends its trace with that."""
    with traced(tmp_path, collector) as node:
        node.catalog(b={"source": "file:///nowhere/at/all"})
        node.daemon.start()
        uid = node.pod("waits", "b")
        node.wait_told(uid, "WeightsFailed")
        node.end("waits")
        (root,) = collector.wait("cold start")
        mine: list[Span] = [span for span in collector.spans() if span["trace"] == uid.replace("-", "")]
        assert root["failed"] and root["attributes"]["error.type"] == "pod_gone"
        failed = next(span for span in mine if span["name"] == "resolve")
        assert failed["failed"] and failed["attributes"]["error.type"]
        assert "gate open" not in {span["name"] for span in mine}


def test_a_restart_makes_no_cold_starts(tmp_path: Path, collector: Receiver) -> None:
    """Pods that have their weights when a daemon starts are no cold starts of that daemon."""
    with traced(tmp_path, collector) as node:
        node.catalog(a=node.entry("a"), b=node.entry("b"))
        node.daemon.start()
        node.wait_told(node.pod("runs", "a"), "WeightsReady")
        collector.wait("cold start")
        node.daemon.stop()
        node.daemon.start()
        uid = node.pod("new", "b")
        found = collector.wait("cold start", lambda spans: len(spans) > 1)
        assert [span["attributes"]["k8s.pod.name"] for span in found] == ["runs", "new"]
        assert found[1]["trace"] == uid.replace("-", "")


def test_a_sampler_decides_for_whole_traces(tmp_path: Path, collector: Receiver) -> None:
    """With OTEL_TRACES_SAMPLER=always_off nothing is sent, and the daemon works as ever; the name of the service is the
    variable's."""
    with traced(tmp_path, collector, OTEL_TRACES_SAMPLER="always_off") as node:
        node.catalog(a=node.entry("a"))
        node.daemon.start()
        node.wait_told(node.pod("unseen", "a"), "WeightsReady")
        assert node.daemon.stop() == 0
    assert collector.spans() == []


def test_without_a_receiver_all_else_works(tmp_path: Path) -> None:
    """Where nothing takes the spans, pods get their weights, and the daemon ends within its patience."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # it does not listen
        port = silent.getsockname()[1]
    variables = [f"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{port}", "OTEL_BSP_SCHEDULE_DELAY=100"]
    with joined(tmp_path, "--tracing", "otlp", under=("env", *variables)) as node:
        node.catalog(a=node.entry("a"))
        node.daemon.start()
        node.wait_told(node.pod("first", "a"), "WeightsReady")
        assert node.daemon.stop() == 0
