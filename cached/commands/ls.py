"""`holdfast ls`: list the held versions, and those with a status only.

Law: reads the public tree only; works while no daemon runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cached.commands.common import command_parser, format_table, get_public_tree, report_errors
from cached.commands.tree import HeldVersion, list_held_versions, list_model_statuses
from cached.contract.layout import PublicLayout
from cached.contract.program.options import EXIT_DONE
from cached.contract.program.units import format_size
from cached.contract.status import ModelStatus, State


@report_errors("ls")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast ls [--json]`; return the exit code."""
    parser = command_parser("ls", "List the versions on this node, and those on their way.")
    parser.switch("--json", help="print a JSON list instead of a table")
    options = parser.parse_args(argv)
    versions = _list_versions(get_public_tree(options))
    sys.stdout.write(json.dumps(versions, indent=2, ensure_ascii=False) + "\n" if options.json else _as_table(versions))
    return EXIT_DONE


def _list_versions(public: PublicLayout) -> list[dict[str, Any]]:
    """Return the JSON objects of the held versions and of the others that have a status."""
    statuses = {(status.model, status.version): status for status in list_model_statuses(public)}
    versions: list[dict[str, Any]] = []
    for held in list_held_versions(public):
        status = statuses.pop((held.ref.name, held.ref.version), None)
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
        }
        for status in statuses.values()
    ]
    return versions


def _held_trust(held: HeldVersion, status: ModelStatus | None) -> str | None:
    """Return the trust of the held content, None if the status is of another or of none."""
    return None if status is None or status.held != str(held.digest) else status.verdict.trust


def _listed_state(held: HeldVersion, status: ModelStatus | None) -> State:
    """Return the state of a version with a symlink; its status may be of an earlier moment, or an older daemon."""
    is_checked = status is not None and status.is_checked_again and status.held == str(held.digest)
    return State.VERIFYING if is_checked else State.READY


def _as_table(versions: list[dict[str, Any]]) -> str:
    if not versions:
        return "no versions on this node yet: annotate a pod, or `holdfast pull NAME@VERSION`\n"
    rows = [("VERSION", "STATE", "SIZE", "FILES", "DIGEST")]
    for version in versions:
        ref, state = f"{version['model']}@{version['version']}", version["state"]
        size = "-" if version["bytes"] is None else format_size(version["bytes"])
        files = "-" if version["files"] is None else str(version["files"])
        digest = "-" if version["digest"] is None else version["digest"][: len("sha256:") + 12]
        rows.append((ref, f"{state}, stale" if version["stale"] else state, size, files, digest))
    return format_table(rows)
