"""Make `docs/reference/metrics.md` from the tables of `cached.contract.metrics`.

Law: the page has no fact that the tables do not have. Run `python -m tools.metrics_page` (`make generated`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from cached.contract.metrics import daemon, gate, injector, server
from cached.contract.metrics.metric import Metric, Per
from tools.markdown import make_table

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "metrics.md"
_VERSIONS, _SOURCES, _MODELS = 500, 5, 3  # of the example: a node with many versions, a server with several models
_NODES, _VERSIONS_OF_MANY = 500, 20  # of the example of a fleet
_PASSING = sum("absent" in metric.help for metric in daemon.VERSIONS)
_PER = {Per.PROGRAM: "", Per.VERSION: " a version", Per.SOURCE: " a source", Per.MODEL: " a model"}

_HEAD = f"""# Metrics

Made from `cached/contract/metrics/` by `make generated`; a test compares the two. Every program of Holdfast takes its
metrics from these tables, so a name, its labels and its bound are in one place. `promtool check metrics` has nothing to
say of the pages.

**Labels.** `model` and `version` are versions that are on the node or in its catalog: what only a pod's annotation or a
pull makes up is in no label. `source` is the kind of a source (`s3`, `http`, …), `reason` the code of an error or a
refusal, both constants of the code. A new state of a version ends the series of the old one.

**Series.** The last column has the most series of one process. With {_VERSIONS} versions, {_SOURCES} kinds of sources
in use and {_MODELS} models of a server the sum is at most:

"""


def main() -> int:
    """Write the page; return the exit code."""
    for page, text in make_pages().items():
        page.write_text(text)
    return 0


def make_pages() -> dict[Path, str]:
    """Return the text of the page."""
    return {_PAGE: _make_page()}


def _make_page() -> str:
    programs = [
        ("The daemon", "port 9400 of its pods", daemon.ALL),
        ("The injector", "port 8444 of its pods", injector.ALL),
        ("The gate as a sidecar", "port 9401 of its pod; a gate that ends has none", gate.ALL),
        ("The server", "port 8080, beside its API", server.SERVER + server.MODELS),
        ("The loader", "in the server, and in any process that registers it", server.LOADS),
    ]
    sums = [(name, _worst(metrics)) for name, _, metrics in programs]
    per_version = sum(metric.series for metric in daemon.ALL if metric.per is Per.VERSION)
    text = _HEAD + make_table(["process", "series"], [[name, f"{most:,}"] for name, most in sums])
    fixed = _worst(daemon.ALL) - per_version * _VERSIONS
    fleet = _NODES * (fixed + (per_version - _PASSING) * _VERSIONS_OF_MANY)
    text += f"""
Of the daemon's, {per_version} are for each version, {per_version - _PASSING} while nothing is fetched or waited for.
A fleet has the sum of its nodes: {_NODES} nodes with {_VERSIONS_OF_MANY} versions each at rest at most {fleet:,}.
All programs have the standard `process_*` besides, the daemon `python_*` too; the server's counters and histograms have
a `…_created` each.
"""
    for name, where, metrics in programs:
        text += f"\n## {name}\n\n{where[0].upper()}{where[1:]}.\n\n"
        text += make_table(["metric", "kind", "labels", "what", "series"], map(_row, metrics))
    return text


def _row(metric: Metric) -> list[str]:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    text = metric.help.removesuffix(".")
    return [f"`{metric.name}`", metric.kind.value, labels, text, f"{metric.series:,}{_PER[metric.per]}"]


def _worst(metrics: Iterable[Metric]) -> int:
    times = {Per.PROGRAM: 1, Per.VERSION: _VERSIONS, Per.SOURCE: _SOURCES, Per.MODEL: _MODELS}
    return sum(metric.series * times[metric.per] for metric in metrics)


if __name__ == "__main__":
    sys.exit(main())
