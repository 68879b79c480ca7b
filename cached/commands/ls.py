"""`holdfast ls`: list the held versions, and those with a status only.

Law: reads the public tree; works while no daemon runs, and asks one that runs only for what its tables alone have: last
uses, leases and pins.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cached.commands.shared.common import (
    command_parser,
    fit_names,
    format_table,
    get_layout,
    get_public_tree,
    print_json,
    report_errors,
)
from cached.commands.shared.control_client import ControlClient
from cached.commands.shared.style import paint_state
from cached.commands.shared.tree import (
    HeldVersion,
    list_held_versions,
    list_leased,
    list_model_statuses,
    read_last_use,
)
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.held_bytes import HeldBytes, split_held
from cached.contract.layout import Layout, PublicLayout
from cached.contract.program.options import EXIT_DONE
from cached.contract.program.units import format_duration, format_size
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State, parse_timestamp, timestamp

_ANSWER_S = 2.0
_COLUMNS = ("VERSION", "STATE", "SIZE", "FILES", "DIGEST", "EXCLUSIVE", "AGE", "USED", "HELD BY")
_PLAIN = 5  # the first ones: all that there are where no terminal is, for who parses them
_SPARE = ("DIGEST", "FILES", "EXCLUSIVE", "AGE", "HELD BY", "USED")  # left out first where a terminal is narrow
_LONG_NAME = 40  # characters, of which a longer one is cut before columns are left out
_DAY_S = 86400


@report_errors("ls")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast ls [--json]`; return the exit code."""
    parser = command_parser("ls", "List the versions on this node, and those on their way.")
    parser.switch("--wide", help="all columns also where the output is no terminal, or a narrow one")
    parser.switch("--json", help="print a JSON list instead of a table")
    options = parser.parse_args(argv)
    public = get_public_tree(options)
    versions = _list_versions(public, _ask_daemon(get_layout(options)))
    if options.json:
        print_json(versions)
    else:
        sys.stdout.write(_as_table(versions, wide=options.wide))
    return EXIT_DONE


def _ask_daemon(layout: Layout) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the daemon's own words on each version; nothing where it does not answer this user at once."""
    try:
        models = ControlClient(layout, _ANSWER_S).status()["models"]
    except HoldfastError:
        return {}
    return {(each["model"], each["version"]): each for each in models}


