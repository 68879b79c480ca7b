"""`holdfast publish DIR URI`: hash a folder and upload it as one version.

Law: standard output has only the manifest digest as its last line (after one line of JSON with `--json`); messages for
people go to standard error. The folder is only read. `--force` over another version removes its `holdfast.json` first:
the old manifest must not describe new bytes. `--check` only reads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.loadable.findings import Finding, is_loadable, not_loadable
from cached.contract.manifest import MANIFEST_NAME
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, OptionParser, whole_number
from cached.contract.program.progress import ByteProgress
from cached.contract.program.units import format_count, format_size
from cached.core.filters import Rules
from cached.core.selection.presets import DEFAULT, PRESETS, parse_preset
from cached.publish.content import FolderContent, hash_all, list_folder
from cached.publish.destination import Destination
from cached.publish.folder import FolderDestination
from cached.publish.plan import (
    CHECKED,
    FORCED,
    PLAIN,
    PublishPlan,
    carry_out_plan,
    clear_mark,
    make_plan,
    refuse_replacing,
)
from cached.sources.local.source import local_path
from cached.sources.registry import is_scheme

_READ_ONLY = {"http": "a web server", "https": "a web server", "hf": "the Hugging Face Hub"}
_WRITABLE = frozenset({"s3", "gs", "az", "oci", "file"})
_SHOWN = 20
_USE = (
    "s3://bucket/model/version/, gs://bucket/…, az://account/container/…, oci://registry/repository:tag, "
    "file:///folder or a path"
)


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code: 0 done, 1 failed, 2 usage."""
    options = _parse(argv)
    try:
        destination = _open_destination(options.uri, options.threads)
    except Permanent as error:
        _say(str(error))
        return EXIT_USAGE
    try:
        content = _read_folder(options, destination)
        if options.check:
            return asyncio.run(_check(content, destination, options))
        done = asyncio.run(_publish(content, destination, options))
    except HoldfastError as error:
        _say("\n".join((error.message, *getattr(error, "__notes__", ()), *([error.remedy] if error.remedy else ()))))
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say(
            "interrupted"
            if options.check
            else "interrupted, no manifest was written; publish again to go on where it stopped"
        )
        return EXIT_FAILED
    _report(done, destination.display, options)
    return EXIT_DONE


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OptionParser(prog="holdfast publish", description="Hash a folder and upload it as one version.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder with the model's files")
    parser.add_argument("uri", metavar="URI", help=f"the version's own folder: {_USE}")
    parser.switch(
        "--force",
        help="replace another version that is published there, mend damaged files of this one, and publish what is not "
        "loadable",
    )
    parser.switch("--check", help="only compare the contents of what is published there with the folder")
    parser.option("--golden", type=Path, metavar="FILE", help="publish this file with it as its golden predictions")
    parser.option(
        "--include",
        type=_patterns,
        action="extend",
        metavar="GLOB[,GLOB]",
        help="publish only the files that match, by the catalog's rules; may be given several times",
    )
    parser.option(
        "--exclude", type=_patterns, action="extend", metavar="GLOB[,GLOB]", help="leave out the files that match"
    )
    engine = f"publish the weights of one engine: {PRESETS}"
    parser.option("--for", type=parse_preset, dest="preset", metavar="PRESET", help=engine)
    parser.switch("--keep-all", help="leave nothing out, not even version control, caches and editors' files")
    parser.switch("--json", help="print a line of JSON about the publish before the digest")
    parser.option(
        "--threads",
        type=whole_number(1, 256),
        default=str(min(16, max(4, len(os.sched_getaffinity(0))))),
        otherwise="the number of CPUs, from 4 to 16",
        metavar="N",
        help="threads that hash, and uploads at once",
    )
    options = parser.parse_args(argv)
    if options.check and options.force:
        parser.error("--check changes nothing, --force does: give one of them")
    if options.keep_all and (options.include or options.exclude or options.preset):
        parser.error("--keep-all keeps every file: give it without --include, --exclude and --for")
    return options


def _open_destination(uri: str, requests: int) -> Destination:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?", uri)
    if match is not None and match[2] is None and not is_scheme(match[1]):
        match = None  # a colon in the name of a folder
    scheme = match[1].lower() if match else "file"
    if match is not None and match[2] is None and scheme in _WRITABLE:
        raise Permanent("bad_source", f"expected {scheme}://…, found {scheme}: without `//`", f"publish to {_USE}")
    if scheme == "s3":
        from cached.publish.s3.destination import S3Destination

        return S3Destination(uri, requests)
    if scheme == "gs":
        from cached.publish.gcs.destination import GcsDestination

        return GcsDestination(uri, requests)
    if scheme == "az":
        from cached.publish.azure.destination import AzureDestination

        return AzureDestination(uri, requests)
    if scheme == "oci":
        from cached.publish.oci.destination import OciDestination

        return OciDestination(uri, requests)
    if scheme in _READ_ONLY:
        raise Permanent("read_only", f"{_READ_ONLY[scheme]} ({scheme}://) can only be read from", f"publish to {_USE}")
    if scheme != "file":
        known = f"{scheme}: can only be read from" if is_scheme(scheme) else f"cannot publish to {scheme}://"
        raise Permanent("read_only" if is_scheme(scheme) else "unknown_scheme", known, f"publish to {_USE}")
    return FolderDestination(local_path(uri) if match else Path(os.path.abspath(uri)))


