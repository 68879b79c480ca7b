"""`holdfast pin` and `holdfast unpin`: protect a version from eviction, or end that.

Law: asks the daemon; writes nothing itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cached.commands.shared.common import (
    add_timeout_option,
    command_parser,
    get_layout,
    parse_reference,
    print_json,
    report_errors,
    run_within,
)
from cached.commands.shared.control_client import ControlClient
from cached.contract.program.options import EXIT_DONE


@report_errors("pin")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast pin NAME@VERSION [--json] [--timeout S]`; return the exit code."""
    options = _parse("pin", "Keep a version from eviction, also across restarts of the daemon.", argv)
    layout = get_layout(options)
    run_within(options.timeout, layout, lambda: ControlClient(layout, options.timeout).pin(options.ref))
    if options.json:
        print_json({"model": options.ref.name, "version": options.ref.version, "pinned": True})
    else:
        sys.stdout.write(f"{options.ref} is pinned: it stays until `holdfast unpin {options.ref}`\n")
    return EXIT_DONE


@report_errors("unpin")
def unpin(argv: Sequence[str]) -> int:
    """Run `holdfast unpin NAME@VERSION [--json] [--timeout S]`; return the exit code."""
    options = _parse("unpin", "Let a version be evicted again.", argv)
    layout = get_layout(options)
    result = run_within(options.timeout, layout, lambda: ControlClient(layout, options.timeout).unpin(options.ref))
    if options.json:
        named = {"model": options.ref.name, "version": options.ref.version}
        print_json({**named, "pinned": result.pinned, "was_pinned": result.was_pinned})
        return EXIT_DONE
    if result.pinned:
        outcome = "is still pinned by the catalog (`pin: true` there)"
    else:
        outcome = "is no longer pinned" if result.was_pinned else "was not pinned: nothing changed"
    sys.stdout.write(f"{options.ref} {outcome}\n")
    return EXIT_DONE


def _parse(name: str, description: str, argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(name, description)
    parser.add_argument("ref", metavar="NAME@VERSION", type=parse_reference)
    parser.switch("--json", help="print one JSON object instead of text")
    add_timeout_option(parser, 30)
    return parser.parse_args(argv)