def _list_versions(public: PublicLayout, told: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the JSON objects of the held versions and of the others that have a status. `told`: by the daemon."""
    statuses = {(status.model, status.version): status for status in list_model_statuses(public)}
    versions: list[dict[str, Any]] = []
    held_versions = list_held_versions(public)
    bytes_of = _split(held_versions)
    leased = None if told else list_leased(public)
    for held in held_versions:
        key = (held.ref.name, held.ref.version)
        status = statuses.pop(key, None)
        versions.append(
            {
                "model": held.ref.name,
                "version": held.ref.version,
                "state": _listed_state(held, status).value,
                "digest": str(held.digest),
                "pinned": None if status is None else status.pinned,
                "bytes": held.size_bytes,
                "files": held.files,
                "path": str(held.path),
                "stale": None if status is None or status.stale is None else asdict(status.stale),
                "trust": _held_trust(held, status),
                "exclusive_bytes": bytes_of[held.ref].exclusive,
                "shared_bytes": bytes_of[held.ref].shared,
                "since": _find_since(held),
                **_find_use(public, held, told.get(key), leased),
            }
        )
    versions += [
        {
            "model": status.model,
            "version": status.version,
            "state": status.state.value,
            "digest": status.digest,
            "pinned": status.pinned,
            "bytes": status.bytes_total,
            "files": None,
            "path": None,
            "stale": None,
            "trust": status.verdict.trust,
            "exclusive_bytes": None,
            "shared_bytes": None,
            "since": None,
            "last_used": None,
            "leased": False,
            "kept_by": told.get((status.model, status.version), {}).get("kept_by"),
        }
        for status in statuses.values()
    ]
    return versions


def _split(versions: Sequence[HeldVersion]) -> dict[ModelRef, HeldBytes]:
    """Return the bytes of each version that no other one shares, and the others."""
    blobs = {held.digest: held.blobs for held in versions}
    names: dict[Digest, list[ModelRef]] = {digest: [] for digest in blobs}
    for held in versions:
        names[held.digest].append(held.ref)
    links = Counter(sha256 for each in blobs.values() for sha256 in each)
    return split_held(names, blobs, {sha256 for sha256, count in links.items() if count > 1})


def _find_since(held: HeldVersion) -> str | None:
    """Return when the name came to lead to this content."""
    try:
        return timestamp(os.lstat(held.path).st_mtime)
    except OSError:
        return None


def _find_use(
    public: PublicLayout, held: HeldVersion, told: dict[str, Any] | None, leased: frozenset[str] | None
) -> dict[str, Any]:
    """Return the last use, the lease and the pins: the daemon's words, else what the tree and the kernel say."""
    if told is not None:
        return {name: told.get(name) for name in ("last_used", "leased", "kept_by")}
    try:
        used: str | None = timestamp(read_last_use(public, held.ref, held.digest))
    except OSError:
        used = None
    return {"last_used": used, "leased": None if leased is None else held.digest.hex in leased, "kept_by": None}


def _held_trust(held: HeldVersion, status: ModelStatus | None) -> str | None:
    """Return the trust of the held content, None if the status is of another or of none."""
    return None if status is None or status.held != str(held.digest) else status.verdict.trust


def _listed_state(held: HeldVersion, status: ModelStatus | None) -> State:
    """Return the state of a version with a symlink; its status may be of an earlier moment, or an older daemon."""
    is_checked = status is not None and status.is_checked_again and status.held == str(held.digest)
    return State.VERIFYING if is_checked else State.READY


def _as_table(versions: list[dict[str, Any]], *, wide: bool) -> str:
    if not versions:
        return "no versions on this node yet: annotate a pod, or `holdfast pull NAME@VERSION`\n"
    rows = [_COLUMNS, *map(_as_row, versions)]
    if sys.stdout.isatty() and not wide:
        rows = fit_names(_fit(rows))
    elif not wide:
        rows = [row[:_PLAIN] for row in rows]
    head, *lines = format_table(rows).splitlines()
    names, states = [row[0] for row in rows[1:]], [version["state"] for version in versions]
    return "".join(f"{line}\n" for line in (head, *map(_paint, lines, names, states)))


def _fit(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the columns that fit the terminal beside names that are not too long."""
    cut = [(row[0][:_LONG_NAME], *row[1:]) for row in rows]
    width, left_out = shutil.get_terminal_size().columns, set[str]()
    for column in _SPARE:
        if max(map(len, format_table(_without(cut, left_out)).splitlines())) < width:
            break
        left_out.add(column)
    return _without(rows, left_out)


def _as_row(version: dict[str, Any]) -> tuple[str, ...]:
    state = version["state"]
    return (
        f"{version['model']}@{version['version']}",
        f"{state}, stale" if version["stale"] else state,
        _size(version["bytes"]),
        "-" if version["files"] is None else str(version["files"]),
        "-" if version["digest"] is None else version["digest"][: len("sha256:") + 12],
        _size(version["exclusive_bytes"]),
        _ago(version["since"]),
        "now" if version["leased"] else _ago(version["last_used"]),
        ", ".join((["lease"] if version["leased"] else []) + (version["kept_by"] or [])) or "-",
    )


def _without(rows: Sequence[tuple[str, ...]], left_out: set[str]) -> list[tuple[str, ...]]:
    kept = [index for index, name in enumerate(rows[0]) if name not in left_out]
    return [tuple(row[index] for index in kept) for row in rows]


def _paint(line: str, name: str, state: str) -> str:
    """Return a row with its state in colour: the first word of it after the name."""
    return name + line[len(name) :].replace(state, paint_state(state, state), 1)


def _size(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _ago(moment: str | None) -> str:
    if moment is None:
        return "-"
    seconds = max(0.0, time.time() - parse_timestamp(moment))
    return format_duration(seconds) if seconds < 2 * _DAY_S else f"{seconds / _DAY_S:.0f}d"
