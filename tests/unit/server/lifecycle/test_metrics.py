"""The server's page of metrics: what the table says, and the loader's rate in both of its units."""

from __future__ import annotations

from pathlib import Path

from cached.contract.metrics import server as table
from server.engine.protocol import EngineLoad
from server.engine.types import About, ModelKind
from server.lifecycle.admission import GoldenComparison
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.snapshot import Snapshot
from server.weights.report import Bound, LoadReport, Stages
from tests.support.promtool import find_differences

REPORT = LoadReport("f", "cpu", "ring", 1, 1, 3_000_000_000, 1, 0, 0, 2.0, Stages(), Bound.DISK)


def test_the_page_is_as_the_table_says() -> None:
    """All that a server counts is in the table, under its kind, help and labels, and the whole table is there."""
    metrics = ServerMetrics()
    metrics.count_request("/v1/models", "m", 200, 0.1)
    metrics.count_refused("loading")
    metrics.count_closed("head")
    metrics.set_ready(True)
    metrics.load.record(REPORT)
    with metrics.stage("import"):
        pass
    model = metrics.model("m")
    model.describe(Snapshot(Path("/m"), "m", "v1", None), About(ModelKind.COMPLETIONS, 10, "cpu", "float32", 4))
    model.watch_queue(lambda: EngineLoad(1, 2))
    model.count_prompt(3)
    model.record_wait(0.1)
    model.record_first_token(0.1)
    model.record_choice(3, 0.1)
    model.record_step(1, 0.1)
    model.count_swap("done")
    model.set_healthy(True)
    model.set_golden(GoldenComparison(1, 0.0, "", ()))
    page = metrics.text().decode()
    assert find_differences(page, table.ALL) == set()
    samples = [line for line in page.splitlines() if not line.startswith("#")]
    for metric in table.ALL:
        assert any(line.startswith((f"{metric.name} ", f"{metric.name}{{", f"{metric.name}_")) for line in samples), (
            metric
        )
    assert "holdfast_load_bytes_per_second 1.5e+09" in samples
