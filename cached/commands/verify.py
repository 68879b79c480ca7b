"""`holdfast verify`: hash versions again and compare every file with its manifest.

Law: reads the public tree only, under each snapshot's lease; repairs nothing (the daemon's scrub does).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from cached.commands.common import command_parser, get_public_tree, parse_reference, print_error, report_errors
from cached.commands.tree import get_snapshot, list_references
from cached.contract import lease
from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.manifest import Manifest
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef
from cached.contract.verify import check_full, load_manifest


@report_errors("verify")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast verify [NAME@VERSION] [--threads N]`; return the exit code."""
    parser = command_parser("verify", "Hash versions again and compare every file with its manifest.")
    parser.add_argument(
        "ref", metavar="NAME@VERSION", nargs="?", type=parse_reference, help="default: every version here"
    )
    cores = len(os.sched_getaffinity(0))
    parser.option("--threads", type=_threads, default=cores, help=f"hash with this many threads (default {cores})")
    options = parser.parse_args(argv)
    public = get_public_tree(options)
    references = [options.ref] if options.ref else list_references(public)
    if not references:
        sys.stdout.write("no versions on this node\n")
    return _verify_all(public, references, options.threads)


def _verify_all(public: PublicLayout, references: list[ModelRef], threads: int) -> int:
    verified: dict[str, str] = {}  # by manifest hex: shared content is hashed once
    failed = False
    for ref in references:
        started = time.monotonic()
        try:
            snapshot = get_snapshot(public, ref)
            if snapshot.path.name in verified:
                sys.stdout.write(f"{ref}  ok  the same content as {verified[snapshot.path.name]}\n")
                continue
            manifest = _verify(snapshot, ref, threads)
        except HoldfastError as error:
            failed = True
            mismatch = error.code in ("digest_mismatch", "invalid_manifest")
            sys.stdout.write(f"{ref}  {'MISMATCH' if mismatch else 'FAILED'}  {error.message}\n")
            sys.stdout.flush()
            print_error("verify", f"{ref}: {error.message}", error.remedy)
            continue
        verified[manifest.digest.hex] = str(ref)
        elapsed = time.monotonic() - started
        sys.stdout.write(
            f"{ref}  ok  {len(manifest.files)} files, {format_size(manifest.total_bytes)} in {elapsed:.1f}s\n"
        )
        sys.stdout.flush()
    return EXIT_FAILED if failed else EXIT_DONE


def _verify(snapshot: SnapshotLayout, ref: ModelRef, threads: int) -> Manifest:
    held = lease.take_shared(snapshot.lease)
    if held is None:
        raise Transient("being_evicted", f"{ref} is being evicted, or its lease file is gone", "run verify again")
    with held:
        manifest = load_manifest(snapshot, None)
        check_full(snapshot, manifest, threads)
    return manifest


def _threads(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"expected a number of threads from 1, found {text!r}")
    return int(text)
