"""The committed dashboards, and the queries of their panels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.manifests import MANIFESTS

GRAFANA = MANIFESTS / "components" / "grafana"
NAMES = ("fleet", "node")


def read_dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard's JSON."""
    found: dict[str, Any] = json.loads((GRAFANA / f"{name}.json").read_text())
    return found


def list_panels(name: str) -> list[dict[str, Any]]:
    """Return the panels of a dashboard that show something, without the rows."""
    return [panel for panel in read_dashboard(name)["panels"] if panel["type"] != "row"]


def list_queries() -> Iterator[tuple[str, str]]:
    """Yield every query of every panel: dashboard, panel and target as one name, and the expression."""
    for name in NAMES:
        for panel in list_panels(name):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']} {target['refId']}", target["expr"]
