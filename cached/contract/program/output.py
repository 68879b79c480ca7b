"""Standard output and standard error of a command; either may be closed, full, or a pipe without a reader.

Law: a failed write to standard output is `OutputLost`, which no handler of disk errors catches; a failed write to
standard error is dropped, as no channel is left to report it. Standard library only, cheap to import.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable

from cached.contract.program import limits
from cached.contract.program.options import EXIT_FAILED

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells


class OutputLost(Exception):
    """A write to standard output failed; `unread`: the pipe has no reader any more."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.unread = cause.errno == errno.EPIPE


def run_guarded(name: str, command: Callable[[], int]) -> int:
    """Run `command` and return its exit code. A lost output, an interrupt and a limit of the process have their own
    exit codes and a message on standard error."""
    try:
        code = _run(command)
        sys.stdout.flush()
    except OutputLost as lost:
        _redirect_to_null(1)  # so that the flush at the end of the process succeeds
        if not lost.unread:  # a reader that closes the pipe early, as `head` does, expects no message
            sys.stderr.write(
                f"{name}: cannot write to standard output: {lost}\n"
                "  what to do: run it again with somewhere to write to; what it has done stays done\n"
            )
        return EXIT_FAILED
    except (RuntimeError, OSError) as error:
        short = limits.find_limit_error(error, name)
        if short is None:
            raise
        sys.stderr.write(f"{short.message}\n  what to do: {short.remedy}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        _redirect_to_null(1)
        sys.stderr.write(f"\n{name}: interrupted\n")
        return EXIT_INTERRUPTED
    return code


def replace_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr` as this module's law says. Opens closed descriptors read-only first, else
    the next opened file would get that number and the text."""
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = _Output(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8", "backslashreplace")
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    sys.stderr = _LossyOutput(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), "utf-8", "backslashreplace")


class _Output(io.TextIOWrapper):
    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputLost(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputLost(error) from error


class _LossyOutput(io.TextIOWrapper):
    def write(self, text: str) -> int:
        try:
            super().write(text)
            super().flush()
        except OSError:  # closed, full or unread
            _redirect_to_null(2)
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` flushes."""


def _run(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as ended:  # by argparse, after a usage error or --help
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED if ended.code else 0


def _redirect_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, descriptor)
    finally:
        os.close(null)
