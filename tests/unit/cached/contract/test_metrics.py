"""The tables of metrics: names and texts that Prometheus has nothing against, and one meaning of each."""

from __future__ import annotations

import re

import pytest

from cached.contract.metrics import daemon, gate, injector, server
from cached.contract.metrics.metric import Metric, MetricKind
from tests.support.promtool import list_complaints, needs_promtool

PROGRAMS = {"daemon": daemon.ALL, "gate": gate.ALL, "injector": injector.ALL, "server": server.ALL}
TABLES = {"daemon": daemon, "gate": gate, "injector": injector, "server": server}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_has_each_metric_once(name: str) -> None:
    """Names are of our prefix, unique in a program, with the suffix of their kind and of no other; each has a help, a
    bound, and other labels than Prometheus' own."""
    metrics = PROGRAMS[name]
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert re.fullmatch(r"holdfast_[a-z0-9_]+|process_start_time_seconds", metric.name)
        assert metric.name.endswith("_total") is (metric.kind is MetricKind.COUNTER), metric
        assert metric.name.endswith("_info") is (metric.kind is MetricKind.INFO), metric
        assert bool(metric.buckets) is (metric.kind is MetricKind.HISTOGRAM), metric
        assert metric.help and "\n" not in metric.help and metric.combinations >= 1
        assert not {"job", "instance", "le", "quantile"} & set(metric.labels)
        assert list(metric.buckets) == sorted(metric.buckets)


@pytest.mark.parametrize("name", TABLES)
def test_a_metric_is_in_the_list_of_its_program(name: str) -> None:
    """A metric that a table defines is in its `ALL`, which the reference page and the comparisons with a scrape use."""
    defined = {each.name for each in vars(TABLES[name]).values() if isinstance(each, Metric)}
    assert defined <= {metric.name for metric in PROGRAMS[name]}


def test_a_name_that_programs_share_means_the_same() -> None:
    """A metric of several programs has the same kind, help and labels in all."""
    found: dict[str, Metric] = {}
    for metrics in PROGRAMS.values():
        for metric in metrics:
            assert found.setdefault(metric.name, metric) == metric


def test_the_text_is_an_exposition() -> None:
    """A sample's labels are escaped, and its value keeps every digit of a size and of a time."""
    metric = Metric("holdfast_x_bytes", MetricKind.GAUGE, "A size.", ("a", "b"))
    assert metric.head() == "# HELP holdfast_x_bytes A size.\n# TYPE holdfast_x_bytes gauge\n"
    assert metric.sample(1, 'q"\\\n', "é") == 'holdfast_x_bytes{a="q\\"\\\\\\n",b="é"} 1\n'
    assert Metric("n", MetricKind.GAUGE, "N.").sample(1_234_567_890_123_456) == "n 1234567890123456\n"
    assert Metric("n", MetricKind.GAUGE, "N.").sample(1764499999.125) == "n 1764499999.125\n"
    with pytest.raises(ValueError, match="zip"):
        metric.sample(1, "only one")


@needs_promtool
@pytest.mark.parametrize("name", PROGRAMS)
def test_promtool_has_nothing_against_a_table(name: str) -> None:
    """`promtool check metrics` says nothing of a page with every metric of a program."""
    page = "".join(_expose(metric) for metric in PROGRAMS[name])
    assert list_complaints(page) == []


def _expose(metric: Metric) -> str:
    labels = ["x"] * len(metric.labels)
    if metric.kind is not MetricKind.HISTOGRAM:
        return metric.head() + metric.sample(1, *labels)
    pairs = [f'{name}="x"' for name in metric.labels]
    bounds = [",".join([*pairs, f'le="{bound}"']) for bound in (*metric.buckets, "+Inf")]
    buckets = "".join(f"{metric.name}_bucket{{{labelled}}} 1\n" for labelled in bounds)
    tail = f"{{{','.join(pairs)}}} 1\n"
    return f"{metric.head()}{buckets}{metric.name}_sum{tail}{metric.name}_count{tail}"
