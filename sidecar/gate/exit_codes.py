"""How a gate ends: its exit codes, and the reason for whoever reads the log or the termination log.

Law: decides codes and writes the reason; never decides whether to end.

`READY` also after SIGTERM once the gate was open. A signal before that: 128 + its number, as a shell reports it.
`FAILED`: the gate itself could not do its work (its port is taken, the disk refuses to read, a model's symlink names
something that is no snapshot).
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.reference import Wanted
from cached.contract.status import StatusError

READY = 0
FAILED = 1
MISMATCH = 65  # EX_DATAERR: the bytes are not what was promised
NEVER = 69  # EX_UNAVAILABLE: the daemon says this can never be
DEADLINE = 75  # EX_TEMPFAIL: not there in time
TERMINATION_LOG_BYTES = 4096  # what the kubelet reads of it
_MISMATCH_CODES = frozenset({"digest_mismatch", "invalid_manifest", "invalid_record"})


class Refused(Permanent):
    """The daemon reported that a version can never be on this node."""

    def __init__(self, want: Wanted, reason: StatusError) -> None:
        super().__init__(reason.code, f"{want}: the daemon gave up: {reason.message}", reason.remedy)


class Unverified(Permanent):
    """A version is there and is not what it should be; the cause says why."""

    def __init__(self, want: Wanted, cause: Permanent) -> None:
        super().__init__(cause.code, f"{want}: {cause.message}", cause.remedy)


class DeadlinePassed(Transient):
    """The versions were not all there and verified within `--timeout`."""

    def __init__(self, timeout_s: float, state: str) -> None:
        super().__init__(
            "deadline_passed",
            f"not ready within {timeout_s:g} s: {state}",
            "allow more time with --timeout, or look at the daemon of this node",
        )


class Stopped(Transient):
    """A signal came before the gate was open."""

    def __init__(self, number: int, state: str) -> None:
        name = signal.Signals(number).name
        super().__init__("stopped", f"stopped by {name} before the gate was open: {state}", "")
        self.number = number


def code_of(error: HoldfastError) -> int:
    """The exit code that tells of `error`."""
    if isinstance(error, Stopped):
        return 128 + error.number
    if isinstance(error, DeadlinePassed):
        return DEADLINE
    if error.code in _MISMATCH_CODES:
        return MISMATCH
    return NEVER if isinstance(error, Refused) else FAILED


def tell(error: HoldfastError, termination_log: Path | None) -> None:
    """Write the reason and the remedy to stderr, and to the termination log if there is one."""
    text = f"{error.message}\n" + (f"What to do: {error.remedy}\n" if error.remedy else "")
    sys.stderr.write(f"holdfast gate: {text}")
    if termination_log is None:
        return
    try:
        termination_log.write_bytes(_head(text.encode(), TERMINATION_LOG_BYTES))
    except OSError as refused:
        sys.stderr.write(f"holdfast gate: {termination_log}: {refused.strerror}; the reason is only in this log\n")


def _head(text: bytes, limit: int) -> bytes:
    """The first `limit` bytes at most, without half a character at the end."""
    return text[:limit].decode(errors="ignore").encode()
