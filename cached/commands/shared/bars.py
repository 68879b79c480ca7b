"""Bars on a terminal: a pull with its files, and the view of all versions.

Law: the only module that imports rich, and only once a bar is to be drawn: `open_console` returns None where a stream
is no terminal, or rich is not installed, and the caller prints plain lines. NO_COLOR is rich's own to heed.
"""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from cached.commands.shared.control_client import FetchFiles
from cached.commands.shared.style import is_terminal
from cached.contract.program.units import format_count, format_duration, format_size
from cached.contract.status import ModelStatus, State

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_COLOURS = {State.READY: "green", State.FAILED: "red", State.QUEUED: "yellow", State.EVICTING: "yellow"}
_MOVING = (State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING)
_LEAST_LINES = 8
_BAR_WIDTH, _NAME_WIDTH = 24, 30
_LEAST_NAME, _WORDS_WIDTH = 16, 44  # of the first column, and for the last one with all padding
_WIDE = 120


def open_console(stream: TextIO) -> Console | None:
    """Return a console for `stream`; None where it is no terminal, a dumb one, or rich is missing."""
    if not is_terminal(stream):
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(file=stream, highlight=False, emoji=False, markup=False)


@contextmanager
def open_live(console: Console, *, whole_screen: bool) -> Iterator[Live]:
    """Yield a view that is drawn again by `update(…, refresh=True)`; of `whole_screen` nothing stays behind."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False, screen=whole_screen, transient=not whole_screen) as live:
        yield live


def draw_pull(name: str, status: ModelStatus, files: FetchFiles | None) -> RenderableType:
    """Draw a bar for the version, and one for each file that is being received, as far as there are lines."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = _make_table()
    table.add_row(Text(name, style="bold"), *_cells(status))
    if files is not None and files.receiving:
        room = max(1, min(len(files.receiving), shutil.get_terminal_size().lines - _LEAST_LINES))
        for path, total, done in files.receiving[:room]:
            share = Text(format_size(done) if total is None else f"{format_size(done)} of {format_size(total)}")
            table.add_row(Text(f"  {_shorten(path)}", style="dim"), _bar(done, total), share)
        others = files.waiting + len(files.receiving) - room
        # Not "here": files of other versions that the node had before are not fetched.
        counts = ((format_count(files.done, "file") + " fetched", files.done), (f"{others} to come", others))
        note = ", ".join(text for text, count in counts if count)
        return Group(table, *([Text(f"  {note}", style="dim")] if note else []))
    assert isinstance(table, Table)
    return table


def draw_status(head: str, statuses: Sequence[ModelStatus], errors: str, lines: int) -> RenderableType:
    """Draw the daemon's lines, a bar for each version, those that move first, and errors, in `lines` lines."""
    from rich.console import Group
    from rich.text import Text

    ordered = sorted(statuses, key=lambda each: (_rank(each), each.model, each.version))
    problems = errors.splitlines()
    room = max(1, lines - len(head.splitlines()) - min(len(problems), lines // 3) - 2)
    table = _make_table()
    for status in ordered[:room]:
        table.add_row(Text(f"{status.model}@{status.version}"), *_cells(status))
    more = len(ordered) - room
    parts: list[Any] = [Text(head), table]
    parts += [Text(f"and {more} more: `holdfast status` lists all", style="dim")] if more > 0 else []
    return Group(*parts, Text("\n".join(problems)))


def _rank(status: ModelStatus) -> int:
    if status.state in _MOVING:
        return 0
    return 2 if status.state is State.READY else 1


def _make_table() -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    name_width = max(_LEAST_NAME, shutil.get_terminal_size().columns - _bar_width() - _WORDS_WIDTH)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=name_width)
    table.add_column(no_wrap=True, width=_bar_width())
    table.add_column(no_wrap=True, overflow="ellipsis")
    return table


def _cells(status: ModelStatus) -> tuple[Any, Any]:
    """Return a version's bar and words."""
    from rich.text import Text

    words = Text(status.state.value, style=_COLOURS.get(status.state, "cyan"))
    total, done = status.bytes_total, status.bytes_done
    if status.state is State.READY:
        done = total or 0
    if total and (_is_wide() or done >= total):
        received = "" if done >= total else f"{format_size(done)} of "
        words.append(f"  {received}{format_size(total)}", "default")
    elif total:
        words.append(f"  {100 * done // total} % of {format_size(total)}", "default")
    if status.rate_bytes_per_s and status.state in _MOVING and _is_wide():
        words.append(f", {format_size(status.rate_bytes_per_s)}/s", "default")
    if status.eta_s is not None and status.state in _MOVING:
        words.append(f", {format_duration(status.eta_s)} left", "default")
    is_moving = status.state in _MOVING or status.state is State.READY
    return (_bar(done, total) if is_moving and total else Text("")), words


def _bar(done: int, total: int | None) -> Any:
    from rich.progress_bar import ProgressBar

    completed = min(done, total) if total else 0
    return ProgressBar(
        total=total or 1, completed=completed, width=_bar_width(), complete_style="cyan", finished_style="green"
    )


def _shorten(path: str) -> str:
    """Return the name of a file where its path is long; the table cuts what is too long still."""
    return path if len(path) <= _NAME_WIDTH else posixpath.basename(path)


def _is_wide() -> bool:
    return shutil.get_terminal_size().columns >= _WIDE


def _bar_width() -> int:
    return _BAR_WIDTH if _is_wide() else _BAR_WIDTH // 2
