"""`--log-format json`: what daemon, gate and injector write, all of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
from pathlib import Path

from cached.contract.reference import ModelRef
from tests.support.daemon import daemon_process, prefetched, write_files
from tests.support.events import one_with, read_events
from tests.support.gates import Gates
from tests.support.injectors import Injectors, make_review, post

V1, BAD = ModelRef("tiny", "v1"), ModelRef("bad", "v1")
_JSON = {"HOLDFAST_LOG_FORMAT": "json"}


def test_daemon_and_gate_write_events(tmp_path: Path) -> None:
    """Every line of a daemon that fetches, fails and ends, and of a gate that waits and opens, is an event that says
    which version it is about."""
    source = tmp_path / "source"
    write_files(source, {"a.bin": b"a"})
    with daemon_process(tmp_path, "--kube", "off", "--node", "node-1", environment=_JSON) as daemon:
        daemon.write_catalog({"tiny": prefetched(f"file://{source}"), "bad": prefetched("file:///nowhere/at/all")})
        daemon.launch()
        daemon.wait_ready(V1)
        daemon.wait(lambda: bool(daemon.error(BAD)), "an error")
        gates = Gates(daemon.layout.public, tmp_path)
        with contextlib.closing(_Ending(gates)):
            named = ("--model", "tiny", "--version", "v1", "--once")
            gate = gates.start_bare(*named, environment=_JSON)
            assert gate.wait() == 0
            said = read_events(gate.said())
            refused = gates.start_bare("--model", "tiny", "--version", "v1", "--nonsense", environment=_JSON)
            assert refused.wait() == 2
            assert [event["code"] for event in read_events(refused.said())] == ["usage"]
        daemon.stop()
        events = read_events(daemon.log())
    assert {event["program"] for event in events} == {"daemon"}
    assert {event["node"] for event in events} == {"node-1"}
    ready = one_with(events, "ready")
    assert (ready["model"], ready["version"], ready["digest"]) == ("tiny", "v1", str(daemon.digest(V1)))
    failed = next(event for event in events if event.get("model") == "bad" and event["level"] != "info")
    assert failed["code"] and failed["remedy"]
    assert {event["program"] for event in said} == {"gate"}
    assert ("tiny", "v1") in {(event.get("model"), event.get("version")) for event in said}


def test_a_daemon_that_cannot_start_says_so_in_an_event(tmp_path: Path) -> None:
    """Why it ends is one event with code and remedy."""
    (tmp_path / "root").write_text("no folder")
    with daemon_process(tmp_path, "--kube", "off", environment=_JSON) as daemon:
        daemon.write_catalog({})
        daemon.launch()
        assert daemon.end_within(120) == 1
        (event,) = read_events(daemon.log())
    assert event["level"] == "error" and event["code"] and event["remedy"]


def test_an_injector_writes_events_and_its_gates_do(tmp_path: Path) -> None:
    """Every line of an injector is an event, one that denies a pod names it, and the gates it adds have the format."""
    injectors = Injectors(tmp_path)
    try:
        injectors.certify()
        listening = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
        fixed = ("--gate-image", "gate:1", "--cert-dir", str(tmp_path), "--drain", "0", *listening)
        injector = injectors.start_bare(*fixed, "--log-format", "json")
        injector.wait_said("reviews on")
        injector.wait_said("serving the certificate")
        port = re.search(r"https://127.0.0.1:(\d+)/mutate", injector.said())
        assert port is not None
        context = ssl.create_default_context(cafile=str(injector.certificates.authority))
        good = {"holdfast.dev/model": "tiny", "holdfast.dev/version": "v1"}
        with contextlib.closing(http.client.HTTPSConnection("localhost", int(port[1]), context=context)) as connection:
            for annotations, allowed in ((good, True), ({"holdfast.dev/model": "tiny"}, False)):
                metadata = {"name": "p", "annotations": annotations}
                pod = {"metadata": metadata, "spec": {"containers": [{"name": "c", "image": "i"}]}}
                status, body = post(connection, json.dumps(make_review(pod)).encode())
                assert (status, json.loads(body)["response"]["allowed"]) == (200, allowed)
                if allowed:
                    assert "patch" in json.loads(body)["response"]
        injector.stop()
        assert injector.wait() == 0
        events = read_events(injector.said())
    finally:
        injectors.end()
    assert one_with(events, "denied a pod")["pod"] == "default/p"
    assert {event["program"] for event in events} == {"injector"}


class _Ending:
    def __init__(self, gates: Gates) -> None:
        self.close = gates.end
