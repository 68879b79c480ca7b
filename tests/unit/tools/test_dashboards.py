"""The dashboards: what is committed is what the code makes, and every panel asks for what exists."""

from __future__ import annotations

import importlib
import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from cached.contract.metrics import daemon, injector, server
from tests.support.dashboards import GRAFANA, NAMES, list_panels, list_queries, read_dashboard
from tests.support.kustomize import render

ELSEWHERE = {"ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}
KNOWN = {metric.name for metric in (*daemon.ALL, *injector.ALL, *server.ALL)} | ELSEWHERE


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_dashboard_is_current(name: str) -> None:
    """The JSON is what `make generated` makes of the code now."""
    pytest.importorskip("grafana_foundation_sdk")
    files = importlib.import_module("tools.dashboards.files")
    made = {path.stem: files.encode(make()) for path, make in files.FILES.items()}
    assert (GRAFANA / f"{name}.json").read_text() == made[name]


def test_every_metric_of_a_panel_exists() -> None:
    """A query names metrics of the tables, and the few that Prometheus and its client library make."""
    for where, expr in list_queries():
        bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|by \([^)]*\)", "", expr)
        named = set(re.findall(r"\b(?:holdfast|process)_\w+|\bALERTS\b", bare))
        assert named, where
        unknown = {name for name in named - KNOWN if name.removesuffix("_bucket") not in KNOWN}
        assert not unknown, (where, unknown)


@pytest.mark.parametrize("name", NAMES)
def test_a_panel_says_what_it_shows(name: str) -> None:
    """Each panel has a title of its own and a sentence, asks the chosen data source, and lies beside the others."""
    panels = list_panels(name)
    titles = [(panel["title"], panel["type"]) for panel in panels]
    assert len(set(titles)) == len(titles)
    for panel in panels:
        assert panel["description"].endswith(".") and panel["targets"], panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources), panel["title"]
    places = [panel["gridPos"] for panel in read_dashboard(name)["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert not [pair for pair in combinations(places, 2) if _overlap(*pair)]
    assert len({panel["id"] for panel in read_dashboard(name)["panels"]}) == len(places)


def test_the_fleet_answers_what_an_operator_asks() -> None:
    """The fleet has ready and missing copies, fill progress, waiting pods, traffic, disk, evictions and checksums."""
    asked = {"Ready copies", "Missing copies", "Fill progress", "Waiting pods", "Traffic", "Store", "Evictions"}
    assert asked | {"Wrong checksums"} <= {panel["title"] for panel in list_panels("fleet")}


def test_the_component_makes_what_the_sidecar_looks_for(tmp_path: Path) -> None:
    """The component makes one ConfigMap with Grafana's label, which has both dashboards."""
    kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "components": [str(GRAFANA)]}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization))
    (made,) = render(tmp_path)
    assert (made["kind"], made["metadata"]["labels"]["grafana_dashboard"]) == ("ConfigMap", "1")
    assert {json.loads(text)["uid"] for text in made["data"].values()} == {"holdfast-fleet", "holdfast-node"}
    assert sum(map(len, made["data"].values())) < 1 << 20  # the most of a ConfigMap


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )
