"""`holdfast import FILE.tar`: install an archive's version on this node through its daemon, or unpack it.

Law: reads the archive once, from front to back, and asks the daemon to publish only after its last byte was right. The
daemon hashes what it writes; what it has already is hashed here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cached.archive.output import STANDARD
from cached.archive.reading import BUFFER_BYTES, Archive
from cached.archive.unpacking import unpack
from cached.commands.shared.common import command_parser, get_layout, parse_digest, parse_reference, report_errors
from cached.commands.shared.control_client import ControlClient
from cached.contract.archive.import_stream import DONE, LineReader, send_line
from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.layout import Layout
from cached.contract.program.options import EXIT_DONE, EXIT_USAGE
from cached.contract.program.progress import ByteProgress
from cached.contract.program.units import format_count, format_size
from cached.contract.reference import ModelRef


@report_errors("import")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast import FILE [NAME@VERSION] [--digest D] [--replace] [--to DIR] [--json]`; return the exit code."""
    parser = command_parser("import", "Install a version from an archive of `holdfast export`, every byte checked.")
    parser.add_argument("file", metavar="FILE", help="the archive; - for standard input")
    parser.add_argument(
        "ref", metavar="NAME@VERSION", nargs="?", type=parse_reference, help="default: the name that it was exported as"
    )
    parser.option(
        "--digest", type=parse_digest, metavar="DIGEST", help="refuse an archive with another manifest digest"
    )
    parser.switch("--replace", help="let the name move from other content that is here")
    parser.option("--to", type=Path, metavar="DIR", help="unpack it into this folder instead, as a published version")
    parser.switch("--json", help="print one JSON object instead of text")
    options = parser.parse_args(argv)
    if options.file == STANDARD and os.isatty(0):
        sys.stderr.write("holdfast import: expected an archive on standard input, found a terminal\n")
        return EXIT_USAGE
    with _opened(options.file) as descriptor:
        where = "standard input" if options.file == STANDARD else options.file
        archive = Archive(descriptor, where)
        _check_pin(archive.digest, options.digest, where)
        ref = _find_name(archive, options)
        with ByteProgress(sys.stderr, f"importing {ref or where}", archive.manifest.total_bytes) as progress:
            if options.to is not None:
                place = options.to.absolute()
                unpack(archive, place, progress)
            else:
                assert ref is not None
                layout = get_layout(options)
                _install(layout, ref, archive, progress, replace=options.replace)
                place = layout.public.model_link(ref)
    _report(options, ref, archive, place)
    return EXIT_DONE


@contextlib.contextmanager
def _opened(name: str) -> Iterator[int]:
    if name == STANDARD:
        yield 0
        return
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Permanent("unreadable", f"{name}: {error.strerror}", "name an archive of `holdfast export`") from error
    try:
        if os.path.isdir(name):
            raise Permanent("unreadable", f"{name}: expected an archive, found a folder", "name the tar file")
        yield descriptor
    finally:
        os.close(descriptor)


def _check_pin(found: Digest, pin: Digest | None, where: str) -> None:
    if pin not in (None, found):
        raise DigestMismatch(
            f"{where}: the manifest digest",
            f"{pin} (--digest)",
            str(found),
            "correct --digest, or take another archive",
        )


def _find_name(archive: Archive, options: argparse.Namespace) -> ModelRef | None:
    """Return the version's name here; None where it needs none. Raises `Permanent` (`no_name`)."""
    given: ModelRef | None = options.ref
    if given is None and archive.record is not None:
        return archive.record.ref
    if given is not None or options.to is not None:
        return given
    raise Permanent(
        "no_name",
        f"{options.file}: it does not say of which version it is",
        f"say it: `holdfast import {options.file} NAME@VERSION`",
    )


def _install(layout: Layout, ref: ModelRef, archive: Archive, progress: ByteProgress, *, replace: bool) -> None:
    client = ControlClient(layout)
    with client.begin_import(ref, replace=replace) as stream:
        answers = LineReader(stream)
        try:
            data = archive.manifest.canonical()
            send_line(stream, str(len(data)))
            stream.sendall(data)
            needed = set(answers.read_document()["need"])
            _send_files(archive, needed, stream, progress)
            archive.check_end()
            send_line(stream, DONE)
            answers.read_document()
        except OSError as error:
            raise _find_reason(answers, error) from error


def _send_files(archive: Archive, needed: set[str], stream: socket.socket, progress: ByteProgress) -> None:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    for file in archive.files():
        is_needed = file.entry.sha256 in needed
        needed.discard(file.entry.sha256)  # of two files with the same bytes one is enough
        if is_needed:
            send_line(stream, file.entry.sha256)
        while count := file.read_into(buffer):
            if is_needed:
                stream.sendall(buffer[:count])
            progress.add(count)


def _find_reason(answers: LineReader, error: OSError) -> HoldfastError:
    """Return why the daemon hung up: what it said before, if anything."""
    try:
        answers.read_document()
    except HoldfastError as reason:
        if reason.code != "hung_up":
            return reason
    except OSError:
        pass
    return Transient(
        "daemon_lost",
        f"the daemon hung up during the import: {error.strerror}",
        "see whether it runs, and import again: nothing of a part is visible",
    )


def _report(options: argparse.Namespace, ref: ModelRef | None, archive: Archive, place: Path) -> None:
    count, size = len(archive.manifest.files), archive.manifest.total_bytes
    if options.json:
        document = {
            "model": None if ref is None else ref.name,
            "version": None if ref is None else ref.version,
            "digest": str(archive.digest),
            "bytes": size,
            "files": count,
            "path": str(place),
        }
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return
    what = "unpacked" if options.to is not None else "ready"
    sys.stderr.write(
        f"{ref or options.file}: {what}, {format_count(count, 'file')}, {format_size(size)}, all as its manifest says\n"
    )
    sys.stdout.write(f"{place}\n{archive.digest}\n")
