"""`holdfast ls`: list the held versions, and those with a status only.

Law: reads the public tree only; works while no daemon runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cached.commands.common import command_parser, format_table, get_layout, report_errors
from cached.commands.tree import HeldVersion, check_root, held_versions, model_statuses
from cached.contract.layout import PublicLayout
from cached.contract.program.options import EXIT_DONE
from cached.contract.program.units import format_size
from cached.contract.status import ModelStatus

_Held = list[tuple[HeldVersion, ModelStatus | None]]  # with its status, if any


def main(argv: Sequence[str]) -> int:
    """Run `holdfast ls [--json]`; return the exit code."""
    parser = command_parser("ls", "List the versions on this node, and those on their way.")
    parser.switch("--json", help="print a JSON list instead of a table")
    options = parser.parse_args(argv)

    def body() -> int:
        layout = get_layout(options)
        check_root(layout)
        held, others = _versions(layout.public)
        sys.stdout.write(_as_json(held, others) if options.json else _as_table(held, others))
        return EXIT_DONE

    return report_errors("ls", body)


def _versions(public: PublicLayout) -> tuple[_Held, list[ModelStatus]]:
    """Return the held versions, and the statuses of the others."""
    statuses = {(status.model, status.version): status for status in model_statuses(public)}
    held: _Held = []
    for version in held_versions(public):
        held.append((version, statuses.pop((version.ref.name, version.ref.version), None)))
    return held, list(statuses.values())


def _as_json(held: _Held, others: list[ModelStatus]) -> str:
    documents = [
        version.document(None if status is None else status.pinned) | {"stale": _stale(status)}
        for version, status in held
    ]
    documents += [
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
        }
        for status in others
    ]
    return json.dumps(documents, indent=2, ensure_ascii=False) + "\n"


def _as_table(held: _Held, others: list[ModelStatus]) -> str:
    rows = [("VERSION", "STATE", "SIZE", "FILES", "DIGEST")]
    rows += [
        (str(v.ref), _state(status), format_size(v.bytes), str(v.files), _short(str(v.digest))) for v, status in held
    ]
    rows += [
        (
            f"{status.model}@{status.version}",
            status.state.value,
            "-" if status.bytes_total is None else format_size(status.bytes_total),
            "-",
            "-" if status.digest is None else _short(status.digest),
        )
        for status in others
    ]
    if len(rows) == 1:
        return "no versions on this node yet: annotate a pod, or `holdfast pull NAME@VERSION`\n"
    return format_table(rows)


def _state(status: ModelStatus | None) -> str:
    """A held version is ready, whatever fetch runs for its name; `stale` as its status says."""
    return "ready" if status is None or status.stale is None else "ready, stale"


def _stale(status: ModelStatus | None) -> dict[str, Any] | None:
    return None if status is None or status.stale is None else asdict(status.stale)


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]
