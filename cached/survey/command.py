"""`holdfast inspect URI`, or `NAME@VERSION --catalog FILE`: list a version at its source, with what that vouches for of
each file, what is left out, and whether it fits this node.

Law: one listing, no file's bytes; the choice of files and the verdict by names are the daemon's own. No credentials in
the output.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cached.commands.shared.common import format_table, parse_seconds, print_error, print_json
from cached.commands.shared.control_client import ask_node_state
from cached.commands.shared.tree import list_held_versions, read_disk_space
from cached.contract.errors import HoldfastError, Permanent, Transient, describe_read_error
from cached.contract.layout import DEFAULT_ROOT, Layout
from cached.contract.loadable.findings import is_loadable
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED, OptionParser
from cached.contract.program.units import format_count, format_size
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, parse_catalog
from cached.core.demand import unknown_model
from cached.core.filters import Rules, select_files
from cached.core.listing import Listing, RemoteFile, format_path
from cached.core.selection.presets import DEFAULT, NO_INDEXES, PRESETS, parse_preset
from cached.fetch.resolving.selection import VersionFiles, choose_version
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings

_TIMEOUT_S = "120"
_SHOWN = 3
_LOCATION = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:.")


def main(argv: Sequence[str]) -> int:
    """Run `holdfast inspect URI`; return the exit code: 0 done, 1 failed, 2 usage."""
    parser = OptionParser(prog="holdfast inspect", description="Show what a source has, before anything is fetched.")
    what = "the version's location, as in the catalog, or a version of --catalog, with that entry's own filters"
    parser.add_argument("target", metavar="URI|NAME@VERSION", help=what)
    parser.option("--catalog", type=Path, metavar="FILE", help="the catalog that has NAME@VERSION")
    place = "the daemon's root, where it would have to fit"
    parser.option("--root", type=Path, default=str(DEFAULT_ROOT), metavar="DIR", help=place)
    parser.option("--include", type=_patterns, action="extend", metavar="GLOB[,GLOB]", help="only the files that match")
    parser.option("--exclude", type=_patterns, action="extend", metavar="GLOB[,GLOB]", help="not the files that match")
    parser.option(
        "--for", type=parse_preset, dest="preset", metavar="PRESET", help=f"the weights of one engine: {PRESETS}"
    )
    wait = "seconds to wait for the listing"
    parser.option("--timeout", type=parse_seconds, default=_TIMEOUT_S, metavar="S", help=wait)
    parser.switch("--json", help="print one JSON object instead of text")
    options = parser.parse_args(argv)
    try:
        uri, rules = _find_place(options)
        with contextlib.closing(HttpClient(HttpSettings())) as client:
            found = asyncio.run(_survey(uri, client, rules, options.timeout))
    except HoldfastError as error:
        print_error("inspect", error.message, error.remedy)
        return EXIT_FAILED
    found |= _find_fit(Layout(options.root.absolute()), found)
    if options.json:
        print_json(found)
    else:
        sys.stdout.write(_as_text(found))
    return EXIT_DONE


def _find_place(options: argparse.Namespace) -> tuple[str, Rules]:
    """Return where to look, and what of it belongs to the version: the options, or for a version its entry."""
    rules = Rules(tuple(options.include or ()), tuple(options.exclude or ()), options.preset or DEFAULT)
    if is_location(options.target):
        return options.target, rules
    ref = ModelRef.parse(options.target)
    if options.catalog is None:
        raise Permanent("no_catalog", f"{ref}: no catalog is named", "name it with --catalog or HOLDFAST_CATALOG")
    try:
        catalog = parse_catalog(options.catalog.read_text(encoding="utf-8"), EMPTY_CATALOG).catalog
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent(
            "no_catalog", describe_read_error(options.catalog, error), "name another with --catalog"
        ) from error
    entry = catalog.find(ref)
    if entry is None:
        raise unknown_model(catalog, ref)
    own = Rules(rules.include or entry.include, rules.exclude or entry.exclude, options.preset or entry.preset)
    return entry.source, own


def is_location(text: str) -> bool:
    """Return whether `text` is a URI or a path, and no reference."""
    return text.startswith("/") or _LOCATION.match(text) is not None


def _patterns(text: str) -> list[str]:
    return [pattern for pattern in text.split(",") if pattern]


async def _survey(uri: str, client: HttpClient, rules: Rules, timeout_s: float) -> dict[str, Any]:
    source = open_source(uri, client)
    try:
        async with asyncio.timeout(timeout_s):
            listing = await source.resolve()
    except TimeoutError as error:
        raise Transient(
            "stalled", f"{source.display}: not listed within {timeout_s:g} s", "look at the server, or raise --timeout"
        ) from error
    finally:
        await source.aclose()
    return _describe(source, listing, choose_version(listing, source.display, rules, NO_INDEXES), rules)


def _describe(source: Source, listing: Listing, version: VersionFiles, rules: Rules) -> dict[str, Any]:
    sizes = [file.size for file in version.files]
    return {
        "source": source.display,
        "kind": source.kind,
        "revision": listing.revision,
        "published": listing.manifest is not None,
        "digest": _promised_digest(version.files),
        "bytes": sum(size for size in sizes if size is not None) if None not in sizes else None,
        "loadable": is_loadable(version.verdict.findings),
        **version.verdict.document(),
        "filtered": _describe_filtered(source, listing, rules),
        "files": [_describe_file(file) for file in version.files],
    }


def _describe_filtered(source: Source, listing: Listing, rules: Rules) -> dict[str, Any]:
    """Return how much of the source the globs do not select, with some of the paths."""
    dropped = select_files(listing, source.display, rules, NO_INDEXES).dropped
    sizes = {file.path: file.size for file in listing.files}
    known = [size for path in dropped if (size := sizes.get(path)) is not None]
    return {"files": len(dropped), "bytes": sum(known), "examples": [format_path(path) for path in dropped[:_SHOWN]]}


def _find_fit(layout: Layout, found: dict[str, Any]) -> dict[str, Any]:
    """Return whether the version fits the node as it is: the bytes that are not here yet, as far as sums tell, and
    those that are free, of the quota where the daemon answers. None: not known."""
    try:
        held = {sha256 for version in list_held_versions(layout.public) for sha256 in version.blobs}
    except PermissionError:  # of another user: what is there cannot be told
        return {"needed_bytes": None, "free_bytes": None, "fits": None}
    new = {file["sha256"] or file["path"]: file["size"] for file in found["files"] if file["sha256"] not in held}
    needed = None if None in new.values() else sum(new.values())
    free = _find_free_bytes(layout)
    fits = None if needed is None or free is None else needed <= free
    return {"needed_bytes": needed, "free_bytes": free, "fits": fits}


def _find_free_bytes(layout: Layout) -> int | None:
    node = ask_node_state(layout)
    if node is not None and node.disk is not None:
        return int(node.disk["free"])
    try:
        return read_disk_space(layout.public)["free"]
    except OSError:  # no root here: a laptop asks
        return None


def _promised_digest(files: Sequence[RemoteFile]) -> str | None:
    """Return the manifest digest where the source promises every file's sha256 and size, else None."""
    entries = [FileEntry(f.path, f.sha256, f.size) for f in files if f.sha256 is not None and f.size is not None]
    return str(Manifest.build(entries).digest) if len(entries) == len(files) else None