def _read_folder(options: argparse.Namespace, destination: Destination) -> FolderContent:
    folder: Path = options.folder
    if isinstance(destination, FolderDestination):
        destination.refuse_inside(folder)
    rules = Rules(options.include or (), options.exclude or (), options.preset or DEFAULT)
    listing = list_folder(folder, None if options.keep_all else rules, options.golden)
    for each in listing.left_out[:_SHOWN]:
        _say(f"left out: {folder / each.what}, {each.reason}")
    if len(listing.left_out) > _SHOWN:
        _say(f"left out: {len(listing.left_out) - _SHOWN} more like these")
    _judge(folder, listing.findings, options)
    files = listing.files
    total_bytes = sum(file.size for file in files)
    with ByteProgress(sys.stderr, f"hashing {format_count(len(files), 'file')}", total_bytes) as progress:
        content = hash_all(files, options.threads, progress.add)
    if content.lacks_chains and not options.check:
        _say("note: no chaining values of sha256 from this machine's libcrypto: nodes hash twice what they share first")
    return content


def _judge(folder: Path, findings: Sequence[Finding], options: argparse.Namespace) -> None:
    """Say what is wrong with the version; raise `Permanent` if no engine can load it, unless that is overridden."""
    if not is_loadable(findings) and not (options.force or options.check):
        error = not_loadable(str(folder), findings)
        raise Permanent(
            error.code, error.message, f"{error.remedy}; then publish again, or publish it as it is: --force"
        )
    for finding in findings[:_SHOWN]:
        _say(f"{'not loadable' if finding.fatal else 'note'}: {finding}")


def _patterns(text: str) -> list[str]:
    patterns = [pattern for pattern in text.split(",") if pattern]
    for pattern in patterns:
        if pattern.startswith(("/", "./", "../")):
            raise ValueError(f"{pattern!r} matches nothing; paths look like `folder/file.json`")
    if not patterns:
        raise ValueError("expected a glob, found nothing")
    return patterns


async def _publish(content: FolderContent, destination: Destination, options: argparse.Namespace) -> PublishPlan:
    async def decide() -> PublishPlan:
        decided = await make_plan(content, destination, options.threads, FORCED if options.force else PLAIN)
        if not options.force:
            refuse_replacing(decided, destination.display)
        if decided.replaced is not None:
            _say(f"replacing {decided.replaced} at {destination.display}")
        return decided

    _end_on_sigterm()
    async with contextlib.aclosing(destination):
        decided = await decide()
        if decided.is_done:
            await clear_mark(decided, destination, options.threads, _say)
            return decided
        label = f"uploading {format_count(len(decided.uploads), 'file')}"
        with ByteProgress(sys.stderr, label, decided.upload_bytes) as progress:
            return await carry_out_plan(decided, decide, destination, options.threads, progress.add, _say)


async def _check(content: FolderContent, destination: Destination, options: argparse.Namespace) -> int:
    """Compare the published version with the folder, by sha256; return the exit code."""
    _end_on_sigterm()
    async with contextlib.aclosing(destination):
        found = await make_plan(content, destination, options.threads, CHECKED)
    display, digest = destination.display, content.manifest.digest
    if found.replaced is not None:
        _say(f"{display}: expected the version {digest}, found {found.replaced}")
    elif not found.sealed:
        _say(f"{display}: expected the version {digest}, found no {MANIFEST_NAME}")
    differing = sorted((upload.entry.path, how) for upload, how in found.uploads.items())
    for path, how in differing:
        _say(f"{path}: {how}")
    if not found.is_published:
        _say(
            f"{format_count(len(differing), 'file')} of {len(content.uploads)} differ; "
            "publish with --force to mend what is there"
        )
    else:
        _say(f"as it should be, contents compared: {_describe_version(found, display)}")
    facts = {"right": found.is_published, "differing": [{"path": path, "difference": how} for path, how in differing]}
    _write_result(found, display, facts if options.json else None)
    return EXIT_DONE if found.is_published else EXIT_FAILED


def _end_on_sigterm() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _report(done: PublishPlan, display: str, options: argparse.Namespace) -> None:
    whole = _describe_version(done, display)
    added = "; added the chaining values of its large files" if done.writes_chains else ""
    if not done.is_published:
        _say(
            f"published: {whole}; uploaded {format_count(len(done.uploads), 'file')}, {format_size(done.upload_bytes)}"
        )
    elif options.force:
        _say(f"already published, contents compared: {whole}{added}")
    else:
        _say(f"already published: {whole}; only names and sizes were compared, --check compares contents{added}")
    facts: dict[str, object] = {"uploaded_files": len(done.uploads), "uploaded_bytes": done.upload_bytes}
    _write_result(done, display, facts if options.json else None)


def _describe_version(plan: PublishPlan, display: str) -> str:
    manifest = plan.content.manifest
    return f"{format_count(len(manifest.files), 'file')}, {format_size(manifest.total_bytes)}, at {display}"


def _write_result(plan: PublishPlan, display: str, facts: dict[str, object] | None) -> None:
    """Write the output for programs: a line of JSON with `--json`, and the digest."""
    manifest = plan.content.manifest
    if facts is not None:
        common = {"digest": str(manifest.digest), "uri": display, "files": len(manifest.files)}
        sys.stdout.write(f"{json.dumps({**common, 'bytes': manifest.total_bytes, **facts})}\n")
    sys.stdout.write(f"{manifest.digest}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"holdfast publish: {text}\n")
