"""Whether a page is what a table of metrics says, and Prometheus' own judgement of it.

Law: promtool and prometheus are those of Debian's package `prometheus`, where it is installed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cached.contract.metrics.metric import Metric, MetricKind

_STANDARD = ("process_", "python_")

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (package prometheus)")


def list_complaints(page: str) -> list[str]:
    """Return what `promtool check metrics` says of an exposition, a line each."""
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    complaints = (done.stdout + done.stderr).splitlines()
    assert bool(complaints) is bool(done.returncode), done
    return complaints


def find_differences(page: str, metrics: Collection[Metric]) -> set[str]:
    """Return the metrics of an exposition that are not in the table, or have another kind, help or labels there. The
    standard ones of the process and of Python, and `_created`, may be there."""
    known = {metric.base if metric.kind is MetricKind.COUNTER else metric.name: metric for metric in metrics}
    wrong = set()
    for family in text_string_to_metric_families(page):
        metric = known.get(family.name)
        if metric is None:
            if not family.name.startswith(_STANDARD) and not family.name.endswith("_created"):
                wrong.add(f"{family.name}: not in the table")
            continue
        kind = "gauge" if metric.kind is MetricKind.INFO else metric.kind.value
        labels = {label for sample in family.samples for label in sample.labels} - {
            "le"
        }  # an empty one may be left out
        known_labels = set(metric.labels) if family.samples else set()
        if (family.type, family.documentation, labels) != (kind, metric.help, known_labels):
            wrong.add(f"{family.name}: {family.type}, {family.documentation}, {labels}")
    return wrong
