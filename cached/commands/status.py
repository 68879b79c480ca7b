"""`holdfast status`: show the daemon's heartbeat, the disk and every version's state, once or refreshed in place.

Law: reads the public tree, so that it also works while the daemon is down, and asks one that runs only for what it
alone knows: which pods wait, and the account of the disk within its quota.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cached.commands.shared import bars
from cached.commands.shared.common import (
    command_parser,
    describe_progress,
    fit_names,
    format_table,
    get_layout,
    get_public_tree,
    report_errors,
)
from cached.commands.shared.control_client import NodeState, ask_node_state
from cached.commands.shared.style import is_terminal, wrap
from cached.commands.shared.tree import list_model_statuses, read_daemon_status, read_disk_space, seconds_since
from cached.contract.layout import Layout, PublicLayout
from cached.contract.program.options import EXIT_DONE
from cached.contract.program.units import format_duration, format_size
from cached.contract.status import DaemonStatus, ModelStatus, parse_timestamp

if TYPE_CHECKING:
    from rich.console import Console

_REFRESH_S = 1.0
_MOST_PODS, _MOST_PODS_LIVE = 20, 5
_HEARTBEAT_LATE_S = 15.0  # it moves at least every 5 s (design, section 3)


@report_errors("status")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast status [--watch] [--json]`; return the exit code."""
    parser = command_parser("status", "Show what the daemon of this node is doing.")
    parser.switch("--watch", help="refresh every second, until Ctrl-C")
    parser.switch("--json", help="print JSON instead of text (with --watch: one object a line)")
    options = parser.parse_args(argv)
    get_public_tree(options)
    layout = get_layout(options)
    if options.watch:
        return _watch(layout, as_json=options.json)
    sys.stdout.write(json.dumps(_document(layout), indent=2) + "\n" if options.json else _text(layout))
    return EXIT_DONE


def _watch(layout: Layout, *, as_json: bool) -> int:
    console = None if as_json else bars.open_console(sys.stdout)
    if console is not None:
        return _watch_live(layout, console)
    in_place = is_terminal(sys.stdout) and not as_json
    try:
        while True:
            text = json.dumps(_document(layout)) + "\n" if as_json else _text(layout)
            sys.stdout.write(_redraw(text) if in_place else text)
            sys.stdout.flush()
            time.sleep(_REFRESH_S)
    except KeyboardInterrupt:
        return EXIT_DONE


def _watch_live(layout: Layout, console: Console) -> int:
    """Draw all versions with bars until Ctrl-C; what was drawn last stays."""
    with contextlib.suppress(KeyboardInterrupt), bars.open_live(console, whole_screen=True) as live:
        while True:
            statuses = list_model_statuses(layout.public)
            lines, node = shutil.get_terminal_size().lines, ask_node_state(layout)
            notes = [_list_waiting(node, _MOST_PODS_LIVE), _list_errors(statuses)]
            shown = "\n".join(filter(None, notes))
            live.update(bars.draw_status(_head(layout.public, node), statuses, shown, lines), refresh=True)
            time.sleep(_REFRESH_S)
    sys.stdout.write(_text(layout))
    return EXIT_DONE


def _redraw(text: str) -> str:
    """Redraw line by line: clearing the whole screen first would flicker."""
    width, height = shutil.get_terminal_size()
    lines = [line[: width - 1] for line in text.splitlines()[: height - 1]]
    return "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"


def _document(layout: Layout) -> dict[str, Any]:
    """Return the document of `/v1/status`, as far as the public tree has it, and the pods that wait."""
    public, node = layout.public, ask_node_state(layout)
    daemon = read_daemon_status(public)
    return {
        "daemon": None if daemon is None else daemon.document(),
        "disk": (node and node.disk) or {**read_disk_space(public), "reserved": None, "error": None},
        "models": [status.document() for status in list_model_statuses(public)],
        "waiting": None if node is None else node.waiting,
    }


def _head(public: PublicLayout, node: NodeState | None) -> str:
    return _daemon_line(read_daemon_status(public)) + _disk_line(public, node)


def _disk_line(public: PublicLayout, node: NodeState | None) -> str:
    """Return the daemon's account of its quota, or what the file system has where the daemon does not answer."""
    own = None if node is None else node.disk
    space = read_disk_space(public) if own is None else own
    full = 100 * (space["capacity"] - space["free"]) / max(1, space["capacity"])
    whose = " (of the whole file system: the daemon does not answer)" if own is None else ""
    return f"disk    {format_size(space['free'])} free of {format_size(space['capacity'])}, {full:.0f} % full{whose}\n"


def _text(layout: Layout) -> str:
    node = ask_node_state(layout)
    head = f"{_head(layout.public, node)}\n"
    statuses = list_model_statuses(layout.public)
    if not statuses:
        return head + "no version is wanted here yet\n"
    rows = [("VERSION", "STATE", "FOR", "PROGRESS")]
    for status in statuses:
        ref, since = f"{status.model}@{status.version}", format_duration(seconds_since(status.since))
        rows.append((ref, status.state.value, since, describe_progress(status)))
    notes = [_list_waiting(node, _MOST_PODS), _list_errors(statuses)]
    return head + format_table(fit_names(rows)) + "".join(f"\n{each}" for each in notes if each)


def _list_waiting(node: NodeState | None, most: int) -> str:
    """Return a table of the first of the pods that wait, each with what it waits for and how long; empty without
    any."""
    if node is None or not node.waiting:
        return ""
    pods = node.waiting
    rows = [("POD", "WAITS FOR", "FOR")]
    for each in pods[:most]:
        since = "-" if each["since"] is None else format_duration(seconds_since(each["since"]))
        rows.append((each["pod"], f"{each['model']}@{each['version']}", since))
    more = len(pods) - most
    return format_table(fit_names(rows)) + (f"and {more} more: `holdfast status --json` has all\n" if more > 0 else "")


def _list_errors(statuses: Sequence[ModelStatus]) -> str:
    """Return the errors and fatal findings, each with its remedy, an empty line between two."""
    found = []
    for status in statuses:
        ref = f"{status.model}@{status.version}"
        if status.error is not None:
            message = status.error.message
            named = message if ref in message else f"{ref}: {message}"
            found.append(_describe_problem(named, status.error.remedy))
        found += [
            _describe_problem(f"{ref}: may not load: {finding.message}", finding.remedy)
            for finding in status.verdict.findings
            if finding.fatal
        ]
    return "\n".join(found)


def _describe_problem(message: str, remedy: str) -> str:
    return f"{wrap(message)}\n{wrap(f'what to do: {remedy}', '  ')}\n"


def _daemon_line(daemon: DaemonStatus | None) -> str:
    if daemon is None:
        return "daemon  never ran on this root\n"
    age_s = time.time() - parse_timestamp(daemon.updated)
    beat = f"heartbeat {format_duration(age_s)} ago" if age_s >= -1 else f"heartbeat {format_duration(-age_s)} ahead"
    late = ""
    if age_s > _HEARTBEAT_LATE_S:
        late = "  NOT RUNNING? the heartbeat moves every 5s while it lives"
    elif age_s < -_HEARTBEAT_LATE_S:
        late = "  NOT RUNNING? the clock was set back, and no heartbeat came since"
    return f"daemon  {daemon.version} on {daemon.node}, pid {daemon.pid}, {beat}{late}\n"
