"""Load checkpoints with Holdfast and with other loaders, warm and cold, in turns, and print the cost of each.

Law: every row loads the same files in a new, warmed-up process right after the page cache was filled or emptied, and
checked; rows and their ceiling take turns within a round. docs/benchmarks.md explains each row and column.

Run `python -m bench.load --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench import ceiling, checkpoints, pages
from bench.checkpoints import Checkpoint
from bench.harness import Workplace, bench_main, in_turn, matches, size_argument, workplace
from bench.load_report import Run, State, document, text
from bench.loaders import LOADERS
from bench.loading import Job, Watched, watch
from bench.machine import append_section, describe, require_space
from bench.measure import failed
from bench.sweep import sweep
from cached.contract.errors import HoldfastError
from cached.contract.program.units import format_size

_GIB = 1024**3
_SMALL = 1024 * 1024
_QUICK = 64 * 1024 * 1024
_SLOWEST = 50e6  # bytes a second; a slower row is aborted
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Plan:
    """Run `rows` on `device`, in `states`, `rounds` times, until `deadline` (monotonic) at the latest."""

    device: str
    rows: tuple[str, ...]
    states: tuple[State, ...]
    rounds: int
    deadline: float

    def left(self) -> float:
        return self.deadline - time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    options = _parser().parse_args(argv)
    device = _device(options.device)
    with workplace(options.work) as place:
        found = _checkpoints(options, place, device)
        plan = _plan(options, device)
        if options.sweep:
            body = sweep(found[0].files, device, plan.states, plan.left)
            print(f"\n{body}")
            _keep(options, place, f"Sweep of the loader's settings, {found[0].title}", body, {"sweep": body})
            return 0
        print(f"{describe(place.folder)}, {_describe_device(device)}", flush=True)
        documents = []
        for checkpoint in found:
            runs, notes = _measure(plan, checkpoint, place)
            body = f"{_describe_device(device)}; {_versions(plan.rows)}\n\n{text(runs, device, notes)}"
            print(f"\n{checkpoint.title}\n\n{body}\n", flush=True)
            documents.append({"title": checkpoint.title, "size": checkpoint.size, **document(runs, device, notes)})
            _keep(options, place, f"Load, {checkpoint.title}", body, {"device": body, "checkpoints": documents})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--size", type=size_argument, help="of the synthetic checkpoint (default: what the machine fits)"
    )
    parser.add_argument("--model", type=Path, action="append", default=[], help="also load the model in this folder")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where torch finds a GPU)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every row runs (default 3)")
    parser.add_argument("--states", default="warm,cold", help="warm, cold, or both (default warm,cold)")
    parser.add_argument("--only", default="", help="only rows with one of these comma-separated words in their name")
    parser.add_argument(
        "--budget-s", type=float, default=1500, help="begin nothing after so many seconds (default 1500)"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: 64 MiB, one round")
    parser.add_argument("--sweep", action="store_true", help="try our own settings on the GPU, no other loader")
    parser.add_argument("--work", type=Path, help="keep the synthetic checkpoint in this folder for the next run")
    parser.add_argument("--json", type=Path, help="also write every sample to this file")
    parser.add_argument("--append", action="store_true", help="append the tables to docs/benchmarks.md")
    return parser


def _plan(options: argparse.Namespace, device: str) -> Plan:
    rows = [ceiling.PINNED if device != "cpu" else ceiling.HOST]
    for loader in LOADERS:
        if not matches(options.only, loader.name):
            continue
        if (reason := loader.missing(device)) is not None:
            print(f"skipped, {loader.name}: {reason}", flush=True)
            continue
        rows.append(loader.name)
    states = tuple(State(word) for word in options.states.split(","))
    return Plan(
        device, tuple(rows), states, 1 if options.quick else options.rounds, time.monotonic() + options.budget_s
    )


def _checkpoints(options: argparse.Namespace, place: Workplace, device: str) -> list[Checkpoint]:
    size = _QUICK if options.quick else options.size or _fitting(place.folder, device)
    require_space(place.folder, size + _GIB // 4)
    began = time.monotonic()
    made = [checkpoints.synthetic(place.origin, size)]
    print(f"{made[0].title} in {len(made[0].files)} files, made in {time.monotonic() - began:.0f} s", flush=True)
    if options.sweep:
        return made
    if (real := checkpoints.real()) is not None:
        made.append(real)
    return [*made, *(checkpoints.given(folder) for folder in options.model)]


def _fitting(folder: Path, device: str) -> int:
    """Return the bytes that disk, memory and device allow; some loaders need them twice, with the page cache."""
    available = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    with suppress(OSError, ValueError):  # no cgroup, or no limit
        available = min(available, int(_CGROUP.read_text()))
    bounds = [shutil.disk_usage(folder).free - 2 * _GIB, available // 3]
    if device != "cpu":
        import torch

        bounds.append(torch.cuda.mem_get_info(device)[0] * 6 // 10)
    return max(_SMALL, min(bounds))


def _measure(plan: Plan, checkpoint: Checkpoint, place: Workplace) -> tuple[list[Run], list[str]]:
    runs: list[Run] = []
    notes: list[str] = []
    small = checkpoints.synthetic(place.origin, _SMALL).files[0]
    rows, slowest = list(plan.rows), 0.0
    expected = checkpoints.fingerprint_of_files(checkpoint.files)
    for round_ in range(1, plan.rounds + 1):
        for state in plan.states:
            if state is State.COLD:
                try:
                    runs.append(_disk(checkpoint, round_, place))
                except HoldfastError as error:  # the rows are useful without their ceiling too
                    notes.append(f"no ceiling for cold rows: {error.message.splitlines()[-1]}")
            for row in in_turn(rows, round_ - 1):
                if state is State.COLD and row in (ceiling.PINNED, ceiling.HOST):
                    continue
                if plan.left() < (slowest if round_ > 1 else 0):
                    return runs, [*notes, f"out of time in round {round_}: {row} and what follows did not run"]
                began = time.monotonic()
                check = round_ == 1 and state is plan.states[0] and row not in (ceiling.PINNED, ceiling.HOST)
                timeout_s = max(30.0, min(60 + checkpoint.size / _SLOWEST, plan.left() + 60))
                cached = state is State.WARM
                job = Job(row, checkpoint.files, checkpoint.size, small, plan.device, cached, check, timeout_s)
                try:
                    runs.append(_run(job, state, round_, place, expected))
                except HoldfastError as error:
                    print(f"failed: {error.message}", flush=True)
                    notes.append(f"{row} failed: {error.message.splitlines()[-1]}")
                    rows.remove(row)
                slowest = max(slowest, time.monotonic() - began)
    return runs, notes


def _run(job: Job, state: State, round_: int, place: Workplace, expected: str) -> Run:
    share = 0.0

    def prepare() -> None:
        nonlocal share
        share = pages.warm(job.files) if state is State.WARM else pages.drop(job.files)

    watched: Watched = watch(job, place.scratch / "loader.log", prepare, _device_free(job.device))
    if job.check and watched.fingerprint != expected:
        raise failed(f"{job.row} gave other tensors than the files have")
    run = Run.of(job.row, state, round_, job.size, share, watched)
    print(f"round {round_}, {run}", flush=True)
    return run


def _disk(checkpoint: Checkpoint, round_: int, place: Workplace) -> Run:
    share = pages.drop(checkpoint.files)
    name, rate = ceiling.direct_reads(checkpoint.files, place.scratch)
    run = Run.of_ceiling(name, State.COLD, round_, checkpoint.size, share, rate)
    print(f"round {round_}, {run}", flush=True)
    return run


def _device_free(device: str) -> Callable[[], int]:
    if device == "cpu":
        return lambda: 0
    import torch

    return lambda: torch.cuda.mem_get_info(device)[0]


def _device(wanted: str | None) -> str:
    """Return the device, a GPU with its index, which some loaders require."""
    if wanted is None:
        import torch

        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda:0" if wanted == "cuda" else wanted


def _describe_device(device: str) -> str:
    import torch

    if device == "cpu":
        return f"onto the CPU, torch {torch.__version__}"
    found = torch.cuda.get_device_properties(device)
    return (
        f"onto {found.name} ({format_size(found.total_memory)}), CUDA {torch.version.cuda}, torch {torch.__version__}"
    )


def _versions(rows: Sequence[str]) -> str:
    return ", ".join(f"{loader.name} {loader.version}" for loader in LOADERS if loader.name in rows)


def _keep(options: argparse.Namespace, place: Workplace, title: str, body: str, kept: dict[str, object]) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": describe(place.folder), **kept}, indent=1) + "\n")
    if options.append:
        append_section(title, place.folder, body)


if __name__ == "__main__":
    sys.exit(bench_main(main))
