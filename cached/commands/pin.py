"""`holdfast pin` and `holdfast unpin`: protect a version from eviction, or end that.

Law: asks the daemon; writes nothing itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cached.commands.common import add_timeout_option, command_parser, get_layout, parse_reference, report_errors
from cached.commands.control_client import ControlClient, UnpinResult
from cached.contract.program.options import EXIT_DONE


def main(argv: Sequence[str]) -> int:
    """Run `holdfast pin NAME@VERSION [--timeout S]`; return the exit code."""
    parser = command_parser("pin", "Keep a version from eviction, also across restarts of the daemon.")
    parser.add_argument("ref", metavar="NAME@VERSION", type=parse_reference)
    add_timeout_option(parser, 30)
    options = parser.parse_args(argv)

    def body() -> int:
        ControlClient(get_layout(options), options.timeout).pin(options.ref)
        sys.stdout.write(f"{options.ref} is pinned: it stays until `holdfast unpin {options.ref}`\n")
        return EXIT_DONE

    return report_errors("pin", body)


def unpin(argv: Sequence[str]) -> int:
    """Run `holdfast unpin NAME@VERSION [--timeout S]`; return the exit code."""
    parser = command_parser("unpin", "Let a version be evicted again.")
    parser.add_argument("ref", metavar="NAME@VERSION", type=parse_reference)
    add_timeout_option(parser, 30)
    options = parser.parse_args(argv)

    def body() -> int:
        found = ControlClient(get_layout(options), options.timeout).unpin(options.ref)
        sys.stdout.write(f"{options.ref} {_describe(found)}\n")
        return EXIT_DONE

    return report_errors("unpin", body)


def _describe(found: UnpinResult) -> str:
    if found.pinned:
        return "is still pinned by the catalog (`pin: true` there)"
    return "is no longer pinned" if found.was_pinned else "was not pinned: nothing changed"
