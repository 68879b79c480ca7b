"""What the commands share: the `--root` option, references as arguments, and how an error is told.

Law: prints errors on stderr as reason and remedy; exit 0 done, 1 failed, 2 usage (design, section 8).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import DEFAULT_ROOT, Layout
from cached.contract.program.options import EXIT_FAILED, OptionParser
from cached.contract.reference import ModelRef


def command_parser(name: str, description: str) -> OptionParser:
    """A parser for `holdfast NAME` that already has `--root`."""
    parser = OptionParser(prog=f"holdfast {name}", description=description)
    parser.option("--root", type=Path, default=DEFAULT_ROOT, help=f"the daemon's root (default {DEFAULT_ROOT})")
    return parser


def ask_within(parser: OptionParser, default_s: float) -> None:
    """Add `--timeout`: how long the daemon may take to answer."""
    parser.option(
        "--timeout",
        type=seconds,
        default=default_s,
        help=f"seconds to wait for the daemon's answer (default {default_s:g}); past that it does nothing",
    )


def seconds(text: str) -> float:
    """Seconds, more than 0; raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"expected seconds, more than 0, found {text!r}")
    return value


def reference(text: str) -> ModelRef:
    """An argument `NAME@VERSION`; a bad one is a usage error."""
    return _argument(ModelRef.parse, text)


def digest(text: str) -> Digest:
    """A digest `sha256:…`; a bad one raises ValueError, as options want it."""
    try:
        return Digest.parse(text)
    except HoldfastError as error:
        raise ValueError(str(error)) from error


def layout_of(options: argparse.Namespace) -> Layout:
    """The layout under `--root`."""
    root: Path = options.root
    return Layout(root.absolute())


def report_errors(name: str, body: Callable[[], int]) -> int:
    """Run `body`; a `HoldfastError` becomes reason and remedy on stderr, and exit code 1."""
    try:
        return body()
    except HoldfastError as error:
        tell_error(name, error.message, error.remedy)
    except PermissionError as error:
        tell_error(name, f"{error.filename}: {error.strerror}", "run as the daemon's user, often root")
    return EXIT_FAILED


def tell_error(name: str, message: str, remedy: str) -> None:
    """Print an error as a person reads it: what is wrong, then what to do."""
    sys.stderr.write(f"holdfast {name}: {message}\n")
    if remedy:
        sys.stderr.write(f"  what to do: {remedy}\n")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lay `rows` out in columns as wide as their widest cell; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(line + "\n" for line in lines)


def _argument(parse: Callable[[str], ModelRef], text: str) -> ModelRef:
    try:
        return parse(text)
    except HoldfastError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
