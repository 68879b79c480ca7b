"""`holdfast gc`: evict the versions without want, lease or pin, or list them.

Law: asks the daemon, the only process that knows all leases; removes nothing itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cached.commands.shared.common import (
    add_timeout_option,
    command_parser,
    fit_names,
    format_table,
    get_layout,
    print_json,
    report_errors,
    run_within,
)
from cached.commands.shared.control_client import ControlClient, GcReport
from cached.commands.shared.tree import seconds_since
from cached.contract.program.options import EXIT_DONE
from cached.contract.program.units import format_count, format_duration, format_size

_SHOWN = 5


@report_errors("gc")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast gc [--dry-run] [--timeout S]`; return the exit code."""
    parser = command_parser("gc", "Evict the versions without a want, a lease or a pin.")
    parser.switch("--dry-run", help="say what would go, and remove nothing")
    parser.switch("--json", help="print one JSON object instead of text")
    add_timeout_option(parser, 600)
    options = parser.parse_args(argv)
    layout = get_layout(options)
    client = ControlClient(layout, options.timeout)
    report = run_within(options.timeout, layout, lambda: client.gc(dry_run=options.dry_run))
    if options.json:
        print_json(report.document)
        return EXIT_DONE
    sys.stdout.write(_describe(report, "would be evicted" if options.dry_run else "evicted"))
    sys.stderr.write(_describe_reasons(report) if options.dry_run else "")
    return EXIT_DONE


def _describe(report: GcReport, done: str) -> str:
    if not report.versions:
        return "nothing to evict: every version is wanted, in use or pinned\n"
    rows = [("VERSION", "FREES", "REASON")]
    rows += [(str(item.ref), format_size(item.freed_bytes), item.reason) for item in report.versions]
    count = len(report.versions)
    total = f"{format_count(count, 'version')} {done}, {format_size(report.freed_bytes)} in all\n"
    return format_table(fit_names(rows)) + total


def _describe_reasons(report: GcReport) -> str:
    """Return why each version may go, and what keeps the others: for a person, beside the table."""
    text = ""
    for item in report.versions:
        used = "" if item.last_used is None else f", last used {format_duration(seconds_since(item.last_used))} ago"
        text += f"{item.ref} may go: no pod, pull or prefetch rule asks for it, no lease, no pin{used}\n"
    for ref, because in report.staying:
        more = f" and {len(because) - _SHOWN} more" if len(because) > _SHOWN else ""
        text += f"{ref} stays: {', '.join(because[:_SHOWN])}{more}\n"
    return text
