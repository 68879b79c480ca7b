"""Standard output and standard error of a command, where either may be closed, full, or a pipe that nobody reads.

Law: what standard output does not take is `OutputLost`, which no handler of disk errors catches; what standard error
does not take is dropped, for there is nobody to tell. Standard library only, cheap to import.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable

from cached.contract.program import limits
from cached.contract.program.options import EXIT_FAILED

_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it


class OutputLost(Exception):
    """Standard output does not take what was written."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.unread = cause.errno == errno.EPIPE


def guarded(name: str, command: Callable[[], int]) -> int:
    """Run `command`; returns its exit code, or that of a lost output, an interrupt, or a limit of
    the process, which are told in a sentence."""
    try:
        code = _run(command)
        sys.stdout.flush()
    except OutputLost as lost:
        _discard_output()
        if not lost.unread:  # whoever ends a pipe early, as `head` does, wants to hear nothing
            sys.stderr.write(
                f"{name}: cannot write to standard output: {lost}\n"
                "  what to do: run it again with somewhere to write to; what it has done stays done\n"
            )
        return EXIT_FAILED
    except (RuntimeError, OSError) as error:
        short = limits.shortage(error, name)
        if short is None:
            raise
        sys.stderr.write(f"{short.message}\n  what to do: {short.remedy}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        _discard_output()
        sys.stderr.write(f"\n{name}: interrupted\n")
        return _EXIT_INTERRUPTED
    return code


def use_streams() -> None:
    """Make `sys.stdout` and `sys.stderr` what this module's law says.

    A closed descriptor is taken first, read-only, or the next file that is opened would get its number and the text.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = _Output(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8", "backslashreplace")
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    sys.stderr = _Heedless(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), "utf-8", "backslashreplace")


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


class _Heedless(io.TextIOWrapper):
    def write(self, text: str) -> int:
        try:
            super().write(text)
            super().flush()
        except OSError:  # closed, full or unread: there is nobody to tell
            _lead_nowhere(2)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""


def _run(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as ended:  # argparse's, after a usage error or --help
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED if ended.code else 0


def _discard_output() -> None:
    """Let the flush at the end of the process succeed with what is left in the buffer."""
    _lead_nowhere(1)


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, descriptor)
    finally:
        os.close(nowhere)
