"""Measure an idle daemon's memory and CPU time with many pods and many versions, beside that of another checkout.

Law: the daemon is a real process with default options; its API server is the tests' in-process one, whose time is not
counted. Nothing is fetched: the node holds every version that the pods want. Checkouts take turns on one root, first
one and then the other. CPU time is the kernel's, in nanoseconds, of all threads.

Run `python -m bench.idle --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import report
from bench.daemon import CatalogEntry, Daemon, daemon, write_catalog
from bench.harness import bench_main, in_turn, workplace
from bench.machine import append_section
from bench.measure import peak_memory, resident_memory, run_seconds
from bench.origins import loopback_environment
from bench.restart import build
from cached.contract.layout import Layout
from tests.support.fake_api import FakeApi
from tests.support.kube_shapes import make_pod

_MIB = 1024 * 1024
_NODE = "bench"
_SETTLE_S = 10.0  # the first lists, labels and Events are not idle cost


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__.partition("\n")[0])
    parser.add_argument("--pods", type=int, default=110, help="annotated pods on the node (default 110)")
    parser.add_argument("--versions", type=int, default=200, help="versions on the node (default 200)")
    parser.add_argument("--files", type=int, default=30, help="files in each (default 30)")
    parser.add_argument("--seconds", type=float, default=60, help="how long to look, each time (default 60)")
    parser.add_argument("--rounds", type=int, default=1, help="how often (default 1)")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, whose daemon takes turns")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    rows: dict[str, Path | None] = {"this": None}
    if options.beside is not None:
        rows = {"beside": options.beside.resolve(), **rows}
    with workplace(None) as place, FakeApi() as api:
        layout, catalog = Layout(place.destination), place.scratch / "catalog.yaml"
        published = build(layout, options.versions, options.files)
        write_catalog(catalog, [CatalogEntry(ref, "http://127.0.0.1:9/", digest) for ref, digest in published.items()])
        api.create("/api/v1/nodes", {"metadata": {"name": _NODE, "labels": {}}})
        refs = sorted(published)
        for number in range(options.pods):
            ref = refs[number % len(refs)]
            asks = {"holdfast.dev/model": ref.name, "holdfast.dev/version": ref.version}
            api.create("/api/v1/namespaces/default/pods", make_pod(f"pod-{number}", _NODE, asks))
        environment = {**loopback_environment(), "KUBECONFIG": str(make_kubeconfig(place.scratch, api.url))}
        found: dict[str, list[_Idle]] = {name: [] for name in rows}
        for round_ in range(options.rounds):
            for name in in_turn(list(rows), round_):
                with daemon(layout.root, catalog, environment, ("--kube", "auto"), rows[name]) as running:
                    found[name].append(_watch(running, options.seconds))
        what = f"{options.pods} pods, {options.versions} versions of {options.files} files"
        times = f"{options.seconds:g} s" + (f", {options.rounds} times in turns" if options.rounds > 1 else "")
        text = f"{what}, {times}:\n\n{_report(found)}"
        print(text)
        if options.append:
            append_section("An idle daemon", place.folder, text)
    return 0


@dataclass(frozen=True, slots=True)
class _Idle:
    """One look: CPU seconds a second, bytes of resident memory at its end, and at most."""

    share: float
    resident: int
    peak: int


def _watch(running: Daemon, seconds: float) -> _Idle:
    running.wait_ready()
    time.sleep(_SETTLE_S)
    before_s, began = run_seconds(running.pid), time.monotonic()
    time.sleep(seconds)
    share = (run_seconds(running.pid) - before_s) / (time.monotonic() - began)
    running.check_alive()
    return _Idle(share, resident_memory(running.pid), peak_memory(running.pid))


def _report(found: Mapping[str, Sequence[_Idle]]) -> str:
    head = ["daemon", "CPU, % of a core", "resident, MiB", "peak, MiB"]
    shares = {name: median(each.share for each in looks) for name, looks in found.items()}
    resident = {name: median(each.resident for each in looks) for name, looks in found.items()}
    body = [
        [
            name,
            f"{100 * shares[name]:.3f}",
            f"{resident[name] / _MIB:.1f}",
            f"{max(each.peak for each in looks) / _MIB:.1f}",
        ]
        for name, looks in found.items()
    ]
    targets = [
        report.Target("peak memory", max(each.peak for each in found["this"]) / _MIB, 100, False, " MiB"),
        report.Target("processor, share of a core", 100 * shares["this"], 1, False, " %"),
    ]
    if "beside" in shares:
        targets.append(report.Target("processor, beside", shares["this"] / shares["beside"], 0.2, False, " x"))
        targets.append(
            report.Target("resident memory, beside", resident["this"] / resident["beside"], 0.75, False, " x")
        )
    return f"{report.grid(head, body)}\n\n{report.bullets(targets)}"


def make_kubeconfig(folder: Path, server: str) -> Path:
    """Write a kubeconfig of `server`, without credentials, into `folder`; return its path."""
    path = folder / "kubeconfig"
    document = {
        "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": server}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    }
    path.write_text(json.dumps(document))
    return path


if __name__ == "__main__":
    sys.exit(bench_main(main))
