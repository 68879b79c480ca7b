"""`--tracing otlp` of a server: a real receiver gets the steps of its start, in the trace of its pod."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.support.otlp import receiver
from tests.support.serving import Published, running

_UID = "0b4a5f6e-1111-4222-8333-444455556666"


def test_a_start_is_in_the_pods_trace(published_llama: Published, tmp_path: Path) -> None:
    """The steps from the imports to readiness come in order, below the root that the daemon of the node sends."""
    with receiver(tmp_path) as collector:
        variables = collector.environment(HOLDFAST_TRACING="otlp", HOLDFAST_POD_UID=_UID, OTEL_SERVICE_NAME="mine")
        arguments = ("--model-path", str(published_llama.link), "--device", "cpu")
        with running(tmp_path / "log", *arguments, variables=variables) as server:
            collector.wait("ready")
            assert server.stop() == 0
        spans = collector.spans()
    assert [span["name"] for span in spans] == ["device", "import", "load", "warm-up", "golden", "ready"]
    trace = _UID.replace("-", "")
    assert {span["trace"] for span in spans} == {trace}
    assert {span["parent"] for span in spans} == {hashlib.sha256(f"cold start {trace}".encode()).hexdigest()[:16]}
    assert {span["resource"]["service.name"] for span in spans} == {"mine"}
    assert {span["resource"]["k8s.pod.uid"] for span in spans} == {_UID}
    assert spans[2]["attributes"]["holdfast.model"]


def test_outside_of_a_pod_it_is_a_trace_of_its_own(tmp_path: Path) -> None:
    """Without a pod the server sends the root too; a start that fails has its error."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "app.py").write_text(
        "from aiohttp import web\ndef factory(path, device):\n    return web.Application()\n"
    )
    with receiver(tmp_path) as collector:
        arguments = ("--model-path", str(tmp_path), "--app", "app:factory", "--device", "cpu", "--tracing", "otlp")
        path = tmp_path / "own"
        with running(tmp_path / "log", *arguments, python_path=path, variables=collector.environment()) as server:
            (root,) = collector.wait("cold start")
            assert server.stop() == 0
        spans = collector.spans()
    assert [span["name"] for span in spans] == ["cold start", "device", "app", "ready"]
    assert {span["parent"] for span in spans[1:]} == {root["id"]}
    assert (root["parent"], root["resource"]["service.name"]) == ("", "holdfast-server")
