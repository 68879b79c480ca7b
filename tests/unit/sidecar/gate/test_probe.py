"""The gate's HTTP: what probes and Prometheus see, over real sockets."""

from __future__ import annotations

import http.client
import select
import socket
import threading
import time

import pytest

from cached.contract.layout import PublicLayout
from cached.contract.metrics import gate as table
from cached.contract.status import State
from sidecar.gate.probe import GateReadiness, Probe
from tests.support.gates import FILES, REF, Gates, RunningGate
from tests.support.promtool import find_differences
from tests.support.snapshots import link_model, make_snapshot, write_status


def ask(gate: RunningGate, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body of one request."""
    connection = http.client.HTTPConnection(gate.address().removeprefix("http://"), timeout=100)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def metric(text: str, name: str) -> float:
    """The value of one sample."""
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_readiness_follows_the_gate(public: PublicLayout, gates: Gates) -> None:
    """/readyz is 503 with the state while the gate waits, and 200 once it is open."""
    write_status(public, REF, State.FETCHING, done=(1, 2))
    gate = gates.start()
    gate.wait_said("fetching")
    status, text = ask(gate, "/readyz")
    assert status == 503 and "acme/tiny@v1: fetching 1 B of 2 B (50 %)" in text
    link_model(public, REF, make_snapshot(public, FILES))
    gate.wait_said("open after")
    assert ask(gate, "/readyz") == (200, "ready\n")


def test_it_is_healthy_while_it_waits(gates: Gates) -> None:
    """/healthz is 200 before the gate is open."""
    assert ask(gates.start(), "/healthz")[0] == 200


def test_metrics_tell_when_it_opened(public: PublicLayout, gates: Gates) -> None:
    """The metrics say whether and when the gate opened, and when its process started."""
    before = time.time()
    gate = gates.start()
    waiting = ask(gate, "/metrics")[1]
    assert metric(waiting, "holdfast_gate_ready") == 0
    assert "holdfast_gate_opened_timestamp_seconds" not in waiting
    link_model(public, REF, make_snapshot(public, FILES))
    gate.wait_said("open after")
    text = ask(gate, "/metrics")[1]
    assert metric(text, "holdfast_gate_ready") == 1
    assert before <= metric(text, "holdfast_gate_opened_timestamp_seconds") <= time.time()
    # The kernel counts from a boot time in whole seconds.
    assert before - 2 <= metric(text, "process_start_time_seconds") <= time.time() + 2
    assert find_differences(text, table.ALL) == set()
    assert all(f"# TYPE {each.name} " in text for each in table.ALL)


def test_head_gives_the_status_without_a_body(gates: Gates) -> None:
    """HEAD is answered as GET is, without a body."""
    gate = gates.start()
    assert ask(gate, "/healthz", "HEAD") == (200, "")
    assert ask(gate, "/readyz", "HEAD") == (503, "")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("POST", "/readyz", 405)])
def test_other_requests_are_refused(gates: Gates, method: str, path: str, status: int) -> None:
    """Only the three paths, and only GET and HEAD."""
    assert ask(gates.start(), path, method)[0] == status


@pytest.mark.parametrize("request_bytes", [b"nonsense\r\n\r\n", b"A" * 20000, b""])
def test_a_bad_client_harms_nobody(gates: Gates, request_bytes: bytes) -> None:
    """After nonsense, too much, or a client that hangs up at once, the next probe is answered."""
    gate = gates.start()
    host, _, port = gate.address().removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=100) as client:
        client.sendall(request_bytes)
    assert ask(gate, "/healthz")[0] == 200


def test_a_silent_client_delays_nobody(gates: Gates) -> None:
    """A client that connects and says nothing does not keep the next probe waiting."""
    gate = gates.start()
    host, _, port = gate.address().removeprefix("http://").rpartition(":")
    for _ in range(10):
        with socket.create_connection((host, int(port)), timeout=100) as silent:
            assert ask(gate, "/healthz")[0] == 200
            if not select.select([silent], [], [], 0)[0]:
                return  # it was not hung up on before: a machine may take as long to answer
    pytest.fail("answered only after the silent client was hung up on")


def test_a_taken_port_is_a_clear_failure(gates: Gates) -> None:
    """A port that another process has ends the gate with 1, naming the address and the option."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        gate = gates.start("--listen", address)
        assert gate.wait() == 1
    assert address in gate.said() and "--listen" in gate.said()


def test_once_listens_nowhere_unless_asked(public: PublicLayout, gates: Gates) -> None:
    """`--once` opens no port by itself, and the one that `--listen` names."""
    link_model(public, REF, make_snapshot(public, FILES))
    silent, asked = gates.start("--once"), gates.start("--once", "--listen", "127.0.0.1:0")
    assert (silent.wait(), asked.wait()) == (0, 0)
    assert "probes on" not in silent.said() and "probes on" in asked.said()


def test_probes_are_answered_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be had for a connection the listener answers it itself, and goes on listening."""
    probe = Probe(("127.0.0.1", 0), GateReadiness())
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "probe-answer":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(3):
        connection = http.client.HTTPConnection(probe.address, timeout=100)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
