"""Start pods on a node that has their weights, in turns with pods that want none: seconds from creation to container.

Law: real pods in the cluster of KUBECONFIG, each bound to one node; a pod's main container tells its own start time by
the node's clock, which must agree with this machine's. Needs Holdfast installed (rows `csi`: with its overlay), and the
model on the node. `image-volume` mounts an image with the same bytes, which the node has too.

Run `python -m bench.warm_pod --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import report
from bench.harness import bench_main, in_turn, matches
from bench.machine import append_section
from bench.pods import REFERENCE, ROWS, Plan, Start, add_plan_options, cluster_client, make_plan, run_pods


@dataclass(frozen=True, slots=True)
class Burst:
    """Pods that are created at once: the starts of all of them."""

    starts: tuple[Start, ...]

    @property
    def median_s(self) -> float:
        return median(each.seconds for each in self.starts)

    @property
    def last_s(self) -> float:
        return max(each.seconds for each in self.starts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.warm_pod", description=__doc__.partition("\n")[0])
    add_plan_options(parser)
    parser.add_argument("--only", default="", metavar="ROW,…", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=15, help="pods of each row (default 15)")
    parser.add_argument("--burst", type=int, default=40, help="pods at once, 0: none (default 40)")
    parser.add_argument("--burst-rounds", type=int, default=3, help="bursts of each row (default 3)")
    parser.add_argument("--append", action="store_true", help="append the tables to docs/benchmarks.md")
    options = parser.parse_args(argv)
    plan = make_plan(options)
    rows = [row for row in ROWS if matches(options.only, row) and (row != "image-volume" or plan.volume_image)]
    text = asyncio.run(_measure(plan, rows, options.rounds, options.burst, options.burst_rounds))
    print(text)
    if options.append:
        append_section("Pods on a warm node", Path(plan.host_path).parent, text)
    return 0


async def _measure(plan: Plan, rows: list[str], rounds: int, burst: int, burst_rounds: int) -> str:
    single: list[dict[str, Start]] = []
    many: list[dict[str, Burst]] = []
    async with cluster_client(plan) as client:
        for row in rows:  # unmeasured: the node's image store and page cache are warm afterwards
            await run_pods(client, plan, row, 1)
        for number in range(rounds):
            found = {row: (await run_pods(client, plan, row, 1))[0] for row in in_turn(rows, number)}
            single.append(found)
            print(f"round {number + 1}: " + ", ".join(f"{row} {found[row].seconds:.2f}" for row in rows), flush=True)
        for number in range(burst_rounds if burst else 0):
            crowd = {row: Burst(await run_pods(client, plan, row, burst)) for row in in_turn(rows, number)}
            many.append(crowd)
            shown = (f"{row} {crowd[row].median_s:.1f}/{crowd[row].last_s:.1f}" for row in rows)
            print(f"burst {number + 1}: " + ", ".join(shown), flush=True)
    tables = [_table_of_starts(rows, single)]
    if many:
        tables.append(_table_of_bursts(rows, many, burst))
    return "\n\n".join(tables)


def _table_of_starts(rows: list[str], found: list[dict[str, Start]]) -> str:
    head = ["pod on a warm node", "created → main s", "range", f"x {REFERENCE}", "x gate-sidecar", "warnings"]
    body = []
    for row in rows:
        seconds = [each[row].seconds for each in found]
        warnings = [warning for each in found for warning in each[row].warnings]
        ratios = (
            _ratio([{name: start.seconds for name, start in each.items()} for each in found], row, other)
            for other in (REFERENCE, "gate-sidecar")
        )
        spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
        body.append([row, f"{median(seconds):.2f}", spread, *ratios, _counted(warnings)])
    return f"{len(found)} rounds, each row once a round, in turns.\n\n{report.grid(head, body)}"


def _table_of_bursts(rows: list[str], found: list[dict[str, Burst]], pods: int) -> str:
    head = [f"{pods} pods at once", "median s", "last s", f"median x {REFERENCE}", f"last x {REFERENCE}", "warnings"]
    body = []
    for row in rows:
        warnings = [warning for each in found for start in each[row].starts for warning in start.warnings]
        medians = [{name: burst.median_s for name, burst in each.items()} for each in found]
        lasts = [{name: burst.last_s for name, burst in each.items()} for each in found]
        cells = [median(each[row] for each in medians), median(each[row] for each in lasts)]
        ratios = [_ratio(medians, row, REFERENCE), _ratio(lasts, row, REFERENCE)]
        body.append([row, *(f"{cell:.1f}" for cell in cells), *ratios, _counted(warnings)])
    return f"{len(found)} bursts of each row, in turns.\n\n{report.grid(head, body)}"


def _ratio(rounds: list[dict[str, float]], row: str, reference: str) -> str:
    """Return the median ratio of the two rows within a round."""
    ratios = [each[row] / each[reference] for each in rounds if reference in each]
    return f"{median(ratios):.2f}" if ratios else "-"


def _counted(warnings: list[str]) -> str:
    return ", ".join(f"{warnings.count(each)} {each}" for each in sorted(set(warnings))) or "0"


if __name__ == "__main__":
    sys.exit(bench_main(main))
