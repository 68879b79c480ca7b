"""The commands that ask the daemon: pull, gc, pin, unpin."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cached.commands import gc, pin, pull
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from tests.support.control import ControlServer, model_status, write_heartbeat, write_status
from tests.unit.cached.commands.conftest import publish

REF = ModelRef("minilm", "1")
FILES = {"model.safetensors": b"w" * 3000}
PERMANENT = StatusError("digest_mismatch", "expected sha256:aa (the pin), found sha256:bb", "correct the pin", True)
PASSING = StatusError("refused", "connection refused", "start the server", False)
TIMEOUT = ["--timeout", "100"]


def becomes_ready(layout: Layout) -> None:
    publish(layout, REF, FILES)
    write_status(layout, model_status(REF, State.READY, bytes_total=3000, bytes_done=3000))


def answer_queued(layout: Layout, then: Callable[[], None] = lambda: None) -> Callable[[Any], tuple[int, Any]]:
    """As the daemon does: replace the version's status, then answer; `then` goes on behind."""

    def answer(_body: Any) -> tuple[int, Any]:
        write_status(layout, model_status(REF, State.QUEUED))
        threading.Thread(target=then).start()
        return 200, {"state": "queued"}

    return answer


def test_pull_waits_and_prints_folder_and_digest(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`pull` returns 0 once the version is ready, and prints its folder and its digest."""
    control.answers["POST /v1/pull"] = answer_queued(layout, lambda: becomes_ready(layout))
    assert pull.main(["minilm@1", "--root", str(layout.root), *TIMEOUT]) == 0
    folder, digest = capsys.readouterr().out.splitlines()
    assert Path(folder, "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert Path(folder).resolve().name == digest.removeprefix("sha256:")


def test_pull_of_what_is_ready_returns_at_once(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version that is there already is printed without waiting."""
    becomes_ready(layout)
    control.answers["POST /v1/pull"] = 200, {"state": "ready"}
    assert pull.main(["minilm@1", "--root", str(layout.root), *TIMEOUT]) == 0
    assert str(layout.public.model_link(REF)) in capsys.readouterr().out


def test_pull_shows_progress(layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    """While it waits, `pull` says on stderr what the status says."""

    def fetches() -> None:
        write_status(layout, model_status(REF, State.FETCHING, bytes_total=4096, bytes_done=2048))
        deadline = time.monotonic() + 100
        while "50 %" not in "".join(seen) and time.monotonic() < deadline:
            seen.append(capsys.readouterr().err)
            time.sleep(0.01)
        becomes_ready(layout)

    seen: list[str] = []
    control.answers["POST /v1/pull"] = answer_queued(layout, fetches)
    assert pull.main(["minilm@1", "--root", str(layout.root), *TIMEOUT]) == 0
    assert "minilm@1: fetching 2.0 KiB of 4.0 KiB (50 %)" in "".join(seen)


def test_pull_fails_with_the_daemons_reason(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A permanent failure ends `pull` with 1, its reason and its remedy on stderr."""
    failed = model_status(REF, State.FAILED, error=PERMANENT)
    control.answers["POST /v1/pull"] = answer_queued(layout, lambda: write_status(layout, failed))
    assert pull.main(["minilm@1", "--root", str(layout.root), *TIMEOUT]) == 1
    errors = capsys.readouterr().err
    assert "expected sha256:aa (the pin), found sha256:bb" in errors
    assert "what to do: correct the pin" in errors


def test_an_older_failure_does_not_end_a_new_pull(layout: Layout, control: ControlServer) -> None:
    """A `failed` status from before the pull is not taken for its outcome."""
    write_status(layout, model_status(REF, State.FAILED, error=PERMANENT))
    control.answers["POST /v1/pull"] = answer_queued(layout, lambda: becomes_ready(layout))
    assert pull.main(["minilm@1", "--root", str(layout.root), *TIMEOUT]) == 0


def test_pull_outlasts_a_failure_that_is_retried(layout: Layout, control: ControlServer) -> None:
    """A failure that is not permanent does not end `pull`: the daemon tries again."""

    def retried() -> None:
        write_status(layout, model_status(REF, State.FAILED, error=PASSING))
        becomes_ready(layout)

    control.answers["POST /v1/pull"] = answer_queued(layout, retried)
    assert pull.main(["minilm@1", "--root", str(layout.root), *TIMEOUT]) == 0


def test_pull_gives_up_after_its_timeout(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--timeout` ends the wait with 1, says where things stand, and that the daemon goes on."""
    control.answers["POST /v1/pull"] = answer_queued(layout)
    assert pull.main(["minilm@1", "--root", str(layout.root), "--timeout", "1"]) == 1
    errors = capsys.readouterr().err
    assert "not ready after 1 s: queued" in errors
    assert "the daemon goes on" in errors


def test_pull_notices_a_daemon_that_is_gone(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A heartbeat that stopped ends `pull` with 1 instead of a wait without end."""
    write_heartbeat(layout, time.time() - 60)
    control.answers["POST /v1/pull"] = answer_queued(layout)
    assert pull.main(["minilm@1", "--root", str(layout.root), *TIMEOUT]) == 1
    assert "heartbeat stopped" in capsys.readouterr().err


def test_no_wait_returns_at_once(layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`--no-wait` returns 0 with the state in the daemon's answer."""
    control.answers["POST /v1/pull"] = answer_queued(layout)
    assert pull.main(["minilm@1", "--root", str(layout.root), "--no-wait"]) == 0
    assert "minilm@1 is queued" in capsys.readouterr().out


def test_pull_sends_the_pin(layout: Layout, control: ControlServer) -> None:
    """`--digest` travels to the daemon."""
    control.answers["POST /v1/pull"] = answer_queued(layout)
    pin_to = "sha256:" + "ab" * 32
    assert pull.main(["minilm@1", "--digest", pin_to, "--root", str(layout.root), "--no-wait"]) == 0
    assert control.asked[0][1]["digest"] == pin_to


def test_pull_tells_the_daemons_refusal(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error answered by the daemon exits 1 with message and remedy."""
    error = {"code": "shutting_down", "message": "the daemon is stopping", "remedy": "try again", "permanent": False}
    control.answers["POST /v1/pull"] = 503, {"error": error}
    assert pull.main(["minilm@1", "--root", str(layout.root)]) == 1
    assert capsys.readouterr().err == "holdfast pull: the daemon is stopping\n  what to do: try again\n"


def test_ctrl_c_says_that_the_daemon_goes_on(layout: Layout, control: ControlServer) -> None:
    """Ctrl-C ends `pull` with 1, without a traceback."""
    control.answers["POST /v1/pull"] = answer_queued(layout)
    command = [sys.executable, "-m", "cached", "pull", "minilm@1", "--root", str(layout.root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert "queued" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        _, errors = waiting.communicate(timeout=120)
    assert waiting.returncode == 1
    assert "the daemon goes on" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "arguments",
    [["minilm"], ["a--b@1"], [], ["minilm@1", "--digest", "sha256:zz"], ["minilm@1", "--timeout", "soon"]],
)
def test_bad_arguments_are_usage_errors(arguments: list[str]) -> None:
    """A bad reference, digest or timeout exits 2 before anything is asked."""
    with pytest.raises(SystemExit) as ended:
        pull.main(arguments)
    assert ended.value.code == 2


def test_no_daemon_is_said_plainly(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon `pull` exits 1 and says how to start one."""
    assert pull.main(["minilm@1", "--root", str(layout.root)]) == 1
    errors = capsys.readouterr().err
    assert "no daemon here" in errors
    assert "holdfast daemon" in errors


def test_gc_says_what_went(layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`gc` lists each evicted version with its size and why, and asks for a real eviction."""
    gone = {"model": "minilm", "version": "1", "digest": "sha256:" + "0" * 64, "bytes": 2048, "reason": "unwanted"}
    control.answers["POST /v1/gc"] = 200, {"versions": [gone], "bytes": 2048}
    assert gc.main(["--root", str(layout.root)]) == 0
    out = capsys.readouterr().out
    assert "minilm@1  2.0 KiB  unwanted" in out
    assert "1 version evicted, 2.0 KiB in all" in out
    assert control.asked == [("POST /v1/gc", {"dry_run": False})]


def test_gc_dry_run_removes_nothing(layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`gc --dry-run` asks for a dry run and speaks in the conditional."""
    gone = {"model": "minilm", "version": "1", "digest": "sha256:" + "0" * 64, "bytes": 2048, "reason": "unwanted"}
    control.answers["POST /v1/gc"] = 200, {"versions": [gone], "bytes": 2048}
    assert gc.main(["--root", str(layout.root), "--dry-run"]) == 0
    assert "would be evicted" in capsys.readouterr().out
    assert control.asked == [("POST /v1/gc", {"dry_run": True})]


def test_gc_with_nothing_to_do_says_so(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty report is said in words."""
    control.answers["POST /v1/gc"] = 200, {"versions": [], "bytes": 0}
    assert gc.main(["--root", str(layout.root)]) == 0
    assert "nothing to evict" in capsys.readouterr().out


def test_pin_and_unpin(layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`pin` and `unpin` name the version to the daemon and say what holds now."""
    control.answers["POST /v1/pin"] = 200, {"pinned": True}
    control.answers["POST /v1/unpin"] = 200, {"pinned": False, "was_pinned": True}
    assert pin.main(["minilm@1", "--root", str(layout.root)]) == 0
    assert pin.unpin(["minilm@1", "--root", str(layout.root)]) == 0
    named = {"model": "minilm", "version": "1"}
    assert control.asked == [("POST /v1/pin", named), ("POST /v1/unpin", named)]
    out = capsys.readouterr().out
    assert "minilm@1 is pinned" in out
    assert "minilm@1 is no longer pinned" in out


def test_unpin_says_when_the_catalog_still_pins(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the catalog pins the version, `unpin` says that it stays."""
    control.answers["POST /v1/unpin"] = 200, {"pinned": True, "was_pinned": True}
    assert pin.unpin(["minilm@1", "--root", str(layout.root)]) == 0
    assert "still pinned by the catalog" in capsys.readouterr().out
