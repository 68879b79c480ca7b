"""Measure an idle daemon's memory and CPU time with many pods and many versions.

Law: the daemon is a real process; its API server is the tests' in-process one, whose time is not counted. Nothing is
fetched: the node holds every version that the pods want. The scrub runs at its default rate.

Run `python -m bench.idle --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.daemon import CatalogEntry, daemon, write_catalog
from bench.harness import bench_main, workplace
from bench.machine import append_section
from bench.measure import cpu_seconds, peak_memory
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
    parser.add_argument("--seconds", type=float, default=60, help="how long to look (default 60)")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
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
        environment = {**loopback_environment(), "KUBECONFIG": str(_kubeconfig(place.scratch, api.url))}
        with daemon(layout.root, catalog, environment, ("--kube", "auto")) as running:
            running.wait_ready()
            time.sleep(_SETTLE_S)
            before_s, began = cpu_seconds(running.pid), time.monotonic()
            time.sleep(options.seconds)
            share = (cpu_seconds(running.pid) - before_s) / (time.monotonic() - began)
            peak = peak_memory(running.pid)
        targets = [
            report.Target("peak memory", peak / _MIB, 100, False, " MiB"),
            report.Target("processor, share of a core", 100 * share, 1, False, " %"),
        ]
        what = f"{options.pods} pods, {options.versions} versions of {options.files} files, {options.seconds:g} s"
        text = f"{what}:\n\n{report.bullets(targets)}"
        print(text)
        if options.append:
            append_section("An idle daemon", place.folder, text)
    return 0


def _kubeconfig(folder: Path, server: str) -> Path:
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
