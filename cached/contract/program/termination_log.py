"""The termination log: a file in a container whose text the kubelet shows in the pod's status once the container ended.

Law: the first 4096 bytes, which is what the kubelet reads, without a part of a character at the end. A log that cannot
be written is reported on stderr and changes nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cached.contract.errors import HoldfastError

DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")
TERMINATION_LOG_BYTES = 4096


def find_termination_log(given: Path | None) -> Path | None:
    """Return the log that was given, else the container's own; None where there is neither."""
    if given is None and DEFAULT_TERMINATION_LOG.exists():
        return DEFAULT_TERMINATION_LOG
    return given


def explain_to_person(error: HoldfastError) -> str:
    """Return the lines of an error: the reason, then the remedy."""
    return f"{error.message}\n" + (f"What to do: {error.remedy}\n" if error.remedy else "")


def write_termination_log(log: Path | None, text: str, program: str) -> None:
    """Replace the log's text; without a log nothing is written. `program` begins a line on stderr."""
    if log is None:
        return
    try:
        log.write_bytes(text.encode()[:TERMINATION_LOG_BYTES].decode(errors="ignore").encode())
    except OSError as refused:
        sys.stderr.write(f"{program}: {log}: {refused.strerror}; the reason is only in this log\n")
