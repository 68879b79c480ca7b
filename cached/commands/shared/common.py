"""Shared by the commands: the `--root` option, references as arguments, error output, tables, the text of a status.

Law: errors go to stderr as reason and remedy; exit 0 done, 1 failed, 2 usage (design, section 8).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.layout import DEFAULT_ROOT, Layout, PublicLayout
from cached.contract.program.options import EXIT_FAILED, OptionParser
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State

_Result = TypeVar("_Result")
_LEAST_NAME = 16  # characters of a name that is cut
_OVERTIME_S = 0.5  # for work that ends at the same limit, with a better reason


def command_parser(name: str, description: str) -> OptionParser:
    """Return a parser for `holdfast NAME` with `--root`."""
    parser = OptionParser(prog=f"holdfast {name}", description=description)
    parser.option("--root", type=Path, default=str(DEFAULT_ROOT), metavar="DIR", help="the daemon's root")
    return parser


def add_timeout_option(parser: OptionParser, default_s: float) -> None:
    """Add `--timeout`, in seconds for the daemon's answer."""
    parser.option(
        "--timeout",
        type=parse_seconds,
        default=f"{default_s:g}",
        metavar="S",
        help="seconds to wait for the daemon's answer; past that it does nothing",
    )


def parse_seconds(text: str) -> float:
    """Parse seconds above 0; raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"expected seconds, more than 0, found {text!r}")
    return value


def parse_reference(text: str) -> ModelRef:
    """Parse `NAME@VERSION`; raises `ArgumentTypeError`, a usage error."""
    try:
        return ModelRef.parse(text)
    except HoldfastError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_digest(text: str) -> Digest:
    """Parse a digest `sha256:…`; raises ValueError, which an option turns into a usage error."""
    try:
        return Digest.parse(text)
    except HoldfastError as error:
        raise ValueError(str(error)) from error


def run_within(limit_s: float | None, layout: Layout, work: Callable[[], _Result]) -> _Result:
    """Return what `work` returns; raises what it raises, and `Transient` (`root_silent`) where it takes longer than
    `limit_s` seconds (None: no limit). It runs in a thread of its own, for a file system that does not answer keeps
    the thread that asks it, even from Ctrl-C: the kernel hands a signal to a program when the call is over."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            errors.append(error)

    thread = threading.Thread(target=run, name="command", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the limit of processes is reached
        return work()
    deadline = None if limit_s is None else time.monotonic() + limit_s + _OVERTIME_S
    thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    if results:
        return results[0]
    raise Transient(
        "root_silent",
        f"{layout.root} has not answered for {limit_s:g} s",
        "look at its file system: a disk, an NFS or FUSE server behind it does not answer",
    )


def get_layout(options: argparse.Namespace) -> Layout:
    """Return the layout under `--root`."""
    root: Path = options.root
    return Layout(root.absolute())


def get_public_tree(options: argparse.Namespace) -> PublicLayout:
    """Return the public tree under `--root`; raises `Permanent` (`no_root`, `no_permission`) unless it is there."""
    public = get_layout(options).public
    try:
        is_folder = stat.S_ISDIR(os.stat(public.path).st_mode)
    except PermissionError as error:
        raise Permanent(
            "no_permission", f"may not read {public.path}: {error.strerror}", "run as the daemon's user, often root"
        ) from error
    except OSError:
        is_folder = False
    if not is_folder:
        raise Permanent(
            "no_root",
            f"no cache here: {public.path} does not exist",
            "name the daemon's root with --root or HOLDFAST_ROOT, or start `holdfast daemon` once",
        )
    return public


def report_errors(name: str) -> Callable[[Callable[[Sequence[str]], int]], Callable[[Sequence[str]], int]]:
    """Decorate the main function of `holdfast NAME`: it prints a `HoldfastError` on stderr and returns 1."""

    def decorate(main: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
        @wraps(main)
        def run(argv: Sequence[str]) -> int:
            try:
                return main(argv)
            except HoldfastError as error:
                print_error(name, error.message, error.remedy)
            except PermissionError as error:
                print_error(name, f"{error.filename}: {error.strerror}", "run as the daemon's user, often root")
            return EXIT_FAILED

        return run

    return decorate


def print_error(name: str, message: str, remedy: str) -> None:
    """Print an error on stderr: the reason, then the remedy."""
    sys.stderr.write(f"holdfast {name}: {message}\n")
    if remedy:
        sys.stderr.write(f"  what to do: {remedy}\n")


def print_json(document: object) -> None:
    """Print a JSON document on standard output, as `--json` does; docs/reference/json.md has the shapes."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def fit_names(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return `rows` with the cells of their first column cut in the middle, as far as the table needs that to fit the
    terminal; as they are where there is none, for who parses them."""
    if not sys.stdout.isatty():
        return [tuple(row) for row in rows]
    excess = max(map(len, format_table(rows).splitlines())) - shutil.get_terminal_size().columns
    room = max(_LEAST_NAME, max(len(row[0]) for row in rows) - max(0, excess))
    return [(_cut(row[0], room), *row[1:]) for row in rows]


def _cut(name: str, room: int) -> str:
    if len(name) <= room:
        return name
    kept = room - 1
    return f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Format `rows` in columns as wide as their widest cell; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(line + "\n" for line in lines)


def describe_status(status: ModelStatus) -> str:
    """Return one line, as the gate prints it: `fetching 41.0 MiB of 87.3 MiB (47 %), 120.0 MiB/s, 1s left`."""
    if status.error is not None:
        again = "" if status.error.permanent else ", the daemon tries again"
        message = ModelRef(status.model, status.version).drop_name(status.error.message)
        return f"{status.state.value}{again}: {message}"
    return f"{status.state.value} {describe_progress(status)}".rstrip()


def describe_progress(status: ModelStatus) -> str:
    """Return bytes, percent, rate and remaining time; empty while none is known."""
    if status.state in (State.FETCHING, State.VERIFYING) and status.bytes_total:
        share = f"{100 * status.bytes_done // status.bytes_total} %"
        done = f"{format_size(status.bytes_done)} of {format_size(status.bytes_total)} ({share})"
        return ", ".join([done, *status.describe_pace()])
    return "" if status.bytes_total is None else format_size(status.bytes_total)