def _describe_file(file: RemoteFile) -> dict[str, Any]:
    sums = {each.algorithm.value: each.hex for each in file.sums}
    sums |= {} if file.git_oid is None else {"git": file.git_oid}
    return {"path": file.path, "size": file.size, "trust": file.trust.value, "sha256": file.sha256, "sums": sums}


def _as_text(found: dict[str, Any]) -> str:
    size = "unknown" if found["bytes"] is None else format_size(found["bytes"])
    lines = [
        f"source   {found['source']}",
        f"digest   {found['digest'] or 'not known before it is fetched'}",
        f"trust    {found['trust']}",
        f"manifest {'yes' if found['published'] else 'no'}",
    ]
    lines += [] if found["revision"] is None else [f"revision {found['revision']}"]
    lines.append(f"loadable {'yes, by its names' if found['loadable'] else 'no'}")
    lines += [
        f"         {'' if each['fatal'] else 'note: '}{each['message']} ({each['remedy']})"
        for each in found["findings"]
    ]
    lines += [
        f"left out {each['kind']}, {format_count(each['files'], 'file')}, {format_size(each['bytes'])}:"
        f" {each['example']}"
        for each in found["left_out"]
    ]
    filtered = found["filtered"]
    if filtered["files"]:
        named = ", ".join(filtered["examples"])
        count = f"{format_count(filtered['files'], 'file')}, {format_size(filtered['bytes'])}"
        lines.append(f"filtered by `include` and `exclude`, {count}: {named}")
    if found["fits"] is not None:
        free = f"{format_size(found['free_bytes'])} are free here without an eviction"
        needed = f"{format_size(found['needed_bytes'])} are to come"
        lines.append(f"fits     {'yes' if found['fits'] else 'not now'}: {needed}, {free}")
    lines += [f"size     {size} in {format_count(len(found['files']), 'file')}", ""]
    rows = [("FILE", "SIZE", "TRUST", "SUM")]
    for file in found["files"]:
        shown = "-" if file["size"] is None else format_size(file["size"])
        rows.append((format_path(file["path"]), shown, file["trust"], _shown_sum(file)))
    return "\n".join(lines) + "\n" + format_table(rows)


def _shown_sum(file: dict[str, Any]) -> str:
    if file["sha256"] is not None:
        return f"sha256:{file['sha256']}"
    return ", ".join(f"{name}:{value}" for name, value in file["sums"].items()) or "-"
