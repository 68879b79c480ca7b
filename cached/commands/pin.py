"""`holdfast pin` and `holdfast unpin`: keep a version from eviction, or let it go again.

Law: asks the daemon; writes nothing itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cached.commands.common import command_parser, layout_of, reference, report_errors
from cached.contract.options import EXIT_DONE
from cached.control_client import ControlClient


def main(argv: Sequence[str]) -> int:
    """`holdfast pin NAME@VERSION`; returns the exit code."""
    parser = command_parser("pin", "Keep a version from eviction, also across restarts of the daemon.")
    parser.add_argument("ref", metavar="NAME@VERSION", type=reference)
    options = parser.parse_args(argv)

    def body() -> int:
        ControlClient(layout_of(options)).pin(options.ref)
        sys.stdout.write(f"{options.ref} is pinned: it stays until `holdfast unpin {options.ref}`\n")
        return EXIT_DONE

    return report_errors("pin", body)


def unpin(argv: Sequence[str]) -> int:
    """`holdfast unpin NAME@VERSION`; returns the exit code."""
    parser = command_parser("unpin", "Let a version be evicted again.")
    parser.add_argument("ref", metavar="NAME@VERSION", type=reference)
    options = parser.parse_args(argv)

    def body() -> int:
        pinned = ControlClient(layout_of(options)).unpin(options.ref)
        held = "still pinned by the catalog (`pin: true` there)" if pinned else "no longer pinned"
        sys.stdout.write(f"{options.ref} is {held}\n")
        return EXIT_DONE

    return report_errors("unpin", body)
