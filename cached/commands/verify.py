"""`holdfast verify`: hash versions again, and have the daemon renew their records or repair them.

Law: asks the daemon, which alone may change the store; where it does not answer, or may not be asked, this reads the
public tree under each snapshot's lease, repairs nothing and says so.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cached.commands.shared.common import (
    add_timeout_option,
    command_parser,
    get_layout,
    get_public_tree,
    parse_reference,
    print_error,
    print_json,
    report_errors,
)
from cached.commands.shared.control_client import ControlClient
from cached.commands.shared.tree import get_snapshot, list_references
from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.manifest import Manifest
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.units import format_count, format_size
from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from cached.contract.snapshot.verify import check_full, load_manifest

_GREETING_S = 5.0  # for the daemon to answer at all
_MISMATCHES = ("digest_mismatch", "invalid_manifest")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The outcome for one version: whether it was right, the word of the table, and what follows that."""

    right: bool
    word: str
    text: str
    remedy: str = ""


@report_errors("verify")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast verify [NAME@VERSION] [--timeout S] [--threads N] [--json]`; return the exit code."""
    text = "Hash versions again; the daemon renews their records, or withdraws what is wrong and fetches it again."
    parser = command_parser("verify", text)
    parser.add_argument(
        "ref", metavar="NAME@VERSION", nargs="?", type=parse_reference, help="default: every version here"
    )
    cores = len(os.sched_getaffinity(0))
    threads = "without a daemon, hash with this many threads"
    usual = "the number of CPUs"
    parser.option("--threads", type=_threads, default=str(cores), otherwise=usual, metavar="N", help=threads)
    add_timeout_option(parser, 3600)
    parser.switch("--json", help="print one JSON object instead of text, once all are verified")
    options = parser.parse_args(argv)
    public = get_public_tree(options)
    references = [options.ref] if options.ref else list_references(public)
    if not references and not options.json:
        sys.stdout.write("no versions on this node\n")
        return EXIT_DONE
    layout = get_layout(options)
    unasked = _find_unasked(ControlClient(layout, min(options.timeout, _GREETING_S)))
    if unasked is None:
        check = partial(_ask_daemon, ControlClient(layout, options.timeout))
    else:
        check = partial(_read, public, options.threads)
    outcomes = list(_verify_all(public, references, check, show=not options.json))
    reason = None
    if unasked is not None:
        reason = f"nothing was repaired and no record renewed, which only the daemon does: {unasked.message}"
        print_error("verify", reason, unasked.remedy)
    if options.json:
        print_json({"by_daemon": unasked is None, "versions": [_describe(*each) for each in outcomes]})
    return EXIT_DONE if all(outcome.right for _, outcome in outcomes) else EXIT_FAILED


def _describe(ref: ModelRef, outcome: _Outcome) -> dict[str, Any]:
    return {
        "model": ref.name,
        "version": ref.version,
        "outcome": outcome.word.lower(),
        "message": outcome.text,
        "remedy": outcome.remedy,
    }


def _find_unasked(client: ControlClient) -> HoldfastError | None:
    """Return why the daemon cannot be asked: none runs, it does not answer, or this user may not; None where it can."""
    try:
        client.status()
    except HoldfastError as error:
        return error
    return None


def _verify_all(
    public: PublicLayout, references: list[ModelRef], verify: Callable[[ModelRef], _Outcome], *, show: bool
) -> Iterator[tuple[ModelRef, _Outcome]]:
    """Verify each version, content that several share once; with `show` print each outcome at once."""
    verified: dict[str, str] = {}  # by manifest hex
    for ref in references:
        name = _find_snapshot_name(public, ref)
        if name in verified:
            outcome = _Outcome(right=True, word="ok", text=f"the same content as {verified[name]}")
        else:
            try:
                outcome = verify(ref)
            except HoldfastError as error:
                word = "MISMATCH" if error.code in _MISMATCHES else "FAILED"
                outcome = _Outcome(right=False, word=word, text=ref.drop_name(error.message), remedy=error.remedy)
        if show:
            sys.stdout.write(f"{ref}  {outcome.word}  {outcome.text}\n")
            sys.stdout.flush()
        if outcome.right and name is not None:
            verified.setdefault(name, str(ref))
        if not outcome.right:
            named = outcome.text if str(ref) in outcome.text else f"{ref}: {outcome.text}"
            print_error("verify", named, outcome.remedy)
        yield ref, outcome


def _find_snapshot_name(public: PublicLayout, ref: ModelRef) -> str | None:
    try:
        return get_snapshot(public, ref).path.name
    except HoldfastError:
        return None


def _ask_daemon(client: ControlClient, ref: ModelRef) -> _Outcome:
    answer = client.verify(ref)
    if answer.outcome == "withdrawn":
        text = f"{answer.problem}; it is withdrawn and fetched again"
        return _Outcome(right=False, word="MISMATCH", text=text, remedy="`holdfast status` tells when it is here again")
    if answer.outcome == "restored":
        text = f"{answer.problem}; it is put back from what is on this node, and its bytes are right"
        return _Outcome(right=False, word="REPAIRED", text=text, remedy="nothing: it can be used again")
    renewed = "; its record was out of date and is renewed" if answer.was_outdated else ""
    text = f"{format_count(answer.files, 'file')}, {format_size(answer.size_bytes)} in {answer.seconds:.1f}s{renewed}"
    return _Outcome(right=True, word="ok", text=text)


def _read(public: PublicLayout, threads: int, ref: ModelRef) -> _Outcome:
    started = time.monotonic()
    manifest = _verify(get_snapshot(public, ref), ref, threads)
    elapsed = time.monotonic() - started
    text = f"{format_count(len(manifest.files), 'file')}, {format_size(manifest.total_bytes)} in {elapsed:.1f}s"
    return _Outcome(right=True, word="ok", text=text)


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
