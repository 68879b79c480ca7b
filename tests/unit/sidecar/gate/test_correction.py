"""Gates that wait for a correction of the daemon's refusal, and what their log says of errors until then."""

from __future__ import annotations

import signal
import time

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import PublicLayout
from cached.contract.status import State, StatusError
from tests.support.gates import FILES, REF, Gates
from tests.support.snapshots import link_model, make_snapshot, write_status

UNKNOWN = StatusError("unknown_model", f"{REF}: the catalog has no such model", "add it to the catalog", permanent=True)
REFUSED = StatusError("http_403", "the bucket says 403", "check the credentials", permanent=True)
SILENT = StatusError("timeout", "no answer from 10.0.0.1", "check the network", permanent=False)
RESET = StatusError("reset", "connection reset by 10.0.0.1", "", permanent=False)
WAIT = ("--once", "--wait-for-correction")


@pytest.mark.parametrize(
    "error",
    [UNKNOWN, REFUSED, StatusError("digest_mismatch", "expected sha256:aa", "correct the catalog", permanent=True)],
)
def test_a_refusal_that_can_be_corrected_is_waited_out(public: PublicLayout, gates: Gates, error: StatusError) -> None:
    """With `--wait-for-correction` a permanent refusal is told with its remedy, and the gate opens once it is over."""
    write_status(public, REF, State.FAILED, error)
    gate = gates.start(*WAIT)
    gate.wait_said("waiting for a correction")
    assert error.remedy in gate.said()
    write_status(public, REF, State.RESOLVING)
    gate.wait_said("the daemon's last error is over")
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0
    assert not gates.termination_log.exists()


def test_it_reads_the_environment(public: PublicLayout, gates: Gates) -> None:
    """`HOLDFAST_WAIT_FOR_CORRECTION` stands for the option."""
    write_status(public, REF, State.FAILED, UNKNOWN)
    gate = gates.start("--once", environment={"HOLDFAST_WAIT_FOR_CORRECTION": "1"})
    gate.wait_said("waiting for a correction")


def test_a_refusal_is_told_once_and_when_it_changes(public: PublicLayout, gates: Gates) -> None:
    """The same refusal is one line however often the daemon writes it; another one is another line. No line names the
    version twice."""
    write_status(public, REF, State.FAILED, UNKNOWN)
    gate = gates.start(*WAIT)
    gate.wait_said(UNKNOWN.remedy)
    for _ in range(3):
        write_status(public, REF, State.FAILED, UNKNOWN)
        time.sleep(0.05)
    write_status(public, REF, State.FAILED, REFUSED)
    gate.wait_said(REFUSED.remedy)
    assert gate.said().count("the catalog has no such model") == 1
    assert gate.said().count(REFUSED.message) == 1
    assert f"{REF}: {REF}" not in gate.said()


def test_a_pin_that_cannot_be_met_ends_it(public: PublicLayout, gates: Gates) -> None:
    """What only another pod can change ends a gate that waits for corrections: its own wrong pin, with 65, whether the
    version is here with other content or not at all."""
    wrong = str(Digest.of(b"other"))
    error = StatusError("digest_mismatch", "expected this, found that", "correct the pin", permanent=True)
    write_status(public, REF, State.FAILED, error, refused_pins={wrong: error})
    assert gates.start(*WAIT, "--digest", wrong).wait() == 65
    link_model(public, REF, make_snapshot(public, FILES))
    assert gates.start(*WAIT, "--digest", wrong).wait() == 65


def test_the_deadline_tells_the_last_refusal(public: PublicLayout, gates: Gates) -> None:
    """At its deadline a gate that waits for a correction exits 75, with the refusal and its remedy as the reason."""
    write_status(public, REF, State.FAILED, REFUSED)
    assert gates.start(*WAIT, "--timeout", "0.3").wait() == 75
    reason = gates.termination_log.read_text()
    assert REFUSED.message in reason and REFUSED.remedy in reason


def test_a_signal_ends_the_wait(public: PublicLayout, gates: Gates) -> None:
    """SIGTERM ends a gate that waits for a correction at once, with 128 + 15 and the refusal in the reason."""
    write_status(public, REF, State.FAILED, REFUSED)
    gate = gates.start(*WAIT)
    gate.wait_said("waiting for a correction")
    gate.process.terminate()
    assert gate.wait() == 128 + signal.SIGTERM
    assert REFUSED.message in gates.termination_log.read_text()


def test_one_refused_version_keeps_no_other_from_its_check(public: PublicLayout, gates: Gates) -> None:
    """Of several versions the refused one is waited for while the others are verified."""
    write_status(public, REF, State.FAILED, REFUSED)
    here = "here@v1"
    gate = gates.start_bare("--models", f"{REF},{here}", *WAIT)
    gate.wait_said("waiting for a correction")
    link_model(public, type(REF).parse(here), make_snapshot(public, {"a": b"a"}))
    gate.wait_said("here@v1: 1 file")
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


def test_a_retried_error_is_told_once_and_when_it_changes(public: PublicLayout, gates: Gates) -> None:
    """While the daemon tries again, from queued to resolving and back, its error is one line with the remedy; another
    error is another line, and the end of it is told."""
    gate = gates.start("--once")
    gate.wait_said("waiting")
    for state in (State.QUEUED, State.RESOLVING, State.QUEUED, State.RESOLVING):
        write_status(public, REF, state, SILENT)
        gate.wait_said(f"the daemon tries again: {SILENT.message} (what to do: {SILENT.remedy})")
        time.sleep(0.05)
    write_status(public, REF, State.QUEUED, RESET)
    gate.wait_said(f"the daemon tries again: {RESET.message}\n")
    write_status(public, REF, State.FETCHING, done=(1, 100))
    gate.wait_said("the daemon's last error is over")
    assert gate.said().count(SILENT.message) == 1
    assert gate.said().count(RESET.message) == 1
    assert ": queued" not in gate.said() and ": resolving" not in gate.said()


def test_an_error_during_a_fetch_is_told_beside_its_bytes(public: PublicLayout, gates: Gates) -> None:
    """An error that is retried in the middle of a fetch is told, and the bytes are too."""
    write_status(public, REF, State.FETCHING, SILENT, done=(25, 100))
    gate = gates.start("--once")
    gate.wait_said("fetching 25 B of 100 B (25 %)")
    assert gate.said().count(SILENT.message) == 1
