"""The gate's exit codes, and the reason in its log and in the termination log.

Law: maps errors to codes and writes the reason; never decides whether to exit.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.program.options import EXIT_USAGE
from cached.contract.program.termination_log import explain_to_person, write_termination_log
from cached.contract.reference import ModelRequest
from cached.contract.status import StatusError

if TYPE_CHECKING:  # loaded with `--log-format json` only
    from cached.contract.program.events import EventWriter

READY = 0
FAILED = 1
USAGE = EXIT_USAGE
MISMATCH = 65  # EX_DATAERR
NEVER = 69  # EX_UNAVAILABLE
DEADLINE = 75  # EX_TEMPFAIL
SIGNALLED = 128  # plus the signal's number, as in a shell
MEANINGS = {  # of docs/reference/exit-codes.md: what happened, and what to do
    READY: ("the weights are there and verified; also after SIGTERM once the gate was open", "nothing"),
    FAILED: (
        "the gate itself failed: its port is in use, the disk is unreadable, a symlink leads to no snapshot",
        "the reason and the remedy are in the log and in the termination message",
    ),
    USAGE: ("a wrong option or variable", "correct what the message names"),
    MISMATCH: (
        "the bytes differ from the digest: a pin does not match, or a file on the node is not what its manifest says",
        "correct the pin; the daemon looks into wrong bytes at once and fetches them again",
    ),
    NEVER: ("the daemon says that this can never be, with its reason", "correct what the reason names"),
    DEADLINE: ("not ready within `--timeout`", "allow more time, or look at `holdfast status` on that node"),
    SIGNALLED: ("ended by signal N before the gate was open (143 after SIGTERM): 128 + N", "nothing"),
}
_MISMATCH_CODES = frozenset({"digest_mismatch", "invalid_manifest", "invalid_record"})


class DaemonRefused(Permanent):
    """The daemon reports that a version can never be on this node."""

    def __init__(self, want: ModelRequest, reason: StatusError) -> None:
        super().__init__(
            reason.code, f"{want}: the daemon gave up: {want.ref.drop_name(reason.message)}", reason.remedy
        )


class Unverified(Permanent):
    """A version is present but its verification failed; the cause says why."""

    def __init__(self, want: ModelRequest, cause: Permanent) -> None:
        super().__init__(cause.code, f"{want}: {want.ref.drop_name(cause.message)}", cause.remedy)


class Confirmed(Permanent):
    """A version is present and refused, and asking the daemon did not help; `why` not."""

    def __init__(self, cause: Permanent, why: str) -> None:
        super().__init__(cause.code, f"{cause.message}; {why}", cause.remedy)


class DeadlinePassed(Transient):
    """A version was not present and verified within `--timeout`. `remedies`: of the daemon's last errors, if any."""

    def __init__(self, timeout_s: float, state: str, remedies: Sequence[str]) -> None:
        super().__init__(
            "deadline_passed",
            f"not ready within {timeout_s:g} s: {state}",
            "; ".join(remedies) or "allow more time with --timeout, or look at the daemon of this node",
        )


class GateStopped(Transient):
    """A signal arrived before the gate was open."""

    def __init__(self, number: int, state: str) -> None:
        super().__init__("stopped", f"stopped by {signal.Signals(number).name} before the gate was open: {state}", "")
        self.number = number


def code_of(error: HoldfastError) -> int:
    """Return the exit code of `error`."""
    if isinstance(error, GateStopped):
        return SIGNALLED + error.number
    if isinstance(error, DeadlinePassed):
        return DEADLINE
    if error.code in _MISMATCH_CODES:
        return MISMATCH
    return NEVER if isinstance(error, DaemonRefused) else FAILED


def write_reason(error: HoldfastError, termination_log: Path | None, log: EventWriter | None) -> None:
    """Write the reason and the remedy to stderr, as an event where there are any, and to the termination log."""
    text = explain_to_person(error)
    if log is None:
        sys.stderr.write(f"holdfast gate: {text}")
    else:
        log.write("error", error.message, code=error.code, remedy=error.remedy or None)
    write_termination_log(termination_log, text, "holdfast gate")
