"""`holdfast inspect URI`: list a version at its source, with what the source vouches for of each file.

Law: one listing, no file's bytes; the choice of files and the verdict by names are the daemon's own. No credentials in
the output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from cached.commands.common import format_table, parse_seconds, print_error
from cached.contract.errors import HoldfastError, Transient
from cached.contract.loadable.findings import is_loadable
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED, OptionParser
from cached.contract.program.units import format_size
from cached.core.filters import Rules
from cached.core.listing import Listing, RemoteFile, format_path
from cached.core.selection.presets import NO_INDEXES
from cached.fetch.selection import VersionFiles, choose_version
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings

_TIMEOUT_S = "120"


def main(argv: Sequence[str]) -> int:
    """Run `holdfast inspect URI`; return the exit code: 0 done, 1 failed, 2 usage."""
    parser = OptionParser(prog="holdfast inspect", description="Show what a source has, before anything is fetched.")
    parser.add_argument("uri", metavar="URI", help="the version's location, as in the catalog")
    parser.option("--include", type=_patterns, action="extend", metavar="GLOB[,GLOB]", help="only the files that match")
    parser.option("--exclude", type=_patterns, action="extend", metavar="GLOB[,GLOB]", help="not the files that match")
    wait = "seconds to wait for the listing"
    parser.option("--timeout", type=parse_seconds, default=_TIMEOUT_S, metavar="S", help=wait)
    parser.switch("--json", help="print one JSON object instead of text")
    options = parser.parse_args(argv)
    rules = Rules(tuple(options.include or ()), tuple(options.exclude or ()))
    try:
        with contextlib.closing(HttpClient(HttpSettings())) as client:
            found = asyncio.run(_survey(options.uri, client, rules, options.timeout))
    except HoldfastError as error:
        print_error("inspect", error.message, error.remedy)
        return EXIT_FAILED
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n" if options.json else _as_text(found))
    return EXIT_DONE


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
    return _describe(source, listing, choose_version(listing, source.display, rules, NO_INDEXES))


def _describe(source: Source, listing: Listing, version: VersionFiles) -> dict[str, Any]:
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
        "files": [_describe_file(file) for file in version.files],
    }


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
        f"left out {each['kind']}, {each['files']} files, {format_size(each['bytes'])}: {each['example']}"
        for each in found["left_out"]
    ]
    lines += [f"size     {size} in {len(found['files'])} files", ""]
    rows = [("FILE", "SIZE", "TRUST", "SUM")]
    for file in found["files"]:
        shown = "-" if file["size"] is None else format_size(file["size"])
        rows.append((format_path(file["path"]), shown, file["trust"], _shown_sum(file)))
    return "\n".join(lines) + "\n" + format_table(rows)


def _shown_sum(file: dict[str, Any]) -> str:
    if file["sha256"] is not None:
        return f"sha256:{file['sha256']}"
    return ", ".join(f"{name}:{value}" for name, value in file["sums"].items()) or "-"
