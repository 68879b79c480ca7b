"""`holdfast doctor`: make all checks and report them as they end.

Law: exit 0 where nothing failed, 1 where something did, 2 usage; a finding's remedy follows it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from cached.commands.shared.common import command_parser, get_layout, parse_seconds
from cached.commands.shared.style import paint
from cached.contract.layout import Layout
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.units import format_count
from cached.core.catalog import EMPTY_CATALOG, Catalog
from cached.doctor import gpu, node
from cached.doctor.blocking import run_in_thread
from cached.doctor.cluster import check_cluster
from cached.doctor.findings import CheckResult, CheckVerdict, failed, has_failed
from cached.doctor.sources import check_origin_proxy, check_sources, read_catalog
from cached.transport.origin_proxy import parse_origin_proxy_option

_TIMEOUT_S = "15"
_STYLES = {
    CheckVerdict.OK: "green",
    CheckVerdict.WARNING: "yellow",
    CheckVerdict.FAILED: "red",
    CheckVerdict.SKIPPED: "dim",
}
_VERDICT_WIDTH, _AREA_WIDTH = 9, 13
_NARROW, _LEAST = 72, 20  # columns of a terminal


def main(argv: Sequence[str]) -> int:
    """Run `holdfast doctor`; return the exit code."""
    parser = command_parser("doctor", "Look at all that this node needs, and say what to do about what is wrong.")
    parser.option("--catalog", type=Path, metavar="FILE", help="the daemon's catalog, whose sources are looked at")
    parser.option("--kube", choices=("auto", "off"), default="auto", help="off: look at no cluster")
    host = socket.gethostname()
    parser.option(
        "--node", default=host, otherwise="the host's name", metavar="NAME", help="this node's name in the cluster"
    )
    proxy = "the daemon's Dragonfly, which is looked at"
    parser.option("--origin-proxy", type=parse_origin_proxy_option, default="off", metavar="dragonfly=URL", help=proxy)
    wait = "seconds for each source and the cluster"
    parser.option("--timeout", type=parse_seconds, default=_TIMEOUT_S, metavar="S", help=wait)
    parser.switch("--json", help="print one JSON object instead of text")
    options = parser.parse_args(argv)
    findings = asyncio.run(_report(options))
    if options.json:
        document = {"findings": [finding.document() for finding in findings], "failed": has_failed(findings)}
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(_summary(findings))
    return EXIT_FAILED if has_failed(findings) else EXIT_DONE


async def _report(options: argparse.Namespace) -> list[CheckResult]:
    """Make the checks; print each finding at once unless they are for JSON."""
    found = []
    async for finding in _check_all(options, get_layout(options)):
        found.append(finding)
        if not options.json:
            sys.stdout.write(_describe(finding))
            sys.stdout.flush()
    return found


async def _check_all(options: argparse.Namespace, layout: Layout) -> AsyncIterator[CheckResult]:
    local: list[tuple[str, Callable[[], Iterable[CheckResult]]]] = [
        ("disk", lambda: node.check_disk(layout)),
        ("daemon", lambda: node.check_daemon(layout)),
        ("clock", node.check_clock),
        ("limits", lambda: node.check_limits(layout)),
        ("gpu", gpu.check_gpus),
    ]
    for area, check in local:
        for finding in await _make(area, check, options.timeout):
            yield finding
    catalogs: list[Catalog] = []
    for finding in await _make("catalog", partial(_take_catalog, options.catalog, catalogs), options.timeout):
        yield finding
    catalog = catalogs[0] if catalogs else EMPTY_CATALOG
    if options.origin_proxy is not None:
        look = partial(check_origin_proxy, options.origin_proxy, options.timeout)
        for finding in await _make("dragonfly", look, options.timeout):
            yield finding
    async for finding in check_sources(catalog, options.timeout):
        yield finding
    async for finding in check_cluster(options.kube, options.node, layout, options.timeout):
        yield finding


def _take_catalog(path: Path | None, catalogs: list[Catalog]) -> list[CheckResult]:
    catalog, findings = read_catalog(path)
    catalogs.append(catalog)
    return findings


async def _make(area: str, check: Callable[[], Iterable[CheckResult]], timeout_s: float) -> list[CheckResult]:
    """Make a check of this machine; one that does not end, or breaks, is a finding of its own."""
    try:
        return await run_in_thread(lambda: list(check()), timeout_s)
    except TimeoutError:
        remedy = "a disk, an NFS or FUSE server does not answer: look at `dmesg` and the mounts"
        return [failed(area, f"the check did not end within {timeout_s:g} s", remedy)]
    except OSError as error:
        problem = f"{error.filename or 'the check'}: {error.strerror or error}"
        return [failed(area, problem, "run it as the daemon's user")]


def _describe(finding: CheckResult) -> str:
    verdict = paint(f"{finding.verdict:<{_VERDICT_WIDTH}}", _STYLES[finding.verdict])
    width = _find_width()
    remedy = f"what to do: {finding.remedy}"
    if width is not None and width < _NARROW:  # the message below its area, not beside it
        text = f"{verdict}{finding.area}\n{_wrap(finding.message, '  ', width)}\n"
        return text + (f"{_wrap(remedy, '  ', width)}\n" if finding.remedy else "")
    indent = " " * (_VERDICT_WIDTH + _AREA_WIDTH)
    lines = _wrap(finding.message, indent, width)
    text = f"{verdict}{finding.area:<{_AREA_WIDTH}}{lines[len(indent) :]}\n"
    return text + (f"{_wrap(remedy, indent, width)}\n" if finding.remedy else "")


def _find_width() -> int | None:
    """Return the columns that a line may fill, None where the output is no terminal."""
    return min(140, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def _wrap(text: str, indent: str, width: int | None) -> str:
    """Return `text` in lines of this width, each indented; in one line for None. Words, as URIs, stay whole."""
    if width is None:
        return indent + text
    room = max(_LEAST, width) - len(indent)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return "\n".join(indent + line for line in lines)


def _summary(findings: Sequence[CheckResult]) -> str:
    counts = Counter(finding.verdict for finding in findings)
    order = (CheckVerdict.FAILED, CheckVerdict.WARNING, CheckVerdict.OK, CheckVerdict.SKIPPED)
    plurals = {verdict: "" if verdict is CheckVerdict.WARNING else verdict.value for verdict in order}
    said = ", ".join(format_count(counts[each], each.value, plurals[each]) for each in order if counts[each])
    return f"\n{_wrap(said, '', _find_width())}\n"
