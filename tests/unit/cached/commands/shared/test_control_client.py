"""The client of the daemon's control socket."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cached.commands.shared.control_client import ControlClient, EvictedVersion, PullAnswer, UnpinResult
from cached.contract.digest import Digest
from cached.contract.errors import Permanent, Transient
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import State
from tests.support.control import ControlServer

REF = ModelRef("acme/llama", "v3")
DIGEST = Digest("ab" * 32)


def test_pull_sends_the_reference_and_the_pin(layout: Layout, control: ControlServer) -> None:
    """`pull` posts name, version and digest, and returns the answer; an older daemon's has a state alone."""
    control.answers["POST /v1/pull"] = 200, {"state": "queued"}
    assert ControlClient(layout).pull(REF, DIGEST, refresh=True) == PullAnswer("", State.QUEUED, None, None)
    assert control.asked == [
        ("POST /v1/pull", {"model": "acme/llama", "version": "v3", "digest": str(DIGEST), "refresh": True})
    ]


def test_pull_without_a_pin_sends_null(layout: Layout, control: ControlServer) -> None:
    """`pull` without a digest posts null for it."""
    control.answers["POST /v1/pull"] = 200, {"state": "ready"}
    ControlClient(layout).pull(REF, None, refresh=False)
    assert control.asked[0][1]["digest"] is None


def test_gc_reads_every_version(layout: Layout, control: ControlServer) -> None:
    """`gc` returns each version of the answer, and the bytes in all."""
    gone = {"model": "acme/llama", "version": "v3", "digest": str(DIGEST), "bytes": 7, "reason": "unwanted"}
    control.answers["POST /v1/gc"] = 200, {"versions": [gone], "bytes": 7}
    report = ControlClient(layout).gc(dry_run=True)
    assert (report.versions, report.freed_bytes) == ((EvictedVersion(REF, str(DIGEST), 7, "unwanted"),), 7)
    assert control.asked == [("POST /v1/gc", {"dry_run": True})]


def test_pin_and_unpin_return_what_holds_now(layout: Layout, control: ControlServer) -> None:
    """`pin` and `unpin` return whether the version is pinned afterwards."""
    control.answers["POST /v1/pin"] = 200, {"pinned": True}
    control.answers["POST /v1/unpin"] = 200, {"pinned": False, "was_pinned": True}
    client = ControlClient(layout)
    assert (client.pin(REF), client.unpin(REF)) == (True, UnpinResult(pinned=False, was_pinned=True))


def test_status_is_handed_on(layout: Layout, control: ControlServer) -> None:
    """`status` returns the daemon's document as it is."""
    control.answers["GET /v1/status"] = 200, {"daemon": None, "disk": {}, "models": []}
    assert ControlClient(layout).status() == {"daemon": None, "disk": {}, "models": []}


@pytest.mark.parametrize(("permanent", "kind"), [(True, Permanent), (False, Transient)])
def test_an_error_keeps_its_code_and_remedy(
    layout: Layout, control: ControlServer, permanent: bool, kind: type[Exception]
) -> None:
    """An error of the daemon is raised with its code, message, remedy and kind."""
    error = {"code": "unknown_model", "message": "no acme/llama", "remedy": "add it", "permanent": permanent}
    control.answers["POST /v1/pull"] = 404, {"error": error}
    with pytest.raises(kind, match="no acme/llama") as raised:
        ControlClient(layout).pull(REF, None, refresh=False)
    assert isinstance(raised.value, (Permanent, Transient))
    assert (raised.value.code, raised.value.remedy) == ("unknown_model", "add it")


@pytest.mark.parametrize("answer", [(200, b"<html>"), (500, b""), (200, b"[]"), (502, b'{"oops": 1}')])
def test_an_answer_that_is_not_ours_is_an_error(
    layout: Layout, control: ControlServer, answer: tuple[int, bytes]
) -> None:
    """Anything but our JSON is refused, naming the status that came with it."""
    control.answers["GET /v1/status"] = answer
    with pytest.raises(Permanent, match=str(answer[0])):
        ControlClient(layout).status()


def test_no_socket_says_how_to_start_a_daemon(layout: Layout) -> None:
    """Without a socket the error names the path and the command that makes one."""
    with pytest.raises(Permanent, match=r"daemon\.sock") as raised:
        ControlClient(layout).status()
    assert "holdfast daemon --root" in raised.value.remedy


def test_a_socket_left_behind_says_the_daemon_is_not_running(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket nothing listens on is told apart from no socket."""
    monkeypatch.chdir(layout.private)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(layout.socket.name)
    with pytest.raises(Permanent, match="not running"):
        ControlClient(layout).status()


def test_a_daemon_that_never_answers_is_transient(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent daemon raises `Transient` once the timeout is over."""
    monkeypatch.chdir(layout.private)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(layout.socket.name)
        silent.listen()
        with pytest.raises(Transient, match="did not answer"):
            ControlClient(layout, timeout_s=0.05).status()


def test_a_daemon_that_hangs_up_is_transient(layout: Layout, control: ControlServer) -> None:
    """A connection closed without an answer raises `Transient`."""
    control.answers["GET /v1/status"] = None
    with pytest.raises(Transient, match="failed"):
        ControlClient(layout).status()


def test_a_root_too_deep_for_a_socket_address_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket whose path exceeds 107 bytes is reached all the same."""
    deep = Layout(tmp_path / ("d" * 120))
    deep.private.mkdir(parents=True)
    monkeypatch.chdir(deep.private)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(deep.socket.name)
        listening.listen()
        listening.settimeout(100)
        with pytest.raises(Transient, match="did not answer"):
            ControlClient(deep, timeout_s=0.05).status()
        connection, _ = listening.accept()
        connection.close()


def test_no_permission_says_whose_socket_it_is(layout: Layout, without_root: None) -> None:
    """A private folder that may not be entered is told apart from no daemon."""
    with pytest.raises(Permanent, match="may not open"):
        ControlClient(layout).status()
