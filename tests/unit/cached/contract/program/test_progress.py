"""The progress of a publish, as a person reads it."""

from __future__ import annotations

import io

from cached.contract.program.progress import ByteProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines() -> None:
    """Off a terminal there are no control characters, and the last line has the total."""
    stream = io.StringIO()
    with ByteProgress(stream, "hashing 2 files", 2048) as progress:
        progress.add(1024)
        progress.add(1024)
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].startswith("hashing 2 files: 2.0 KiB of 2.0 KiB")


def test_a_terminal_gets_one_line_rewritten() -> None:
    """On a terminal the line is rewritten in place and ended once."""
    stream = Terminal()
    with ByteProgress(stream, "uploading 1 file", 0):
        pass
    assert stream.getvalue().startswith("\r") and stream.getvalue().count("\n") == 1
