"""Pull a repository of the Hugging Face Hub, beside huggingface_hub's own download of it.

Law: a stand-in for the Hub answers its API on loopback and redirects, as the Hub does, to another server for the bytes:
nginx, from the page cache. Rows take turns within a round; a row's files are removed before the next row.

Run `python -m bench.hub --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import report
from bench.daemon import daemon
from bench.harness import Workplace, bench_main, in_turn, matches, size_argument, workplace
from bench.machine import append_section, require_space
from bench.measure import Usage, cpu_seconds, peak_memory, run_program, stop, wait_until
from bench.origins import loopback_environment, nginx
from cached.contract.program.units import format_size
from cached.contract.snapshot.verify import hash_file

PULL, BEFORE, BARE = "holdfast pull", "before", "bare sum"
PLAIN, DURABLE = "snapshot_download", "snapshot_download + sync + sha256"
_REPOSITORY, _REF = "bench/weights", "bench@v1"
_BLOCK = 32 * 1024 * 1024
_HEADER_BYTES = 4096
_SPARE_BYTES = 1024**3
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Hub:
    """The running stand-in: a client's environment, the addresses and digests of the large files, and all bytes."""

    environment: Mapping[str, str]
    files: Mapping[str, str]
    size: int

    @property
    def timeout_s(self) -> float:
        """The seconds after which a row is given up: 20 MB/s, and a minute."""
        return 60 + self.size / 20e6


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `run` gets an empty folder and returns the cost."""

    name: str
    run: Callable[[Path], Usage]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.hub", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=4, help="weight files in the repository (default 4)")
    parser.add_argument("--size", type=size_argument, default="1GiB", help="size of each (default 1GiB)")
    parser.add_argument("--before", type=Path, help="another checkout of this repository, to run as well")
    parser.add_argument("--rounds", type=int, default=3, help="times that every row runs (default 3)")
    parser.add_argument(
        "--only", default="", help="run only rows with one of these comma-separated words in their name"
    )
    parser.add_argument("--work", type=Path, help="keep the repository's files in this folder for the next run")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(options.work) as place:
        require_space(place.folder, options.files * options.size * 2 + _SPARE_BYTES)
        with _hub(place, options.files, options.size) as hub:
            rows = [row for row in _rows(hub, place, options.before) if matches(options.only, row.name)]
            samples = _rounds(rows, hub, place, options.rounds)
        text = _report(samples, hub)
        print(f"\n{text}")
        if options.append:
            title = f"A Hub repository, {options.files} files of {format_size(options.size)}"
            append_section(title, place.folder, text)
    return 0


def _rows(hub: Hub, place: Workplace, before: Path | None) -> list[Row]:
    rows = [Row(PULL, partial(_pull, hub, place, None))]
    if before is not None:
        rows.append(Row(BEFORE, partial(_pull, hub, place, before.resolve())))
    rows += [
        Row(name, partial(_download, hub, place, words)) for name, words in ((PLAIN, ()), (DURABLE, ("--durable",)))
    ]
    return [*rows, Row(BARE, partial(_fetch_bare, hub, place))]


def _pull(hub: Hub, place: Workplace, checkout: Path | None, folder: Path) -> Usage:
    """Measure the command, and the idle daemon that it asks, until the command ends with the version ready."""
    catalog = place.scratch / "catalog.yaml"
    name, _, version = _REF.partition("@")
    source = {"source": f"hf://{_REPOSITORY}@main"}
    catalog.write_text(json.dumps({"models": {name: {"versions": {version: source}}}}))
    with daemon(folder, catalog, hub.environment, checkout=checkout) as running:
        running.wait_ready()
        cpu_before_s = cpu_seconds(running.pid)
        argv = [sys.executable, "-m", "cached.cli", "pull", _REF, "--root", str(folder)]
        command = run_program(argv, hub.environment, place.scratch / "pull.log", hub.timeout_s)
        cpu_s = command.cpu_s + cpu_seconds(running.pid) - cpu_before_s
        return Usage(command.wall_s, cpu_s, command.peak_bytes + peak_memory(running.pid))


def _download(hub: Hub, place: Workplace, words: Sequence[str], folder: Path) -> Usage:
    argv = [sys.executable, "-P", str(_HERE / "hub_download.py"), _REPOSITORY, str(folder), *words]
    return run_program(argv, hub.environment, place.scratch / "download.log", hub.timeout_s)


def _fetch_bare(hub: Hub, place: Workplace, folder: Path) -> Usage:
    words = [word for url, sha256 in hub.files.items() for word in (url, sha256)]
    argv = [sys.executable, "-I", "-S", str(_HERE / "bare_fetch.py"), str(folder), *words]
    return run_program(argv, hub.environment, place.scratch / "bare.log", hub.timeout_s)


def _rounds(rows: Sequence[Row], hub: Hub, place: Workplace, rounds: int) -> list[report.Sample]:
    samples = []
    for round_ in range(1, rounds + 1):
        for row in in_turn(rows, round_):
            place.destination.mkdir()
            try:
                usage = row.run(place.destination)
            finally:
                shutil.rmtree(place.destination)
                os.sync()  # else the removal's writes would slow the next row
            sample = report.Sample(row.name, round_, hub.size, usage.wall_s, usage.cpu_s, usage.peak_bytes)
            samples.append(sample)
            print(
                f"round {round_}: {row.name}: {usage.wall_s:.2f} s, {sample.rate / 1e9:.2f} GB/s, "
                f"{sample.cpu_s_per_gb:.2f} CPU s/GB",
                flush=True,
            )
    return samples


def _report(samples: Sequence[report.Sample], hub: Hub) -> str:
    names, references = (PULL, BEFORE, PLAIN, DURABLE, BARE), (PLAIN, DURABLE)
    figures = report.figures(samples, names, references)
    targets = []
    for reference in references:
        rate, cpu = report.ratio(samples, PULL, reference), report.cpu_ratio(samples, PULL, reference)
        if rate is not None and cpu is not None:
            targets.append(report.Target(f"rate against {reference}", rate, 4.0, True, " x"))
            targets.append(report.Target(f"CPU against {reference}", cpu, 0.25, False, " x"))
    return f"{format_size(hub.size)}:\n\n{report.table(figures, references)}\n\n{report.bullets(targets)}"


@contextmanager
def _hub(place: Workplace, files: int, size: int) -> Iterator[Hub]:
    """Serve the repository: its API from the stand-in, its bytes from nginx."""
    digests = _make_repository(place.origin / "hub" / _REPOSITORY, files, size)
    public = place.origin / "cdn" / "repos" / _REPOSITORY
    public.mkdir(parents=True, exist_ok=True)
    for path, sha256 in digests.items():
        (public / sha256).unlink(missing_ok=True)
        os.link(path, public / sha256)
    with nginx(place.origin / "cdn", place.scratch / "nginx") as cdn:
        log = place.scratch / "hub.log"
        argv = [sys.executable, "-m", "tests.support.fake_hub", str(place.origin / "hub"), "--cdn", cdn]
        with log.open("wb") as output:
            process = subprocess.Popen(argv, cwd=_HERE.parent, stdout=output, stderr=subprocess.STDOUT)
        try:
            endpoint = wait_until(lambda: _find_endpoint(log), "address of the stand-in for the Hub", 120, 0.1)
            environment = loopback_environment() | {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
            urls = {f"{cdn}/repos/{_REPOSITORY}/{sha256}": sha256 for sha256 in digests.values()}
            yield Hub(environment, urls, sum(path.stat().st_size for path in digests))
        finally:
            stop(process)


def _find_endpoint(log: Path) -> str | None:
    name, _, address = log.read_text().strip().partition("=")
    return address if name == "HF_ENDPOINT" and address else None


def _make_repository(folder: Path, files: int, size: int) -> dict[Path, str]:
    """Return the weight files, made now or by an earlier run, and the sha256 of each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bench"}\n')
    wanted = {folder / f"model-{number:05d}-of-{files:05d}.safetensors" for number in range(1, files + 1)}
    for path in set(folder.glob("*.safetensors")) - wanted:
        path.unlink()
    for path in wanted:
        if not path.is_file() or path.stat().st_size != size:
            _write_weights(path, size)
    return {path: hash_file(path) for path in sorted(wanted)}


def _write_weights(path: Path, size: int) -> None:
    """Write a safetensors file with one random tensor: other bytes would be told as damaged."""
    length = size - _HEADER_BYTES
    tensor = {path.stem: {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}}
    header = json.dumps(tensor).ljust(_HEADER_BYTES - 8).encode()
    block = os.urandom(_BLOCK)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, length, _BLOCK):  # one random block, each time with a new start
            file.write((os.urandom(64) + block[64:])[: min(_BLOCK, length - start)])
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    sys.exit(bench_main(main))
