"""`holdfast inspect NAME@VERSION`: show a held version's files, digests, source and golden predictions.

Law: reads the public tree only; works while no daemon runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cached.commands.shared.common import command_parser, format_table, get_public_tree, parse_reference, report_errors
from cached.commands.shared.tree import get_snapshot, read_model_status
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.golden import GOLDEN_NAME, Golden
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.loadable.findings import is_loadable
from cached.contract.loadable.verdict import find_problems
from cached.contract.loadable.weights import Read
from cached.contract.manifest import Manifest
from cached.contract.program.options import EXIT_DONE
from cached.contract.program.units import format_count, format_size
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedRecord
from cached.contract.snapshot.verify import load_manifest
from cached.contract.status import Verdict
from cached.contract.trust import Trust

_PINNED = {None: "unknown", True: "yes", False: "no"}
_TRUST = {
    None: "unknown",
    Trust.KNOWN: "known: the source gave a sha256 of every file before its first byte",
    Trust.CHECKED: "checked: every file fits a sum of the source that finds damage, and no forger",
    Trust.VERSIONED: "versioned: the source has versions of its files, and no sums",
    Trust.SIZED: "sized: the source has no more than sizes of its files; a pin of the digest vouches for them",
}


@report_errors("inspect")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast inspect NAME@VERSION [--json]`; return the exit code."""
    parser = command_parser("inspect", "Show what a version on this node is made of, and what it was tested with.")
    a_uri = "a version on this node; with a source's URI in its place, what is there before a fetch"
    parser.add_argument("ref", metavar="NAME@VERSION", type=parse_reference, help=a_uri)
    parser.switch("--json", help="print one JSON object instead of text")
    options = parser.parse_args(argv)
    version = _read_version(get_public_tree(options), options.ref)
    sys.stdout.write(json.dumps(version, indent=2, ensure_ascii=False) + "\n" if options.json else _as_text(version))
    return EXIT_DONE


def _read_version(public: PublicLayout, ref: ModelRef) -> dict[str, Any]:
    """Return the JSON object of a version as its snapshot and its status have it."""
    snapshot = get_snapshot(public, ref)
    manifest = load_manifest(snapshot, None)
    try:
        verified = VerifiedRecord.parse(snapshot.verified.read_bytes()).files
        golden = _read_golden(snapshot, manifest)
        problems = find_problems({file.path: file.size for file in manifest.files}, _reader(snapshot))
    except OSError as error:
        raise Permanent("unreadable", f"{error.filename}: {error.strerror}", "run inspect again") from error
    status = read_model_status(public, ref)
    # By names the daemon judged what the source has, too; by content the files themselves say it, without a daemon.
    told = Verdict() if status is None or status.held != str(manifest.digest) else status.verdict
    findings = (
        *problems,
        *(each for each in told.findings if each not in problems and each.code.startswith("filtered")),
    )
    verified_at = {path: entry.verified_at for path, entry in verified.items()}
    return {
        "model": ref.name,
        "version": ref.version,
        "digest": str(manifest.digest),
        "pinned": None if status is None else status.pinned,
        "source": None if status is None else status.source,
        "stale": None if status is None or status.stale is None else asdict(status.stale),
        "path": str(snapshot.path),
        "bytes": manifest.total_bytes,
        "loadable": is_loadable(findings),
        **Verdict(findings, told.left_out, told.trust).document(),
        "files": [
            {"path": file.path, "size": file.size, "sha256": file.sha256, "verified_at": verified_at.get(file.path)}
            for file in manifest.files
        ],
        "golden": golden,
    }


def _reader(snapshot: SnapshotLayout) -> Read:
    def read(path: str, offset: int, length: int) -> bytes:
        with (snapshot.path / path).open("rb", buffering=0) as opened:
            opened.seek(offset)
            return opened.read(length)

    return read


def _read_golden(snapshot: SnapshotLayout, manifest: Manifest) -> dict[str, Any] | None:
    if all(file.path != GOLDEN_NAME for file in manifest.files):
        return None
    path = snapshot.path / GOLDEN_NAME
    try:
        golden = Golden.parse(path.read_bytes())
    except HoldfastError as error:
        raise Permanent(error.code, f"{path}: {error.message}", error.remedy) from error
    return {
        "model": golden.model,
        "recorded_at": golden.recorded_at,
        "cases": [case.name for case in golden.cases],
        "environment": golden.environment.document(),
    }


def _as_text(version: dict[str, Any]) -> str:
    files, stale = version["files"], version["stale"]
    lines = [
        f"version  {version['model']}@{version['version']}",
        f"digest   {version['digest']}",
        f"pinned   {_PINNED[version['pinned']]}",
        f"source   {version['source'] or 'unknown'}",
        f"trust    {_TRUST[version['trust']]}",
    ]
    if stale is not None:
        now = "" if stale["digest"] is None else f", {stale['digest']} there now"
        lines.append(f"stale    {stale['reason']} since {stale['since']}{now}")
    lines.append(f"loadable {'yes' if version['loadable'] else 'no'}")
    notes = (
        ("" if each["fatal"] else "note: ") + f"{each['message']} ({each['remedy']})" for each in version["findings"]
    )
    lines += [f"         {note}" for note in notes]
    for each in version["left_out"]:
        named = (
            f"{each['kind']}, {format_count(each['files'], 'file')}, {format_size(each['bytes'])}: {each['example']}"
        )
        lines.append(f"left out {named} (`for: all` in the catalog takes it)")
    lines += [
        f"size     {format_size(version['bytes'])} in {format_count(len(files), 'file')}",
        f"path     {version['path']}",
        "",
    ]
    rows = [("FILE", "SIZE", "VERIFIED", "SHA256")]
    rows += [(file["path"], format_size(file["size"]), file["verified_at"] or "-", file["sha256"]) for file in files]
    return "\n".join(lines) + "\n" + format_table(rows) + "\n" + _golden_text(version["golden"])


def _golden_text(golden: dict[str, Any] | None) -> str:
    if golden is None:
        return "golden predictions: none (holdfast golden record makes them)\n"
    environment, cases = golden["environment"], golden["cases"]
    rows = [(name, environment[name]) for name in ("device", "driver", "cuda", "python", "image")]
    rows += sorted(environment["packages"].items())
    known = [(f"  {name}", version) for name, version in rows if version]
    head = f"golden predictions: {len(cases)} recorded {golden['recorded_at']}: {', '.join(cases)}\n"
    return head + ("recorded with:\n" + format_table(known) if known else "recorded with: unknown versions\n")
