"""Shared by the benchmark programs: a working folder, the order of rows, exit codes.

Law: removes what it made, also after Ctrl-C, SIGTERM or an error; in a folder from `--work` the origin's files stay.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

from cached.contract.errors import HoldfastError
from cached.contract.program.units import parse_size

# Not /tmp, which is often a file system in memory: these measure disks.
_SCRATCH_PARENT = Path("/var/tmp")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workplace:
    """A working folder: `origin` has the servers' files, `scratch` configuration and logs."""

    folder: Path

    @property
    def origin(self) -> Path:
        return self.folder / "origin"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def destination(self) -> Path:
        """The folder that rows write to; each row makes and removes it."""
        return self.folder / "destination"


@contextmanager
def workplace(kept: Path | None) -> Iterator[Workplace]:
    """Provide a working folder: `kept`, whose origin outlives this run, or a temporary one."""
    if kept is None:
        with (
            tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=_SCRATCH_PARENT) as made,
            workplace(Path(made)) as w,
        ):
            yield w
        return
    kept.mkdir(parents=True, exist_ok=True)
    place = Workplace(kept.resolve())
    _clear(place)  # the leftovers of a killed run
    place.scratch.mkdir()
    place.origin.mkdir(exist_ok=True)
    try:
        yield place
    finally:
        _clear(place)


def size_argument(text: str) -> int:
    """Parse a size in bytes; raises `ArgumentTypeError`."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def matches(only: str, name: str) -> bool:
    """Tell whether `only`, comma-separated words or nothing, selects the row `name`."""
    return not only or any(word and word in name for word in only.split(","))


def in_turn(rows: Sequence[T], round_: int) -> list[T]:
    """Return the rows, each round from the next one on."""
    turn = round_ % max(1, len(rows))
    return [*rows[turn:], *rows[:turn]]


def bench_main(main: Callable[[], int]) -> int:
    """Run a benchmark's `main` and return its exit code: 1 after an error, 130 after Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return main()
    except HoldfastError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _clear(place: Workplace) -> None:
    shutil.rmtree(place.scratch, ignore_errors=True)
    shutil.rmtree(place.destination, ignore_errors=True)
