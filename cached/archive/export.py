"""`holdfast export NAME@VERSION FILE.tar`: write a version of this node as an archive.

Law: reads the public tree under the snapshot's lease, with or without a daemon. Each file is hashed on its way, and
what is not as the manifest says ends the export: an archive with its end mark is right.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence

from cached.archive.format import EXPORT_NAME, ExportRecord, compute_size, count_padding, make_end, make_header
from cached.archive.output import STANDARD, ArchiveOutput, open_output
from cached.commands.shared.common import command_parser, get_public_tree, parse_reference, report_errors
from cached.commands.shared.tree import get_snapshot
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.layout import SnapshotLayout
from cached.contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from cached.contract.program.options import EXIT_DONE, EXIT_USAGE
from cached.contract.program.plain_files import open_plain
from cached.contract.program.progress import ByteProgress
from cached.contract.program.units import format_count, format_size
from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from cached.contract.snapshot.verify import load_manifest

_BUFFER_BYTES = 4 * 1024 * 1024


@report_errors("export")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast export NAME@VERSION FILE [--json]`; return the exit code."""
    parser = command_parser("export", "Write a version of this node as a tar archive, every byte checked.")
    parser.add_argument(
        "ref", metavar="NAME@VERSION", type=parse_reference, help="the version, as `holdfast ls` lists it"
    )
    parser.add_argument(
        "file", metavar="FILE", help="the archive to write, replaced once it is whole; - for standard output"
    )
    parser.switch("--json", help="print one JSON object instead of the digest")
    options = parser.parse_args(argv)
    if options.file == STANDARD and os.isatty(1):
        sys.stderr.write("holdfast export: expected a file or a pipe for the archive, found a terminal\n")
        return EXIT_USAGE
    snapshot = get_snapshot(get_public_tree(options), options.ref)
    manifest = _export(options.ref, snapshot, options.file)
    _report(options, manifest)
    return EXIT_DONE


def _export(ref: ModelRef, snapshot: SnapshotLayout, target: str) -> Manifest:
    held = lease.take_shared(snapshot.lease)
    if held is None:
        raise Transient("being_evicted", f"{ref} is being evicted, or its lease file is gone", "export it again")
    with held:
        manifest = load_manifest(snapshot, None)
        size = compute_size(ref, manifest)
        try:
            with open_output(target, size) as output:
                _write(ref, snapshot, manifest, output)
        except DigestMismatch as error:
            raise DigestMismatch(
                f"{ref}: {error.message.partition(': expected')[0]}",
                error.expected,
                error.found,
                f"`holdfast verify {ref}` has the daemon fetch it again; no whole archive was written",
            ) from error
    return manifest


def _write(ref: ModelRef, snapshot: SnapshotLayout, manifest: Manifest, output: ArchiveOutput) -> None:
    record = ExportRecord(ref, manifest.digest).encode()
    for path, data in ((MANIFEST_NAME, manifest.canonical()), (EXPORT_NAME, record)):
        output.write(make_header(path, len(data)) + data + bytes(count_padding(len(data))))
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with ByteProgress(sys.stderr, f"exporting {ref}", manifest.total_bytes) as progress:
        for entry in manifest.files:
            output.write(make_header(entry.path, entry.size))
            _write_file(snapshot, entry, output, buffer, progress)
            output.write(bytes(count_padding(entry.size)))
    output.write(make_end(output.written))


def _write_file(
    snapshot: SnapshotLayout, entry: FileEntry, output: ArchiveOutput, buffer: memoryview, progress: ByteProgress
) -> None:
    """Write the bytes of a file; raises `DigestMismatch` after the last one if they are not the manifest's."""
    sha256, left = hashlib.sha256(), entry.size
    descriptor = _open(snapshot, entry)
    try:
        while left:
            count = os.readv(descriptor, [buffer[: min(left, len(buffer))]])
            if not count:
                break
            sha256.update(buffer[:count])
            output.write(buffer[:count])
            progress.add(count)
            left -= count
    except OSError as error:
        raise _unreadable(entry, error) from error
    finally:
        os.close(descriptor)
    if left or sha256.hexdigest() != entry.sha256:
        raise DigestMismatch(f"{entry.path}: sha256", entry.sha256, sha256.hexdigest(), "")


def _open(snapshot: SnapshotLayout, entry: FileEntry) -> int:
    try:
        descriptor = open_plain(snapshot.path / entry.path)
    except OSError as error:
        raise _unreadable(entry, error) from error
    found = os.fstat(descriptor).st_size
    if found != entry.size:
        os.close(descriptor)
        raise DigestMismatch(f"{entry.path}: size in bytes", str(entry.size), str(found), "")
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return descriptor


def _unreadable(entry: FileEntry, error: OSError) -> HoldfastError:
    if isinstance(error, PermissionError):
        raise error
    return Permanent(
        "unreadable", f"{entry.path}: {error.strerror}", "`holdfast verify` has the daemon look at it; check the disk"
    )


def _report(options: argparse.Namespace, manifest: Manifest) -> None:
    """Print the result: on standard output, unless that has the archive."""
    ref, stream = options.ref, sys.stderr if options.file == STANDARD else sys.stdout
    count, size = len(manifest.files), manifest.total_bytes
    if options.json:
        document = {
            "model": ref.name,
            "version": ref.version,
            "digest": str(manifest.digest),
            "bytes": size,
            "files": count,
            "file": options.file,
        }
        stream.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return
    sys.stderr.write(f"{ref}: {format_count(count, 'file')}, {format_size(size)}, all as its manifest says\n")
    stream.write(f"{manifest.digest}\n")
