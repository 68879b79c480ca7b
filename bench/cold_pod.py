"""Start pods on a node that has nothing of their weights: our modes beside an image volume with the same bytes.

Law: real pods in the cluster of KUBECONFIG, in turns; runs on the node itself. Before each pod the caller's commands
remove the content. CPU is what the node's processes of the given names took from creation to main container, disk what
the given folders grew by.

Run `python -m bench.cold_pod --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import report
from bench.harness import bench_main, in_turn, matches
from bench.machine import append_section
from bench.measure import cpu_seconds_by_name, failed
from bench.pods import Plan, add_plan_options, cluster_client, make_plan, run_pods
from cached.contract.layout import DEFAULT_ROOT

_ROWS = ("image-volume", "gate-init", "csi")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Cold:
    """One cold pod: seconds until its main container, CPU seconds of the node's processes, bytes that the disk took."""

    seconds: float
    cpu_s: float
    disk_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.cold_pod", description=__doc__.partition("\n")[0])
    add_plan_options(parser)
    parser.add_argument("--forget-model", required=True, metavar="COMMAND", help="removes the version from the node")
    parser.add_argument("--forget-image", required=True, metavar="COMMAND", help="removes that image from the node")
    parser.add_argument("--processes", required=True, metavar="NAME,…", help="whose CPU counts, by the kernel's names")
    parser.add_argument("--folders", required=True, metavar="DIR,…", help="whose growth counts as disk")
    parser.add_argument("--only", default="", metavar="ROW,…", help=f"of {', '.join(_ROWS)}")
    parser.add_argument("--rounds", type=int, default=3, help="pods of each row (default 3)")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    plan = make_plan(options)
    if plan.volume_image is None:
        raise failed("expected --image-volume IMAGE, found none", "give the image to compare with")
    text = asyncio.run(_measure(plan, options))
    print(text)
    if options.append:
        append_section("Pods on a cold node", DEFAULT_ROOT, text)
    return 0


async def _measure(plan: Plan, options: argparse.Namespace) -> str:
    rows = [row for row in _ROWS if matches(options.only, row)]
    names, folders = options.processes.split(","), [Path(folder) for folder in options.folders.split(",")]
    found: list[dict[str, Cold]] = []
    async with cluster_client(plan) as client:
        for number in range(options.rounds):
            cold: dict[str, Cold] = {}
            for row in in_turn(rows, number):
                for command in (options.forget_model, options.forget_image):
                    await asyncio.to_thread(subprocess.run, command, shell=True, check=True, capture_output=True)
                used, cpu = _disk_bytes(folders), cpu_seconds_by_name(names)
                start = (await run_pods(client, plan, row, 1))[0]
                spent = cpu_seconds_by_name(names) - cpu
                cold[row] = Cold(start.seconds, spent, _disk_bytes(folders) - used)
                print(f"round {number + 1}: {row} {cold[row]}", flush=True)
            found.append(cold)
    head = ["pod on a cold node", "created → main s", "CPU s", "disk GiB", "x image-volume", "x its CPU", "x its disk"]
    body = []
    for row in rows:
        seconds, cpu_s = [each[row].seconds for each in found], [each[row].cpu_s for each in found]
        disk = [each[row].disk_bytes / _GIB for each in found]
        cells = [f"{median(seconds):.2f}", f"{median(cpu_s):.2f}", f"{median(disk):.2f}"]
        body.append([row, *cells, *_ratios(found, row)])
    return f"{len(found)} rounds, each row once a round, in turns.\n\n{report.grid(head, body)}"


def _ratios(found: list[dict[str, Cold]], row: str) -> list[str]:
    """Return the median ratios to the image volume within a round: time, CPU, disk."""
    pairs = [(each[row], each["image-volume"]) for each in found if "image-volume" in each]
    if not pairs:
        return ["-", "-", "-"]
    return [
        f"{median(ours.seconds / theirs.seconds for ours, theirs in pairs):.2f}",
        f"{median(ours.cpu_s / theirs.cpu_s for ours, theirs in pairs):.2f}",
        f"{median(ours.disk_bytes / theirs.disk_bytes for ours, theirs in pairs):.2f}",
    ]


def _disk_bytes(folders: Sequence[Path]) -> int:
    """Return the bytes on disk below these folders, each inode once."""
    command = ["du", "--summarize", "--block-size=1", "--total", *map(str, folders)]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return int(
        found.stdout.splitlines()[-1].split()[0]
    )  # du fails where a file goes while it looks; the total is still said


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    sys.exit(bench_main(main))
