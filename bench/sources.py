"""Fetch a model from a service on loopback with Holdfast and with the service's own clients, in turns.

Law: every row of a service fetches the same bytes from the same server, in the same round; what a client does not
verify is told in its row's name, and `sync` is counted where it leaves its files to the kernel. A client that works
through a daemon of its own is charged with that daemon.

Run `python -m bench.sources --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import report
from bench.daemon import CatalogEntry, daemon, write_catalog
from bench.harness import Workplace, bench_main, in_turn, matches, size_argument, workplace
from bench.machine import require_space
from bench.measure import Usage, cpu_seconds, failed, peak_memory, run_program
from bench.origins import Corpus, loopback_environment, random_corpus, running, tool
from bench.registry import REPOSITORY, push_artifact, registry
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef

_REF = ModelRef("bench", "v1")
_SPARE_BYTES = 1024**3
_CONTAINERD = """
version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"]
[grpc]
address = "{folder}/c.sock"
[ttrpc]
address = "{folder}/t.sock"
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `run` gets an empty folder and returns the cost."""

    name: str
    run: Callable[[Path], Usage]


@dataclass(frozen=True, slots=True)
class Service:
    """A server's rows: Holdfast's first. `rate` and `cpu`: what Holdfast has to reach of the fastest other row's."""

    name: str
    rows: Sequence[Row]
    rate: float
    cpu: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.sources", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=4, help="files in the model (default 4)")
    parser.add_argument("--size", type=size_argument, default="1GiB", help="size of each (default 1GiB)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every row runs (default 3)")
    parser.add_argument(
        "--only", default="", help="run only rows with one of these comma-separated words in their name"
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has oras-py")
    parser.add_argument("--work", type=Path, help="keep the origin's files in this folder for the next run")
    options = parser.parse_args(argv)
    with workplace(options.work) as place, ExitStack() as servers:
        require_space(place.folder, options.files * options.size * 3 + _SPARE_BYTES)
        corpus = random_corpus(place.origin, options.files, options.size)
        for service in (_registry(corpus, place, servers, options.python),):
            rows = [row for row in service.rows if matches(options.only, row.name)]
            samples = _rounds(rows, corpus, place, options.rounds)
            print(f"\n{service.name}, {format_size(corpus.size)}:\n\n{_report(samples, service)}\n")
    return 0


def _rounds(rows: Sequence[Row], corpus: Corpus, place: Workplace, rounds: int) -> list[report.Sample]:
    samples = []
    for round_ in range(1, rounds + 1):
        for row in in_turn(rows, round_):
            place.destination.mkdir()
            try:
                usage = row.run(place.destination)
            finally:
                shutil.rmtree(place.destination)
                os.sync()  # else the removal's writes would slow the next row
            sample = report.Sample(row.name, round_, corpus.size, usage.wall_s, usage.cpu_s, usage.peak_bytes)
            samples.append(sample)
            shown = f"{usage.wall_s:.2f} s, {sample.rate / 1e9:.2f} GB/s, {sample.cpu_s_per_gb:.2f} CPU s/GB"
            print(f"round {round_}: {row.name}: {shown}", flush=True)
    return samples


def _report(samples: Sequence[report.Sample], service: Service) -> str:
    names = [row.name for row in service.rows]
    best = report.fastest(samples, names[1:])
    figures = report.figures(samples, names, [best] if best else [])
    parts = [report.table(figures, [best] if best else [])]
    by_name = {figure.row: figure for figure in figures}
    rate = report.ratio(samples, names[0], best) if best else None
    if best and rate is not None:
        cpu = by_name[names[0]].cpu_s_per_gb / by_name[best].cpu_s_per_gb
        targets = [
            report.Target(f"{names[0]}, rate against {best}", rate, service.rate, True, " x"),
            report.Target(f"{names[0]}, CPU against {best}", cpu, service.cpu, False, " x"),
        ]
        parts.append(report.bullets(targets))
    return "\n\n".join(parts)


def _holdfast(source: str, corpus: Corpus, place: Workplace, folder: Path) -> Usage:
    """Measure an idle daemon from the pull until the version's symlink names the verified, durable snapshot."""
    catalog, digest = place.scratch / "catalog.yaml", corpus.manifest.digest
    write_catalog(catalog, [CatalogEntry(_REF, source, digest)])
    with daemon(folder, catalog, loopback_environment()) as running_daemon:
        running_daemon.wait_ready()
        started, cpu_before_s = time.monotonic(), cpu_seconds(running_daemon.pid)
        running_daemon.pull(_REF)
        running_daemon.wait_published(_REF, digest, corpus.timeout_s)
        wall_s = time.monotonic() - started
        return Usage(wall_s, cpu_seconds(running_daemon.pid) - cpu_before_s, peak_memory(running_daemon.pid))


def _client(argv: Sequence[str], corpus: Corpus, place: Workplace, folder: Path) -> Usage:
    """Measure a program that leaves its files below `folder`, and fsync(2) of each."""
    filled = [argument.replace("{folder}", str(folder)) for argument in argv]
    log = place.scratch / "client.log"
    fetched = run_program(filled, loopback_environment(), log, corpus.timeout_s)
    files = [path for path in folder.rglob("*") if path.is_file()]
    if sum(path.stat().st_size for path in files) < corpus.size:
        raise failed(f"{argv[0]}: expected {corpus.size} bytes in {folder}, found fewer")
    synced = run_program(["sync", *map(str, files)], loopback_environment(), log, corpus.timeout_s)
    return fetched.then(synced)


# --- a registry of OCI artifacts --------------------------------------------------------------------------------


def _registry(corpus: Corpus, place: Workplace, servers: ExitStack, python: str) -> Service:
    """Return the rows of the Distribution project's registry, with the corpus as raw layers."""
    host = servers.enter_context(registry(place.scratch))
    push_artifact(host, "v1", [(entry.path, corpus.folder / entry.path) for entry in corpus.manifest.files])
    reference = f"{host}/{REPOSITORY}:v1"
    rows = [Row("holdfast (oci)", partial(_holdfast, f"oci://{reference}", corpus, place))]
    for name, missing, argv in (
        ("skopeo copy + sync", None if tool("skopeo") else "skopeo", _skopeo(reference)),
        ("oras-py + sync, unverified", None if _imports(python, "oras.client") else "oras", _oras(python, reference)),
    ):
        if missing is not None:
            print(f"skipped, {name}: {missing} is not installed", flush=True)
        else:
            rows.append(Row(name, partial(_client, argv, corpus, place)))
    if tool("containerd") and tool("ctr"):
        rows.append(Row("ctr content fetch", partial(_containerd, reference, corpus, place)))
    else:
        print("skipped, ctr: containerd and ctr are not installed", flush=True)
    return Service("OCI, raw layers (Distribution's registry)", rows, 2.0, 0.6)


def _skopeo(reference: str) -> list[str]:
    copy = ["copy", "--insecure-policy", "--src-tls-verify=false", "--quiet", f"docker://{reference}", "dir:{folder}"]
    return [tool("skopeo") or "skopeo", *copy]


def _imports(python: str, module: str) -> bool:
    return not subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode


def _oras(python: str, reference: str) -> list[str]:
    program = f"import oras.client as c; c.OrasClient(insecure=True).pull({reference!r}, outdir='{{folder}}')"
    return [python, "-c", program]


def _containerd(reference: str, corpus: Corpus, place: Workplace, folder: Path) -> Usage:
    """Measure `ctr content fetch` and the containerd that verifies and stores, which calls fsync(2) on each blob."""
    configuration, socket = place.scratch / "containerd.toml", folder / "c.sock"
    configuration.write_text(_CONTAINERD.format(folder=folder))
    argv = [tool("containerd") or "", "-c", str(configuration)]
    with running(argv, dict(os.environ), place.scratch / "containerd.log", socket.exists) as pid:
        cpu_before_s = cpu_seconds(pid)
        fetch = ["content", "fetch", "--plain-http", reference]
        command = [tool("ctr") or "", "-a", str(socket), *fetch]
        fetched = run_program(command, dict(os.environ), place.scratch / "ctr.log", corpus.timeout_s)
        cpu_s = fetched.cpu_s + cpu_seconds(pid) - cpu_before_s
        stored = sum(path.stat().st_size for path in (folder / "root").rglob("blobs/sha256/*"))
        if stored < corpus.size:
            raise failed(f"ctr: expected {corpus.size} bytes in {folder}, found {stored}")
        return Usage(fetched.wall_s, cpu_s, fetched.peak_bytes + peak_memory(pid))


if __name__ == "__main__":
    sys.exit(bench_main(main))
