"""`holdfast inspect NAME@VERSION`: show a held version's files, digests, source and golden predictions.

Law: reads the public tree only; works while no daemon runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cached.commands.common import command_parser, format_table, get_layout, parse_reference, report_errors
from cached.commands.progress import describe_stale
from cached.commands.tree import check_root, read_model_status, required_snapshot
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.golden import GOLDEN_NAME, Golden
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.manifest import Manifest
from cached.contract.program.options import EXIT_DONE
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus
from cached.contract.verified import VerifiedRecord
from cached.contract.verify import load_manifest


@dataclass(frozen=True, slots=True)
class _Facts:
    """A version as its snapshot has it."""

    ref: ModelRef
    snapshot: SnapshotLayout
    manifest: Manifest
    record: VerifiedRecord
    golden: Golden | None
    status: ModelStatus | None


def main(argv: Sequence[str]) -> int:
    """Run `holdfast inspect NAME@VERSION [--json]`; return the exit code."""
    parser = command_parser("inspect", "Show what a version on this node is made of, and what it was tested with.")
    parser.add_argument("ref", metavar="NAME@VERSION", type=parse_reference)
    parser.switch("--json", help="print one JSON object instead of text")
    options = parser.parse_args(argv)

    def body() -> int:
        layout = get_layout(options)
        check_root(layout)
        facts = _read_facts(layout.public, options.ref)
        sys.stdout.write(_as_json(facts) if options.json else _as_text(facts))
        return EXIT_DONE

    return report_errors("inspect", body)


def _read_facts(public: PublicLayout, ref: ModelRef) -> _Facts:
    snapshot = required_snapshot(public, ref)
    manifest = load_manifest(snapshot, None)
    try:
        record = VerifiedRecord.parse(snapshot.verified.read_bytes())
        golden = _golden(snapshot, manifest)
    except OSError as error:
        raise Permanent("unreadable", f"{error.filename}: {error.strerror}", "run inspect again") from error
    return _Facts(ref, snapshot, manifest, record, golden, read_model_status(public, ref))


def _golden(snapshot: SnapshotLayout, manifest: Manifest) -> Golden | None:
    if all(file.path != GOLDEN_NAME for file in manifest.files):
        return None
    path = snapshot.path / GOLDEN_NAME
    try:
        return Golden.parse(path.read_bytes())
    except HoldfastError as error:
        raise Permanent(error.code, f"{path}: {error.message}", error.remedy) from error


def _as_json(facts: _Facts) -> str:
    document: dict[str, Any] = {
        "model": facts.ref.name,
        "version": facts.ref.version,
        "digest": str(facts.manifest.digest),
        "pinned": None if facts.status is None else facts.status.pinned,
        "source": None if facts.status is None else facts.status.source,
        "stale": None if facts.status is None or facts.status.stale is None else asdict(facts.status.stale),
        "path": str(facts.snapshot.path),
        "bytes": facts.manifest.total_bytes,
        "files": [
            {"path": file.path, "size": file.size, "sha256": file.sha256, "verified_at": _verified_at(facts, file.path)}
            for file in facts.manifest.files
        ],
        "golden": None if facts.golden is None else _golden_document(facts.golden),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _golden_document(golden: Golden) -> dict[str, Any]:
    return {
        "model": golden.model,
        "recorded_at": golden.recorded_at,
        "cases": [case.name for case in golden.cases],
        "environment": golden.environment.document(),
    }


def _as_text(facts: _Facts) -> str:
    manifest, status = facts.manifest, facts.status
    pin = "unknown" if status is None else "yes" if status.pinned else "no"
    lines = [
        f"version  {facts.ref}",
        f"digest   {manifest.digest}",
        f"pinned   {pin}",
        f"source   {'unknown' if status is None else status.source or 'unknown'}",
        *([] if status is None or status.stale is None else [f"stale    {describe_stale(status.stale)}"]),
        f"size     {format_size(manifest.total_bytes)} in {len(manifest.files)} files",
        f"path     {facts.snapshot.path}",
        "",
    ]
    rows = [("FILE", "SIZE", "VERIFIED", "SHA256")]
    rows += [(f.path, format_size(f.size), _verified_at(facts, f.path) or "-", f.sha256) for f in manifest.files]
    return "\n".join(lines) + "\n" + format_table(rows) + "\n" + _golden_text(facts.golden)


def _golden_text(golden: Golden | None) -> str:
    if golden is None:
        return "golden predictions: none (holdfast golden record makes them)\n"
    environment = golden.environment
    rows = [(name, getattr(environment, name)) for name in ("device", "driver", "cuda", "python", "image")]
    rows += sorted(environment.packages.items())
    known = [(f"  {name}", version) for name, version in rows if version]
    names = ", ".join(case.name for case in golden.cases)
    head = f"golden predictions: {len(golden.cases)} recorded {golden.recorded_at}: {names}\n"
    return head + ("recorded with:\n" + format_table(known) if known else "recorded with: unknown versions\n")


def _verified_at(facts: _Facts, path: str) -> str | None:
    entry = facts.record.files.get(path)
    return None if entry is None else entry.verified_at
