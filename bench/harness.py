"""What every benchmark program here stands on: a folder to work in, and a clean end.

Law: what it made it removes, also after Ctrl-C, SIGTERM or an error; in a folder that was given, the origin's files
stay.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cached.contract.errors import HoldfastError
from cached.contract.program.units import parse_size

# Not /tmp, which is often a file system in memory: these measure disks.
_SCRATCH_PARENT = Path("/var/tmp")


@dataclass(frozen=True, slots=True)
class Workplace:
    """`origin`: what servers serve. `scratch`: configuration and logs. `folder`: holds both, and every destination."""

    folder: Path

    @property
    def origin(self) -> Path:
        return self.folder / "origin"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def destination(self) -> Path:
        """Where rows write; whoever makes it removes it, and it is not there when the next begins."""
        return self.folder / "destination"


@contextmanager
def workplace(kept: Path | None) -> Iterator[Workplace]:
    """A folder to work in: `kept`, whose origin outlives this run, or a temporary one."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        place = Workplace(kept.resolve())
        _prepare(place)
        try:
            yield place
        finally:
            _clear(place)
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=_SCRATCH_PARENT) as made:
        place = Workplace(Path(made))
        _prepare(place)
        yield place


def size_argument(text: str) -> int:
    """A size on the command line, in bytes."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def bench_main(main: Callable[[], int]) -> int:
    """Run a benchmark's `main`: errors become one line and exit code 1, SIGTERM unwinds as Ctrl-C does."""
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


def _prepare(place: Workplace) -> None:
    _clear(place)  # what an earlier run left that was killed
    place.scratch.mkdir()
    place.origin.mkdir(exist_ok=True)


def _clear(place: Workplace) -> None:
    shutil.rmtree(place.scratch, ignore_errors=True)
    shutil.rmtree(place.destination, ignore_errors=True)
