"""A daemon that stands still (SIGSTOP, a swapped-out node) while a client asks it something; pins it must refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cached.commands.shared.control_client import ControlClient
from cached.contract.errors import Permanent, Transient
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, connect_control, model, publish_files

REF = ModelRef("acme/tiny", "v1")


@pytest.fixture
def held(daemon: DaemonProcess, source: Path) -> DaemonProcess:
    """A running daemon that holds `acme/tiny@v1`, which nothing wants any more."""
    publish_files(source, {"a.bin": b"a" * 5000})
    daemon.write_catalog({"acme/tiny": model(f"file://{source}", "v1", "v2")})
    daemon.start()
    daemon.pull(str(REF))
    daemon.wait_ready(REF)
    return daemon


def command(daemon: DaemonProcess, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cached", *words, "--root", str(daemon.layout.root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [["gc"], ["gc", "--dry-run"], ["pin", "acme/tiny@v1"], ["unpin", "acme/tiny@v1"], ["pull", "acme/tiny@v2"]],
    ids=" ".join,
)
def test_a_command_to_a_frozen_daemon_ends_and_is_not_carried_out_later(held: DaemonProcess, words: list[str]) -> None:
    """A command returns 1 once its --timeout is over, and the daemon does not carry it out when it wakes."""
    os.kill(held.pid, signal.SIGSTOP)
    try:
        done = command(held, *words, "--timeout", "1")
    finally:
        os.kill(held.pid, signal.SIGCONT)
    assert done.returncode == 1
    assert "did not answer" in done.stderr
    assert "Traceback" not in done.stderr
    held.control.status()  # through the same listener: what came before was looked at by now
    assert held.state(ModelRef("acme/tiny", "v2")) is None
    assert not held.layout.pins.exists()
    assert "evicted" not in held.log()
    held.wait_ready(REF)


def test_a_client_that_is_killed_has_its_command_withdrawn(held: DaemonProcess) -> None:
    """A command whose client was ended while the daemon stood still is not carried out, whatever its --timeout."""
    os.kill(held.pid, signal.SIGSTOP)
    try:
        words = [sys.executable, "-m", "cached", "gc", "--root", str(held.layout.root)]
        with subprocess.Popen(words) as waiting:
            held.wait(lambda: _waits_for_an_answer(waiting.pid), "the request sent")
            waiting.kill()
    finally:
        os.kill(held.pid, signal.SIGCONT)
    held.control.status()
    assert "evicted" not in held.log()


def test_a_request_that_is_read_too_late_is_refused(held: DaemonProcess) -> None:
    """A client that still waits, but not for this any more, is told so: its deadline travels with the request."""
    os.kill(held.pid, signal.SIGSTOP)
    asked = threading.Event()
    outcome: list[BaseException] = []

    def ask() -> None:
        client = ControlClient(held.layout, timeout_s=1.0)
        asked.set()
        try:
            client.pin(REF)
        except Transient as error:
            outcome.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    asked.wait()
    asking.join()
    os.kill(held.pid, signal.SIGCONT)
    held.control.status()
    assert [type(error) for error in outcome] == [Transient]
    assert not held.layout.pins.exists()


def test_a_passed_deadline_is_refused_with_its_reason(held: DaemonProcess) -> None:
    """Who still listens after its deadline gets an error, and nothing was done."""
    status, document = _ask_with_deadline(held, time.monotonic() - 1)
    assert (status, document["error"]["code"], document["error"]["permanent"]) == (503, "client_gone", False)
    assert not held.layout.pins.exists()
    status, document = _ask_with_deadline(held, "soon")
    assert (status, document["error"]["code"]) == (400, "bad_request")


def test_reading_commands_need_no_daemon_that_answers(held: DaemonProcess) -> None:
    """`status`, `ls`, `inspect` and `verify` read files: a frozen daemon does not keep them waiting."""
    os.kill(held.pid, signal.SIGSTOP)
    try:
        for words in (["status"], ["ls"], ["inspect", "acme/tiny@v1"], ["verify"]):
            assert command(held, *words).returncode == 0
    finally:
        os.kill(held.pid, signal.SIGCONT)


def test_a_pin_of_what_is_nowhere_is_refused(held: DaemonProcess) -> None:
    """`pin` of a version neither here nor in the catalog is refused with what is nearest, and nothing is written."""
    with pytest.raises(Permanent, match="the nearest name there is acme/tiny") as refused:
        held.control.pin(ModelRef("acme/tinny", "v1"))
    assert refused.value.code == "unknown_model"
    with pytest.raises(Permanent, match="v1, v2"):
        held.control.pin(ModelRef("acme/tiny", "v9"))
    assert not held.layout.pins.exists()


def test_a_pin_of_what_is_only_here_or_only_in_the_catalog_holds(held: DaemonProcess) -> None:
    """A version that the catalog lists, or that the node holds, may be pinned and unpinned."""
    held.control.pin(ModelRef("acme/tiny", "v2"))
    held.write_catalog({})
    held.wait(lambda: "catalog: 0 models" in held.log(), "the empty catalog in force")
    held.control.pin(REF)
    first, again = held.control.unpin(REF), held.control.unpin(REF)
    assert (first.was_pinned, again.was_pinned, again.pinned) == (True, False, False)
    assert held.control.unpin(ModelRef("acme/tiny", "v2")).was_pinned


def test_unpin_tells_that_the_catalog_still_pins(daemon: DaemonProcess, source: Path) -> None:
    """Where the catalog has `pin: true`, `unpin` says that the version stays."""
    publish_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"acme/tiny": model(f"file://{source}", pin=True)})
    daemon.start()
    assert daemon.control.unpin(REF).pinned


def test_a_pin_before_the_catalog_is_transient(daemon: DaemonProcess) -> None:
    """While there is no catalog the daemon cannot say that a version is unknown: ask again."""
    daemon.listen()
    with pytest.raises(Transient, match="catalog") as refused:
        daemon.control.pin(REF)
    assert refused.value.code == "no_catalog"


def _waits_for_an_answer(pid: int) -> bool:
    """Tell whether a thread of a process sleeps in poll(2) for a socket, as http.client does once its request is
    sent."""
    try:
        sent = any(
            os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:") for name in os.listdir(f"/proc/{pid}/fd")
        )
        threads = Path(f"/proc/{pid}/task").iterdir()
        return sent and any("poll" in (thread / "wchan").read_text() for thread in threads)
    except OSError:
        return False


def _ask_with_deadline(daemon: DaemonProcess, deadline: object) -> tuple[int, dict[str, dict[str, object]]]:
    import http.client
    import json
    import socket

    connection = http.client.HTTPConnection("localhost", timeout=120)
    with socket.socket(socket.AF_UNIX) as connected:
        connect_control(connected, daemon.layout)
        connection.sock = connected
        body = json.dumps({"model": REF.name, "version": REF.version})
        connection.request("POST", "/v1/pin", body, {"Holdfast-Deadline": str(deadline)})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
