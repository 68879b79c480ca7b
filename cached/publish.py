"""`holdfast publish DIR URI`: hash a folder and upload it as one version.

Law: standard output carries the manifest digest as its last line (after one line of JSON with `--json`), and nothing
else; everything for people goes to standard error. The folder is only read. With `--force` over another version its
`holdfast.json` is removed first: until the new one is there, the old must not describe new bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.options import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, OptionParser
from cached.contract.units import format_size
from cached.sources.local import local_path
from cached.uploads.base import Destination
from cached.uploads.content import Content, hash_all, look_through
from cached.uploads.folder import FolderDestination
from cached.uploads.golden import with_golden
from cached.uploads.progress import ProgressLine
from cached.uploads.publishing import Plan, plan, refuse_replacing, run

_READ_ONLY = {"http": "a web server", "https": "a web server", "hf": "the Hugging Face Hub"}
_USE = "s3://bucket/model/version/, file:///folder or a path"


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 usage."""
    options = _parse(argv)
    try:
        destination = _open(options.uri, options.threads)
    except Permanent as error:
        _say(str(error))
        return EXIT_USAGE
    try:
        content = _read(options, destination)
        done = asyncio.run(_publish(content, destination, options))
    except HoldfastError as error:
        _say("\n".join((error.message, *getattr(error, "__notes__", ()), *([error.remedy] if error.remedy else ()))))
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("interrupted, no manifest was written; publish again to go on where this stopped")
        return EXIT_FAILED
    _report(done, destination.display, as_json=options.json)
    return EXIT_DONE


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OptionParser(prog="holdfast publish", description="Hash a folder and upload it as one version.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder with the model's files")
    parser.add_argument("uri", metavar="URI", help=f"the version's own folder: {_USE}")
    parser.switch("--force", help="replace another version that is published there")
    parser.option("--golden", type=Path, help="publish this file with it as its golden predictions")
    parser.switch("--json", help="print a line of JSON about the publish before the digest")
    parser.option("--threads", type=_count, default=_default_threads(), help="threads that hash, and uploads at once")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 256:
        raise ValueError(f"expected a number from 1 to 256, found {text!r}")
    return int(text)


def _default_threads() -> int:
    return min(16, max(4, len(os.sched_getaffinity(0))))


def _open(uri: str, requests: int) -> Destination:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    scheme = match[1].lower() if match else "file"
    if scheme == "s3":
        from cached.uploads.s3 import S3Destination

        return S3Destination(uri, requests)
    if scheme in _READ_ONLY:
        raise Permanent("read_only", f"{_READ_ONLY[scheme]} ({scheme}://) can only be read from", f"publish to {_USE}")
    if scheme != "file":
        raise Permanent("unknown_scheme", f"cannot publish to {scheme}://", f"publish to {_USE}")
    return FolderDestination(local_path(uri) if match else Path(os.path.abspath(uri)))


def _read(options: argparse.Namespace, destination: Destination) -> Content:
    folder: Path = options.folder
    if isinstance(destination, FolderDestination):
        destination.refuse_inside(folder)
    found = with_golden(look_through(folder), options.golden)
    for name in found.left_out:
        _say(f"left out: {folder / name}, a record of Holdfast's own")
    with ProgressLine(sys.stderr, f"hashing {_files(len(found.files))}", found.total_bytes) as progress:
        return hash_all(found.files, options.threads, progress.add)


async def _publish(content: Content, destination: Destination, options: argparse.Namespace) -> Plan:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        decided = await plan(content, destination, options.threads)
        if not options.force:
            refuse_replacing(decided, destination.display)
        if decided.replaced is not None:
            _say(f"replacing {decided.replaced} at {destination.display}")
        if not decided.is_done:
            label = f"uploading {_files(len(decided.uploads))}"
            with ProgressLine(sys.stderr, label, decided.upload_bytes) as progress:
                await run(decided, destination, options.threads, progress.add, _say)
        return decided
    finally:
        await destination.aclose()


def _report(done: Plan, display: str, *, as_json: bool) -> None:
    manifest = done.content.manifest
    whole = f"{_files(len(manifest.files))}, {format_size(manifest.total_bytes)}, at {display}"
    if done.is_done:
        _say(f"already published: {whole}")
    else:
        _say(f"published: {whole}; uploaded {_files(len(done.uploads))}, {format_size(done.upload_bytes)}")
    if as_json:
        facts = {
            "digest": str(manifest.digest),
            "uri": display,
            "files": len(manifest.files),
            "bytes": manifest.total_bytes,
            "uploaded_files": len(done.uploads),
            "uploaded_bytes": done.upload_bytes,
        }
        sys.stdout.write(f"{json.dumps(facts)}\n")
    sys.stdout.write(f"{manifest.digest}\n")
    sys.stdout.flush()


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _say(text: str) -> None:
    sys.stderr.write(f"holdfast publish: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
